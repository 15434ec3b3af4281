"""Descriptors, frozen classes, and names that a graph brings with it: what an attribute then is."""

import dataclasses

import pytest
from compared import check, model
from elsewhere import Two
from forwards import NotNegative
from test_source_code import defined


class Deletable:
    """A descriptor that comes before what the instance has, for it can be deleted."""

    def __get__(self, instance, owner):
        return 5

    def __delete__(self, instance):
        raise AttributeError


class Checked(Two):
    factor = NotNegative()

    def __init__(self):
        super().__init__()
        self.factor = 0

    def forward(self, x):
        return self.b(self.a(x)) if self.factor else self.a(x)


class CheckedDeleted(Checked):
    factor = Deletable()

    def __init__(self):
        Two.__init__(self)
        vars(self)["factor"] = 0


def sets_the_factor(model):
    vars(model)["factor"] = 1


@pytest.mark.parametrize(("make", "expected"), [(Checked, "graph"), (CheckedDeleted, "kept")])
def test_descriptors(make, expected):
    check(make, expected, change=sets_the_factor)


@dataclasses.dataclass(frozen=True)
class Config:
    width: int = 4


class MoreConfig(Config):
    """Not frozen itself: it may have more attributes."""


def reads_more(self, x):
    return self.b(self.a(x)) * self.config.scale


def another_scale(model):
    model.config.scale = 3


def test_a_subclass_of_what_is_frozen():
    def config():
        made = MoreConfig()
        made.scale = 2
        return made

    check(model(reads_more, config=config), "graph", change=another_scale)


@pytest.mark.parametrize("name", ["meta", "graph", "code"])
def test_names_that_a_graph_module_has(name):
    lines = f"  y = self.b(self.a(x)) * self.scale\n  return y if hasattr(self, '{name}') else -y\n"
    function = defined(f"def f(self, x):\n{lines}")
    check(model(function, scale=2), "kept", change=another_scale_of_its_own)


def another_scale_of_its_own(model):
    model.scale = 3
