"""Attributes of modules and stored tensors in a trace: read once, and guarded."""

import pytest
import torch
from compared import RULE, check, model, x
from elsewhere import Two
from torch import nn

import fxtie


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


@pytest.mark.parametrize(("make", "expected"), [(OwnGetattr, "graph"), (Described, "kept")])
def test_attributes_that_are_computed(make, expected):
    check(make, expected)


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


def asks_a_tensor_for_its_shape(self, x):
    return self.b(self.a(x)) * self.extra.shape[0]


def asks_whether_it_is_there(self, x):
    return self.b(self.a(x)) * (2 if self.extra is not None else 3)


def asks_whether_it_is_a_tensor(self, x):
    return self.b(self.a(x)) * (2 if isinstance(self.extra, torch.Tensor) else 3)


def longer(model):
    model.extra = nn.Parameter(torch.ones(7))


def gone(model):
    model.extra = None


def asks_for_the_attribute(self, x):
    return self.b(self.a(x)) * (self.extra if hasattr(self, "extra") else 3)


def asks_with_a_default(self, x):
    return self.b(self.a(x)) * getattr(self, "extra", 3)


def deleted(model):
    del model.extra


@pytest.mark.parametrize("kind", [nn.Parameter, torch.clone])
@pytest.mark.parametrize(
    ("forward", "change"),
    [
        (asks_a_tensor_for_its_shape, longer),
        (asks_whether_it_is_there, gone),
        (asks_whether_it_is_a_tensor, gone),
        (asks_for_the_attribute, deleted),
        (asks_with_a_default, deleted),
    ],
)
def test_questions_about_a_stored_tensor(forward, change, kind):
    report = check(model(forward, extra=lambda: kind(torch.ones(4))), "graph", change=change)
    assert not report.missed


def asks_whether_it_has_more(self, x):
    return self.b(self.a(x)) * (2 if hasattr(self, "more") else 3)


@pytest.mark.parametrize(
    "register",
    [
        lambda model: model.register_parameter("more", None),
        lambda model: model.register_buffer("more", torch.ones(4)),
        lambda model: model.register_module("more", nn.Tanh()),
    ],
)
def test_what_is_registered_later(register):
    check(model(asks_whether_it_has_more), "graph", change=register)


def adds_a_tensor(self, x):
    return self.b(self.a(x)) + self.extra


def test_a_plain_tensor_that_is_replaced_stays_in_the_graph():
    tied = fxtie.transform(model(adds_a_tensor, extra=lambda: torch.ones(4))(), RULE)
    before = tied(torch.ones(1, 4))
    tied.extra = torch.zeros(4)
    torch.testing.assert_close(tied(torch.ones(1, 4)), before - 1)
    assert not fxtie.report(tied).missed
