"""What is copied of a model, and what both share."""

import collections
import copy
import functools
import types
import weakref

import pytest
import torch
import torch.nn.functional as F
from tied_forms import TwoConvs
from torch import nn
from two_linears import RULE, model_with

import fxtie
from fxtie import Rule


def test_a_source_can_be_replaced_without_the_original():
    """Sources have modules of their own: a new tensor in one reaches its targets, and no other."""
    net = TwoConvs()
    before = net.conv_1.weight
    tied = fxtie.transform(net, Rule("conv_2", "conv_1", torch.square))
    assert type(tied.conv_1) is not nn.Conv2d and isinstance(tied.conv_1, nn.Conv2d)
    tied.conv_1.weight = nn.Parameter(torch.ones_like(before))
    assert net.conv_1.weight is before
    assert torch.equal(tied.conv_2.weight, torch.ones_like(before))


class Wrapper(nn.Module):
    """Has the attributes of what it wraps, as adapters often do."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def __getattr__(self, name):
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("inner"), name)

    def forward(self, x):
        return 2 * self.inner(x)


def test_a_wrapped_source_is_copied_as_a_whole():
    net = nn.Sequential(Wrapper(nn.Linear(4, 4)), nn.Linear(4, 4))
    tied = fxtie.transform(net, Rule("1.weight", "0.inner.weight", torch.sin))
    x = torch.randn(2, 4)
    for other in (copy.deepcopy(tied), copy.copy(tied)):
        assert list(other.state_dict()) == list(tied.state_dict())
        assert torch.equal(other(x), tied(x))


Pair = collections.namedtuple("Pair", "first second")


class Engine:
    """A helper of a model that refers to it."""

    def __init__(self, model):
        self.model = self.itself = model

    def __call__(self, x):
        return self.model.b(x)


@pytest.mark.parametrize(
    "hold",
    [
        lambda model: collections.deque([model.b]),
        lambda model: Pair(model.b, 1),
        lambda model: weakref.ref(model.b),
        lambda model: lambda x: model.b(x),
        lambda model: functools.partial(model.b),
        lambda model: {"inner": [model.b]},
        lambda model: lambda x, b=model.b: b(x),
        lambda model: {model.b: 1},
        Engine,
        lambda model: types.SimpleNamespace(held=[Engine(model)]),
    ],
)
def test_modules_held_in_other_ways(hold):
    def forward(self, x):
        held = self.held
        while not callable(held):
            if isinstance(held, types.SimpleNamespace):
                held = held.held
            held = next(iter(held.get("inner", held))) if isinstance(held, dict) else held[0]
        if isinstance(held, weakref.ref):
            held = held()
        return held(self.a(x))

    model = model_with(forward)
    model.held = hold(model)
    tied, x = fxtie.transform(model, RULE), torch.randn(3, 4)
    # A deep copy, as `check` makes, would not follow a weak reference or a closure.
    expected = F.linear(model.a(x), model.a.weight.square(), model.a.bias)
    torch.testing.assert_close(tied(x), expected, rtol=0, atol=0)


def test_what_an_object_holds_stays_its_own():
    """Only what leads to a module that is copied is copied itself."""
    model = model_with(lambda self, x: self.engine(self.a(x)) * self.config.width)
    model.engine, model.config = Engine(model), types.SimpleNamespace(width=2)
    tied = fxtie.transform(model, RULE)
    assert tied.engine.model is tied and model.engine.model is model
    assert tied.config is model.config


class Scaled(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)
        self.scale = 2

    def forward(self, x):
        y = self.b(self.a(x)) * self.scale
        return F.dropout(y, 0.5, self.training)


@pytest.mark.parametrize("changed", ["copy", "original"])
def test_a_shallow_copy_has_attributes_of_its_own(changed):
    tied, x = fxtie.transform(Scaled().eval(), RULE), torch.randn(3, 4)
    copied, before = copy.copy(tied), tied(x)
    assert type(copied).__mro__[1:] == type(tied).__mro__[1:] and isinstance(copied, Scaled)
    one, other = (copied, tied) if changed == "copy" else (tied, copied)
    one.scale = 6
    with pytest.warns(fxtie.Outdated):
        torch.testing.assert_close(one(x), before * 3)
    torch.testing.assert_close(other(x), before)
    one.train()
    assert not other.training and not fxtie.report(other).missed
