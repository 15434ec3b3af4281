"""Classes, functions and instances that are patched after a model is tied."""

import types

import pytest
import torch
from compared import series
from elsewhere import Two
from torch import nn
from twins import assert_same, seed, twin_of

import fxtie


class Mixin:
    def after(self, x):
        return x + 1


def doubled(x):
    return x * 2


def scaled(x, scale=2, *, shift=1):
    return x * scale + shift


class Base(Two):
    def after(self, x):
        return x


def made():
    """A model whose classes and functions are its own."""

    class Scaling:
        def __init__(self):
            self.scale = 2

        def __call__(self, x):
            return x * self.scale

    def function(f):
        new = types.FunctionType(f.__code__, f.__globals__, f.__name__, f.__defaults__)
        new.__kwdefaults__ = f.__kwdefaults__ and dict(f.__kwdefaults__)
        return new

    class Part(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(4, 4)

        def forward(self, x):
            return self.fc(x).tanh()

    class Net(Base):
        def __init__(self):
            super().__init__()
            self.a, self.b = Part(), Part()
            self.scaling = Scaling()
            self.doubled, self.scaled = function(doubled), function(scaled)

        def forward(self, x):
            x = self.after(self.scaled(self.doubled(self.scaling(self.b(self.a(x))))))
            return x * 2 if self.scaling else x

    return Net()


def called(self, x):
    return nn.Module.__call__(self, x) * 2


def found(self, name):
    value = nn.Module.__getattr__(self, name)
    return nn.Tanh() if name == "fc" else value


PATCHES = {
    "__call__ of a part": lambda model: setattr(model.part_class, "__call__", called),
    "__getattr__ of a part": lambda model: setattr(model.part_class, "__getattr__", found),
    "__call__ of an object": lambda model: setattr(
        type(model.scaling), "__call__", lambda self, x: x - self.scale
    ),
    "truth of an object": lambda model: setattr(
        type(model.scaling), "__bool__", lambda self: False
    ),
    "length of an object": lambda model: setattr(type(model.scaling), "__len__", lambda self: 0),
    "bases": lambda model: setattr(model.net_class, "__bases__", (Mixin, Base)),
    "code": lambda model: setattr(model.doubled, "__code__", (lambda x: x * 3).__code__),
    "defaults": lambda model: setattr(model.scaled, "__defaults__", (5,)),
    "keyword defaults": lambda model: setattr(model.scaled, "__kwdefaults__", {"shift": 5}),
    "a keyword default": lambda model: model.scaled.__kwdefaults__.update(shift=5),
}


@pytest.mark.filterwarnings("ignore::fxtie.Outdated")
@pytest.mark.parametrize("name", PATCHES)
def test_patches(name):
    def found(tie):
        seed(0)
        untied = made()
        plan = fxtie.plan(untied, fxtie.Rule("b.fc", "a.fc", weight=torch.square))
        part, net = type(untied.b), type(untied)
        model = tie(untied, plan)

        def patch(model):
            vars(model).update(part_class=part, net_class=net)
            PATCHES[name](model)

        call = lambda: ((torch.randn(3, 4),), {})  # noqa: E731
        return series(model, [call], patch), model

    expected, _ = found(lambda model, plan: twin_of(model, plan.ties))
    outcomes, tied = found(fxtie.transform)
    assert not fxtie.report(tied).kept and fxtie.report(tied).missed
    for where, reference in expected.items():
        assert_same(outcomes[where], reference, where)
