"""What a trace takes of modules and objects: of which kind they are, where, and in which mode."""

import abc

import pytest
import torch
from compared import RULE, check, model, x
from torch import nn

import fxtie


def asks_the_class(self, x):
    x = self.b(self.a(x))
    return self.act(x if isinstance(self.act, nn.Identity) else x * 2)


def asks_the_type(self, x):
    x = self.b(self.a(x))
    return self.act(x * 2 if type(self.act) is nn.ReLU else x)


def asks_for_truth(self, x):
    return self.b(self.a(x)) * (2 if self.act else 3)


def asks_for_identity(self, x):
    return self.b(self.a(x)) * (2 if self.act is self.other else 3)


def becomes_identity(model):
    model.act = nn.Identity()


def becomes_empty(model):
    model.act = nn.Sequential()


def becomes_the_other(model):
    model.act = model.other


@pytest.mark.parametrize(
    ("forward", "change"),
    [
        (asks_the_class, becomes_identity),
        (asks_the_type, becomes_identity),
        (asks_for_truth, becomes_empty),
        (asks_for_identity, becomes_the_other),
    ],
)
def test_questions_about_a_module(forward, change):
    check(model(forward, act=nn.ReLU, other=nn.Tanh), "graph", change=change)


class Becoming(nn.Module):
    scale = 2

    def forward(self, x):
        return x


class Become(Becoming):
    scale = 3


class Registry(abc.ABC):  # noqa: B024
    pass


class Thing:
    scale = 2


class OtherThing(Thing):
    scale = 3


def asks_a_registry(self, x):
    return self.b(self.a(x)) * (2 if isinstance(self.act, Registry) else 3)


def reads_from_the_class(self, x):
    return self.b(self.a(x)) * self.act.scale


def asks_for_the_type(self, x):
    return self.b(self.a(x)) * (2 if type(self.act) is Become else 3)


def changes_its_class(model):
    model.act.__class__ = Become if isinstance(model.act, nn.Module) else OtherThing


@pytest.mark.parametrize(
    ("forward", "act"),
    [
        (reads_from_the_class, Becoming),
        (reads_from_the_class, Thing),
        (asks_for_the_type, Becoming),
        (asks_a_registry, Becoming),
    ],
)
def test_an_object_that_changes_its_class(forward, act):
    change = changes_its_class
    if forward is asks_a_registry:
        change = lambda model: Registry.register(Becoming)  # noqa: E731
        calls = fxtie.transform(model(forward, act=act)(), RULE), x()
        before = calls[0](calls[1])
        change(None)
        assert torch.allclose(calls[0](calls[1]), before / 3 * 2)
        return
    check(model(forward, act=act), "graph", change=change)
