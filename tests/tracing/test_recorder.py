"""What code that stays a call can change while the graph runs, and what it is handed."""

import dataclasses
import functools
import weakref

import elsewhere
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from compared import RULE, check, model, x
from elsewhere import Two
from torch import nn

import fxtie

# -- what it can reach ---------------------------------------------------------------------------


class Part(nn.Module):
    """A part that does something to what it has got from its owner."""

    def __init__(self, act, *held):
        super().__init__()
        self.act, self.held = act, held

    def forward(self, x):
        self.act(*self.held)
        return x


class Slotted:
    __slots__ = ("__dict__", "table")


class WithAttributes(dict):
    pass


class Settings:
    n = 1


class Owner(Two):
    """Its part is made by the class, out of the owner."""

    def __init__(self):
        super().__init__()
        self.register_buffer("mem", torch.zeros(4))
        self.numbers, self.table = [1, 2], {"n": 1}
        self.part = self.make()


def count(held):
    held.table["n"] += 1


def holding(kind):
    def make(owner):
        held = kind()
        held.table = owner.table
        return Part(count, held)

    return make


def reads_the_table(self, x):
    return self.part(self.b(self.a(x))) * self.table["n"]


def grows(owner):
    if len(owner.numbers) < 3:
        owner.numbers.append(3)


def reads_while_it_grows(self, x):
    x = self.b(self.a(x))
    for n in self.numbers:
        x = self.part(x) * n
    return x


def reads_afterwards(self, x):
    x, numbers = self.b(self.a(x)), iter(self.numbers)
    x = self.part(x)
    for n in numbers:
        x = x * n
    return x


def reads_a_view_afterwards(self, x):
    x, values = self.b(self.a(x)), self.table.values()
    x = self.part(x)
    for n in values:
        x = x * n
    return x


def replaces_a_buffer(owner):
    owner.mem = owner.mem + 1


def reads_a_buffer_twice(self, x):
    x = self.b(self.a(x)) + self.mem
    return self.part(x) + self.mem


def replaces_a_parameter(owner):
    owner.a.bias = nn.Parameter(owner.a.bias.detach() + 1)


def reads_a_parameter_twice(self, x):
    x = self.b(self.a(x)) + self.a.bias
    return self.part(x) + self.a.bias


def of_owner(act):
    return lambda owner: Part(lambda owners: act(owners[0]), [owner])


CHANGES = {
    "an attribute of a dict": (reads_the_table, holding(WithAttributes), "kept"),
    "a slot": (reads_the_table, holding(Slotted), "kept"),
    "a list that is iterated": (reads_while_it_grows, of_owner(grows), "kept"),
    "an iterator": (reads_afterwards, of_owner(grows), "kept"),
    "a view": (reads_a_view_afterwards, of_owner(count), "kept"),
    "a buffer": (reads_a_buffer_twice, of_owner(replaces_a_buffer), "graph"),
    "a parameter": (reads_a_parameter_twice, of_owner(replaces_a_parameter), "graph"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_what_a_part_changes(name):
    forward, make, expected = CHANGES[name]
    made = type("Model", (Owner,), {"forward": forward, "make": make})
    check(made, expected)


def by_a_module():
    elsewhere.STATE["n"] += 1


def by_an_import():
    from elsewhere import STATE

    STATE["n"] += 1


def by_a_class():
    Settings.n += 1


def weakly(proxies):
    proxies[0].table["n"] += 1


def reads_a_class_twice(self, x):
    x = self.b(self.a(x)) * Settings.n
    return self.part(x) * Settings.n


class Weakly(Owner):
    forward = reads_the_table

    def make(self):
        return Part(weakly, [weakref.proxy(self)])


class ByMethod(Owner):
    forward = reads_the_table

    def make(self):
        return Part(functools.partial(self.table.update, n=5))


class Reading(Owner):
    forward = reads_the_table

    def make(self):
        self.table = elsewhere.STATE
        return Part(self.act)


@pytest.mark.parametrize(
    "make",
    [
        Weakly,
        ByMethod,
        type("ByModule", (Reading,), {"act": staticmethod(by_a_module)}),
        type("ByImport", (Reading,), {"act": staticmethod(by_an_import)}),
        model(reads_a_class_twice, part=lambda: Part(by_a_class)),
    ],
)
def test_what_copies_share(make):
    """The state of these is no part of a copy, so they are not compared."""
    reasons = {kept.name: kept.reason for kept in fxtie.report(fxtie.transform(make(), RULE)).kept}
    assert "may change" in reasons[""]


@pytest.mark.parametrize("named_as", [functools.wraps(F.relu), lambda function: function])
def test_a_layer_of_torch_that_runs_code_of_the_users(named_as):
    log = []

    @named_as
    def noted(x):
        log.append(1)
        return F.relu(x)

    def forward(self, x):
        x = self.layer(self.b(self.a(x))[None])[0]
        return x * len(self.log)

    layer = nn.TransformerEncoderLayer(4, 1, 8, dropout=0, activation=noted)
    make = model(forward, layer=lambda: layer, log=lambda: log)
    assert [kept.name for kept in fxtie.report(fxtie.transform(make(), RULE)).kept] == [""]


LOG = []


def noting(layer, x):
    LOG.append(1)
    return x


class Counts:
    """What a layer of torch's reads is computed."""

    @property
    def inplace(self):
        LOG.append(1)
        return False

    @inplace.setter
    def inplace(self, value):
        pass


class Describes:
    size = 4

    def describe(self):
        LOG.append(1)

    @staticmethod
    def made_of(_):
        LOG.append(1)


LAYERS = {
    "as it is": ((nn.ReLU,), {}, "graph"),
    "made in another way": ((nn.ReLU,), {"__init__": lambda self: nn.ReLU.__init__(self)}, "graph"),
    "with more": ((Describes, nn.ReLU), {}, "graph"),
    "with more, afterwards": ((nn.ReLU, Describes), {}, "graph"),
    "of computed attributes": ((Counts, nn.ReLU), {}, "kept"),
    "of computed attributes, afterwards": ((nn.ReLU, Counts), {}, "kept"),
    "of a forward of its own": ((nn.ReLU,), {"forward": noting}, "kept"),
    "of a way to be called of its own": ((nn.ReLU,), {"_call_impl": noting}, "kept"),
}


@pytest.mark.parametrize("name", LAYERS)
def test_subclasses_of_a_layer_of_torchs(name):
    """Only those that surely run torch's code alone are taken to change nothing."""
    bases, members, expected = LAYERS[name]

    def forward(self, x):
        return self.layer(self.b(self.a(x))) * len(self.log)

    made = type("Layer", bases, members)
    tied = fxtie.transform(model(forward, layer=made, log=lambda: LOG)(), RULE)
    assert [kept.name for kept in fxtie.report(tied).kept] == ([""] if expected == "kept" else [])


# -- what it is handed ---------------------------------------------------------------------------


class Appends(nn.Module):
    def forward(self, values, others=()):
        values.append(values[0] * 3)
        return values[0] * len(others)


@dataclasses.dataclass
class Pair:
    first: torch.Tensor
    second: torch.Tensor | None


class Completes(nn.Module):
    def forward(self, pair):
        pair.second = pair.first * 2
        return pair.first


def twice_in_a_call(self, x):
    values = [self.b(self.a(x))]
    return self.part(values, values)


def iterates_afterwards(self, x):
    values = [self.b(self.a(x))]
    each = iter(values)
    x = self.part(values)
    for value in each:
        x = x + value
    return x


def reads_an_attribute(self, x):
    pair = Pair(self.b(self.a(x)), None)
    x = self.part(pair)
    return x if pair.second is None else x + pair.second


def gets_it_back(self, x):
    values = [self.b(self.a(x))]
    again = self.part(values)
    again.append(x)
    return values[-1]


HANDED = {
    "twice": (twice_in_a_call, Appends),
    "and its iterator": (iterates_afterwards, Appends),
    "an object": (reads_an_attribute, Completes),
    "to torch": (gets_it_back, nn.Identity),
}


@pytest.mark.parametrize("name", HANDED)
def test_containers_that_a_part_gets(name):
    forward, part = HANDED[name]
    check(model(forward, part=part), "kept")


def joined(self, x, log):
    values = [self.b(self.a(x))]
    log += [values]
    values.append(x)
    return log


def joined_to_another(self, x, log):
    values = [self.b(self.a(x))]
    log = log + [values]  # noqa: RUF005
    values.append(x)
    return log


def in_a_tuple(self, x, log):
    values = [self.b(self.a(x))]
    log.append((values, 1))
    values.append(x)
    return log[-1][0]


def of_the_model(self, x, log):
    log.append(self.table)
    return self.b(self.a(x)), log[-1]


@pytest.mark.parametrize("forward", [joined, joined_to_another, in_a_tuple, of_the_model])
def test_containers_in_an_argument(forward):
    check(model(forward, table=lambda: [2]), "kept", lambda: ((x(), []), {}))


class Measures(nn.Module):
    def forward(self, x, shape, scale):
        return x * shape.numel() * scale.itemsize


def hands_on_a_shape(self, x):
    return self.part(self.b(self.a(x)), self.a.weight.shape, self.scale)


def test_types_that_torch_does_not_tell_apart():
    check(model(hands_on_a_shape, part=Measures, scale=np.float64(2)), "graph")


def returns_a_shape(self, x):
    return self.b(self.a(x)), self.a.weight.shape, self.scale


def test_types_of_what_is_returned():
    tied = fxtie.transform(model(returns_a_shape, scale=np.float64(2))(), RULE)
    assert not fxtie.report(tied).kept
    assert [*map(type, tied(x()))] == [torch.Tensor, torch.Size, np.float64]


# -- tensors that it changes in place ------------------------------------------------------------


class Statistics(nn.Module):
    """Its source is the mean that an operation in C updates between two uses."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.BatchNorm1d(4), nn.Linear(4, 4)

    def forward(self, x):
        y, a = self.b(x), self.a
        args = a.weight, a.bias, a.running_mean, a.running_var, self.training, 0.1, 1e-5, False
        return y + torch.batch_norm(x, *args) + self.b(x)


def test_statistics_that_an_operation_updates():
    check(Statistics, "graph", rule=fxtie.Tie("b.bias", "a.running_mean", torch.square))


def runs_a_backward(self, x):
    if torch.is_grad_enabled():
        self.b(x).square().sum().backward()
    return self.b(x)


def test_a_backward():
    check(model(runs_a_backward), "kept")


def test_a_weak_proxy_is_of_the_copy():
    made = Weakly()
    tied = fxtie.transform(made, RULE)
    assert tied.part.held[0][0].__repr__.__self__ is tied
    assert made.part.held[0][0].__repr__.__self__ is made
