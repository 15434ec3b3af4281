"""Tensors that change in place: their shapes, what is derived from them, and checks after that."""

import pytest
import torch
import torch.nn.functional as F
from compared import RULE, check, model
from torch import nn

import fxtie

# -- the shape of a tensor -----------------------------------------------------------------------


def unsqueezes(self, x):
    self.extra.unsqueeze_(0)
    return self.b(self.a(x)) * self.extra.dim()


def transposes(self, x):
    self.extra.t_()
    return self.b(self.a(x)) * self.extra.shape[0]


def transposes_afterwards(self, x):
    self.extra.add_(1).t_()
    return self.b(self.a(x)) * self.extra.shape[0]


def transposes_and_asks_nothing(self, x):
    self.extra.t_()
    return self.b(self.a(x)) + self.extra.sum()


@pytest.mark.parametrize(
    ("forward", "expected"),
    [
        (unsqueezes, "kept"),
        (transposes, "kept"),
        (transposes_afterwards, "kept"),
        (transposes_and_asks_nothing, "graph"),
    ],
)
def test_a_shape_that_changes(forward, expected):
    check(model(forward, extra=lambda: torch.ones(2, 4)), expected)


def takes_the_storage(self, x):
    made = torch.empty(0)
    made.set_(self.b.weight.detach())
    made.mul_(2)
    return self.b(self.a(x))


def test_a_tensor_that_gets_another_storage():
    tied = fxtie.transform(model(takes_the_storage)(), RULE)
    (kept,) = fxtie.report(tied).kept
    assert "another storage" in kept.reason


# -- layers that change what they are given ------------------------------------------------------


class Layered(nn.Module):
    """A layer of torch's gets a derived tensor, of which another reader follows."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.act = nn.Linear(4, 4), nn.Linear(4, 4), nn.Hardtanh(-0.01, 0.01)

    def forward(self, x):
        weight = self.act(self.b.weight.detach())
        return F.linear(x, weight) + self.b(x)


class InSequence(Layered):
    def __init__(self):
        super().__init__()
        self.act = nn.Sequential(self.act, nn.Tanh())


class Triples(nn.Module):
    def forward(self, x):
        return x.mul_(3)


def in_place(model):
    layer = model.act if isinstance(model.act, nn.Hardtanh) else model.act[0]
    layer.inplace = True


def replaced(model):
    model.act[0] = Triples()


@pytest.mark.parametrize(
    ("make", "change"), [(Layered, in_place), (InSequence, in_place), (InSequence, replaced)]
)
def test_a_layer_that_begins_to_change_its_input(make, change):
    check(make, "graph", change=change)


class Scripted(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)
        self.part = torch.jit.script(Triples())

    def forward(self, x):
        weight = self.part(self.b.weight.detach())
        return F.linear(x, weight) + self.b(x)


def test_a_scripted_part_that_changes_a_derived_tensor():
    check(Scripted, "kept")


class SharesItsStatistics(nn.Module):
    """What a layer changes is a source under the name of another layer."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.BatchNorm1d(4), nn.Linear(4, 4), nn.BatchNorm1d(4)
        self.c.running_mean = self.a.running_mean

    def forward(self, x):
        before = self.b(x)
        return before + self.c(x) + self.b(x)


class SharesItsRows(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Embedding(5, 4), nn.Linear(4, 5, bias=False)
        self.c = nn.Embedding(5, 4, max_norm=0.1)
        self.c.weight = self.a.weight.requires_grad_(False)

    def forward(self, x):
        before = self.b(x)
        return before + self.b(x + self.c(torch.tensor([0, 1, 2])).detach()) + self.b(x)


@pytest.mark.parametrize(
    ("make", "rule"),
    [
        (SharesItsStatistics, fxtie.Tie("b.bias", "a.running_mean", torch.square)),
        (SharesItsRows, RULE),
    ],
)
def test_a_source_that_two_layers_have(make, rule):
    check(make, "graph", rule=rule)


class Shrinks(nn.Module):
    """Changes tensors that other modules have."""

    def __init__(self, *tensors):
        super().__init__()
        self.tensors = tensors

    def forward(self, x):
        for tensor in self.tensors:
            tensor.detach().mul_(0.9)
        return x


class Descends(Shrinks):
    def forward(self, x):
        for tensor in self.tensors:
            tensor.grad = torch.ones_like(tensor)
        torch.optim.SGD(self.tensors, lr=0.1).step()
        return x


class WithShrinking(nn.Module):
    def __init__(self, shrinks, hold):
        super().__init__()
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)
        self.shrinks = shrinks(hold(self.a.weight.requires_grad_(False)))

    def forward(self, x):
        before = self.b(x)
        x = self.shrinks(x)
        return before + self.b(x)


@pytest.mark.parametrize("shrinks", [Shrinks, Descends])
@pytest.mark.parametrize("hold", [lambda weight: weight, lambda weight: weight.view(2, 8)])
def test_a_part_that_has_a_source_of_its_owner(shrinks, hold):
    check(lambda: WithShrinking(shrinks, hold), "graph")


# -- a check that fails runs the forward again ----------------------------------------------------


def changes_its_argument(self, x):
    x *= -1
    if (x[0, 0] > 0).item():
        raise ValueError("positive")
    return self.b(self.a(x))


def changes_its_buffer(self, x):
    self.extra.add_(1)
    if x.shape[0] <= 3:
        raise ValueError("too few")
    return self.b(self.a(x)) * self.extra


def updates_its_statistics(self, x):
    x = self.part(self.b(self.a(x)))
    if x.shape[0] <= 3:
        raise ValueError("too few")
    return x


def counts_its_calls(self, x):
    self.part.num_batches_tracked.add_(1)
    if x.shape[0] <= 3:
        raise ValueError("too few")
    return self.b(self.a(x)) * self.part.num_batches_tracked


def checks_first(self, x):
    if x.shape[0] <= 3:
        raise ValueError("too few")
    self.extra.add_(1)
    return self.part(self.b(self.a(x))) * self.extra


class Counts(nn.Module):
    def __init__(self):
        super().__init__()
        self.calls = 0

    def forward(self, x):
        self.calls += 1
        return x * self.calls


class CountsInABuffer(nn.Module):
    """As known code does, which only changes a tensor."""

    def __init__(self):
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x):
        self.calls.add_(1)
        return x * self.calls


CHECKS = {
    "an argument": (changes_its_argument, nn.Identity, "kept"),
    "a buffer": (changes_its_buffer, nn.Identity, "kept"),
    "statistics": (updates_its_statistics, lambda: nn.BatchNorm1d(4), "graph"),
    "statistics, by the code": (counts_its_calls, lambda: nn.BatchNorm1d(4), "graph"),
    "a counter": (updates_its_statistics, Counts, "kept"),
    "a buffer of a part": (updates_its_statistics, CountsInABuffer, "graph"),
    "nothing": (updates_its_statistics, nn.Tanh, "graph"),
    "nothing before": (checks_first, lambda: nn.BatchNorm1d(4), "graph"),
}


@pytest.mark.parametrize("name", CHECKS)
def test_what_changes_before_a_check(name):
    forward, part, expected = CHECKS[name]
    calls = [lambda: ((torch.ones(3, 4).neg(),), {}), lambda: ((torch.randn(5, 4),), {})]
    check(model(forward, extra=lambda: torch.ones(4), part=part), expected, *calls, raises=True)


def test_random_states_after_a_check_that_fails():
    def forward(self, x):
        x = F.dropout(self.b(self.a(x)))
        if x.shape[0] <= 3:
            raise ValueError("too few")
        return x

    untied = model(forward)()
    states = []
    for one in (untied, fxtie.transform(untied, RULE)):
        torch.manual_seed(0)
        with pytest.raises(ValueError, match="too few"):
            one(torch.randn(3, 4))
        states.append(torch.get_rng_state())
    assert torch.equal(*states)
