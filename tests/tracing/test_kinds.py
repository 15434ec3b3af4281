"""What a trace takes of modules and objects: of which kind they are, where, and in which mode."""

import abc

import pytest
import torch
from compared import RULE, check, model, x
from elsewhere import Two
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


class Sequence(Two):
    def __init__(self):
        super().__init__()
        self.sequence = nn.Sequential(nn.Linear(4, 4), nn.Tanh())

    def forward(self, x):
        x = self.sequence(self.b(self.a(x)))
        return x[0] if isinstance(x, tuple) else x


class Several(nn.Module):
    def forward(self, x):
        return x * 2, x


def hook_of_several(model):
    model.sequence[1].register_forward_hook(lambda module, args, output: (output, output))


@pytest.mark.parametrize(
    "change",
    [
        lambda model: model.sequence.append(Several()),
        lambda model: setattr(model.sequence, "1", Several()),
        lambda model: setattr(model.sequence[1], "__class__", Several),
        hook_of_several,
    ],
)
def test_a_sequence_that_gives_something_else(change):
    check(Sequence, "graph", change=change)


class TwoNames(Two):
    def __init__(self):
        super().__init__()
        self.first = nn.Linear(4, 4)
        self.second, self.blocks = self.first, nn.ModuleList([self.first])

    def forward(self, x):
        return self.b(self.a(self.second(self.blocks[0](x))))


@pytest.mark.parametrize("name", ["first", "second"])
def test_a_module_under_several_names(name):
    check(TwoNames, "graph", change=lambda model: setattr(model, name, nn.Linear(4, 4)))


class Frozen(Two):
    """The idiom of frozen batch norms: both modes of the whole give one graph."""

    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(4)

    def train(self, mode=True):
        super().train(mode)
        self.norm.train(mode and not getattr(self, "frozen", False))
        return self

    def forward(self, x):
        x = self.b(self.a(x))
        if self.training and not self.norm.training:
            x = x * 10
        return self.norm(x)


def test_a_mixture_of_modes():
    check(Frozen, "graph", change=lambda model: setattr(model, "frozen", True))


class OwnGetattr(Two):
    def __getattr__(self, name):
        return super().__getattr__("a" if name == "c" else name)

    def forward(self, x):
        return self.b(self.c(x))


class Doubling:
    """A descriptor that comes before what the instance has."""

    def __get__(self, instance, owner):
        return instance.__dict__["factor"] * 2

    def __set__(self, instance, value):
        instance.__dict__["factor"] = value


class Described(Two):
    factor = Doubling()

    def __init__(self):
        super().__init__()
        self.factor = 3

    def forward(self, x):
        return self.b(self.a(x)) * self.factor


@pytest.mark.parametrize("make", [OwnGetattr, Described])
def test_attributes_that_are_computed(make):
    check(make, "kept")


def absent(self, x):
    return self.b(self.a(x)) * getattr(self, "width", 1)


def test_what_a_class_has_not_yet():
    made = model(absent)()
    tied, given = fxtie.transform(made, RULE), x()
    assert not fxtie.report(tied).kept
    before = tied(given)
    type(made).width = 3
    with pytest.warns(fxtie.Outdated, match="width was set"):
        assert torch.allclose(tied(given), before * 3)
