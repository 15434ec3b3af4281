"""Forwards that walk over children, modules, parameters and buffers."""

import pytest
import torch
from compared import RULE, check, model, x
from elsewhere import Two
from torch import nn

import fxtie


class Walked(Two):
    """Has layers in layers, one of them three times, a shared parameter, and a buffer."""

    def __init__(self):
        super().__init__()
        layer, other = nn.Linear(4, 4), nn.Linear(4, 4, bias=False)
        other.weight = layer.weight
        inner = nn.Sequential(nn.ReLU(), layer)
        self.inner = nn.Sequential(layer, inner, nn.BatchNorm1d(4), layer, other)
        self.register_buffer("scale", torch.full((4,), 2.0))


def takes_the_device_of_the_first(self, x):
    return self.b(self.a(x.to(next(self.parameters()).device)))


def takes_a_default(self, x):
    return self.b(self.a(x)) * next(iter(()), 2)


def sums_parameters(self, x):
    return self.b(self.a(x)) + sum(p.sum() for p in self.inner.parameters())


def sums_biases(self, x):
    named = self.inner.named_parameters(prefix="net", remove_duplicate=False)
    return self.b(self.a(x)) + sum(p.sum() for name, p in named if name.endswith("bias"))


def sums_its_own(self, x):
    return self.b(self.a(x)) + sum(p.sum() for p in self.inner[0].parameters(recurse=False))


def sums_buffers(self, x):
    return self.b(self.a(x)) + sum(b.sum() for b in self.buffers())


def sums_named_buffers(self, x):
    named = dict(self.named_buffers())
    return self.b(self.a(x)) * named["scale"] + named["inner.2.running_var"]


def runs_children(self, x):
    for child in self.inner.children():
        x = child(x)
    return self.b(self.a(x))


def runs_named_children(self, x):
    for name, child in self.named_children():
        x = child(x) if name == "inner" else x
    return self.b(self.a(x))


def counts_modules(self, x):
    names = [name for name, _ in self.inner.named_modules()]
    layers = list(filter(lambda m: isinstance(m, nn.Linear), self.inner.modules()))
    return self.b(self.a(x)) * len(names) + len(layers)


def takes_by_place(self, x):
    return self.b(self.a(self.inner[-1](self.inner[0](x)) + self.inner[1][0](x)))


def runs_backwards(self, x):
    for layer in reversed(self.inner):
        x = layer(x)
    return self.b(self.a(x))


FORWARDS = [
    *(takes_the_device_of_the_first, takes_a_default, sums_parameters, sums_biases),
    *(sums_its_own, sums_buffers, sums_named_buffers, runs_children, runs_named_children),
    *(counts_modules, takes_by_place, runs_backwards),
]


@pytest.mark.parametrize("forward", FORWARDS, ids=lambda f: f.__name__)
def test_walks(forward):
    make = model(forward, Walked)
    check(make, "graph")
    tied = fxtie.transform(make(), RULE)
    tied(x())
    assert not fxtie.report(tied).missed


ONES = torch.ones(4, 4)

CHANGES = {
    "a layer more": lambda net: net.inner.append(nn.Linear(4, 4)),
    "a parameter more": lambda net: net.inner[1].register_parameter("more", nn.Parameter(ONES)),
    "a buffer more": lambda net: net.register_buffer("more", ONES),
    "a parameter less": lambda net: net.inner[0].register_parameter("bias", None),
    "another parameter": lambda net: setattr(net.inner[0], "weight", nn.Parameter(ONES)),
}


@pytest.mark.filterwarnings("ignore::fxtie.Outdated")
@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("forward", FORWARDS[2:7:2], ids=lambda f: f.__name__)
def test_changes(forward, change):
    check(model(forward, Walked), "graph", change=CHANGES[change])


class Twice(nn.Linear):
    def named_modules(self, memo=None, prefix="", remove_duplicate=True):
        return iter([(prefix, self), (prefix, self)])


class Silent(nn.Linear):
    def named_parameters(self, prefix="", recurse=True, remove_duplicate=True):
        return iter(())


@pytest.mark.parametrize(("kind", "expected"), [(Twice, "kept"), (Silent, "graph")])
@pytest.mark.parametrize("forward", [counts_modules, sums_parameters])
def test_a_walk_of_the_users(kind, expected, forward):
    def make():
        made = model(forward, Walked)()
        made.inner.append(kind(4, 4))
        return made

    check(make, expected)


def test_parameters_of_the_users():
    def forward(self, x):
        return self.b(self.a(x)) + sum(p.sum() for p in self.silent.parameters())

    check(model(forward, silent=lambda: Silent(4, 4)), "kept")


def test_a_reversal_of_the_users():
    class Backwards(nn.ModuleList):
        def __reversed__(self):
            return iter(self)

    def forward(self, x):
        for layer in reversed(self.list):
            x = layer(x)
        return self.b(self.a(x))

    layers = lambda: Backwards([nn.Linear(4, 4), nn.Tanh()])  # noqa: E731
    check(model(forward, list=layers), "kept")


def test_next_of_a_list():
    def forward(self, x):
        return self.b(self.a(x)) * next([1.0])

    check(model(forward), "kept", raises=True)


def test_an_iterator_of_the_users():
    def forward(self, x):
        return self.b(self.a(x)) * next(self.numbers)

    check(model(forward, Two, numbers=lambda: iter([1.0] * 1000)), "kept")
