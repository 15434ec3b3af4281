"""Arguments that are state of the model too, and code that runs on them unseen."""

import collections
from operator import attrgetter

import pytest
import torch
import torch.nn.functional as F
from compared import check, model
from elsewhere import Two
from torch import nn

import fxtie


def with_the(*names):
    """A call with attributes of the model as arguments."""

    def call(model):
        return (torch.randn(3, 4), *(attrgetter(name)(model) for name in names)), {}

    return call


def writes_an_item(self, x, table):
    table["n"] = 5
    return self.b(self.a(x)) * self.table["n"]


def writes_by_number(self, x, numbers):
    numbers[0] = numbers[0] + 1
    return self.b(self.a(x)) * self.numbers[0]


def writes_a_list(self, x, numbers):
    numbers[:] = [4, 5]
    return self.b(self.a(x)) * self.numbers[0]


def calls_a_method(self, x, numbers):
    numbers.append(1)
    return self.b(self.a(x)) * len(self.numbers)


def extends(self, x, numbers):
    numbers += [1, 2]
    return self.b(self.a(x)) * len(self.numbers)


class Gives(nn.Module):
    def __init__(self):
        super().__init__()
        self.table = {"n": 1}

    def forward(self, x):
        return self.table


def writes_what_a_part_gives(self, x):
    table = self.part(x)
    table["n"] = 5
    return self.b(self.a(x)) * self.part.table["n"]


@pytest.mark.parametrize(
    ("forward", "expected", "names"),
    [
        (writes_an_item, "kept", ["table"]),
        (writes_by_number, "graph", ["numbers"]),  # for tensors only
        (writes_a_list, "graph", ["numbers"]),
        (calls_a_method, "kept", ["numbers"]),
        (extends, "kept", ["numbers"]),
        (writes_what_a_part_gives, "kept", []),
    ],
)
def test_a_container_of_the_model(forward, expected, names):
    make = model(forward, table=lambda: {"n": 1}, numbers=lambda: [1, 2], part=Gives)
    check(make, expected, with_the(*names))


class Bumps:
    def step(self, model):
        model.scale += 1


class Passing(Two):
    def __init__(self):
        super().__init__()
        self.scale = 1

    def forward(self, x, bumps):
        bumps.step(self)
        return self.b(self.a(x)) * self.scale


class PassingItsPart(Passing):
    def __init__(self):
        super().__init__()
        self.a.scale = 1

    def forward(self, x, bumps):
        bumps.step(self.a)
        return self.b(self.a(x)) * self.a.scale


@pytest.mark.parametrize("make", [Passing, PassingItsPart])
def test_a_module_that_it_hands_on(make):
    check(make, "kept", lambda: ((torch.randn(3, 4), Bumps()), {}))


def returns_itself(self, x):
    return self.b(self.a(x)), self


def test_a_forward_that_returns_the_model():
    tied = fxtie.transform(model(returns_itself)(), fxtie.Rule("b", "a"))
    assert tied(torch.randn(3, 4))[1] is tied


def changes_a_source(self, x, weight):
    before = self.b(x)
    weight.detach().mul_(0.9)
    return before + self.b(x)


def changes_what_a_layer_gives(self, x):
    before = self.b(x)
    y = self.c(x)
    y *= 0.5
    return before + self.b(y)


def test_an_argument_that_is_a_source():
    """A backward fails then, on both sides."""
    check(model(changes_a_source), "graph", with_the("a.weight"), raises=True)


def derivations(forward):
    tied = fxtie.transform(
        model(forward, c=lambda: nn.Linear(4, 4))(), fxtie.Rule("b", "a", weight=torch.square)
    )
    return len(tied.graph.find_nodes(op="call_function", target=torch.square))


def test_what_is_derived_anew():
    """Only where an argument, or what may be a view of one, has changed."""
    assert derivations(changes_a_source) == 2
    assert derivations(changes_what_a_layer_gives) == 1


def changes_one_reads_the_other(self, x, y):
    x.add_(1)
    return self.b(self.a(y)) + x.sum()


def test_two_arguments_that_are_one():
    def call():
        x = torch.randn(3, 4)
        return (x, x[:]), {}

    check(model(changes_one_reads_the_other), "graph", call)


Output = collections.namedtuple("Output", ["y", "seen"])


def returns_its_list(self, x):
    return Output(self.b(self.a(x)) * len(self.seen), self.seen)


def writes_its_list(self, x):
    output = Output(self.b(self.a(x)), self.seen)
    F.relu(torch.stack([output.y, x]))
    output.seen.append(1)
    return output.y * len(self.seen)


@pytest.mark.parametrize("forward", [returns_its_list, writes_its_list])
def test_a_list_of_the_model_in_a_named_tuple(forward):
    check(model(forward, seen=lambda: [1]), "kept")


class Part(nn.Module):
    def __init__(self, table):
        super().__init__()
        self.table = table

    def forward(self, x):
        if isinstance(x, torch.Tensor):
            return x
        self.table["n"] += 1
        return x[0]


class WithPart(Two):
    """Its part changes something unless the argument is a tensor."""

    def __init__(self):
        super().__init__()
        self.table = {"n": 1}
        self.part = Part(self.table)

    def forward(self, x):
        return self.b(self.a(self.part(x))) * self.table["n"]


def test_what_a_part_is_proved_for():
    calls = [lambda: ((torch.randn(3, 4),), {}), lambda: (([torch.randn(3, 4)],), {})]
    check(WithPart, "graph", *calls)
