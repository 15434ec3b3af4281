"""What a trace takes of modules and objects: of which kind they are, where, and in which mode."""

import abc
import sys
import types
import typing

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


class Wrapping:
    """An object that has the attributes of another one."""

    wrapped: typing.ClassVar = {}

    def __init__(self, wrapped):
        self.wrapped = wrapped

    def __getattr__(self, name):
        return self.wrapped[name] if name in self.wrapped else object.__getattribute__(self, name)


class Forwarding(Wrapping):
    def __getattribute__(self, name):
        return super().__getattribute__("wrapped" if name == "held" else name)


def reads_what_it_wraps(self, x):
    return self.b(self.a(x)) * self.act.scale * getattr(self.act, "more", 1)


def reads_by_another_name(self, x):
    return self.b(self.a(x)) * self.act.held["scale"]


def another_scale(model):
    model.act.wrapped["scale"] = 3


def more_of_it(model):
    model.act.wrapped["more"] = 3


def has_it_itself(model):
    vars(model.act)["scale"] = 5


def wraps_another(model):
    model.act.wrapped = {"scale": 7}


@pytest.mark.parametrize("change", [another_scale, more_of_it, has_it_itself, wraps_another])
@pytest.mark.parametrize("kind", [Wrapping, Forwarding])
@pytest.mark.parametrize("forward", [reads_what_it_wraps, reads_by_another_name])
def test_attributes_that_code_computes(forward, kind, change):
    if forward is reads_by_another_name and kind is Wrapping:
        forward = reads_what_it_wraps
    check(model(forward, act=lambda: kind({"scale": 2})), "graph", change=change)


def test_code_that_computes_attributes_is_guarded():
    made = model(reads_what_it_wraps, act=lambda: Wrapping({"scale": 2}))()
    made.act.__class__ = type("Own", (Wrapping,), {})
    tied, given = fxtie.transform(made, RULE), x()
    assert not fxtie.report(tied).kept
    before = tied(given)
    type(made.act).__getattr__ = lambda self, name: 3
    with pytest.warns(fxtie.Outdated, match="__getattr__"):
        assert torch.allclose(tied(given), before / 2 * 9)


class Counting:
    """Its attributes depend on how often it was asked."""

    def __init__(self):
        self.asked = 1

    def __getattr__(self, name):
        if name != "scale":
            return object.__getattribute__(self, name)
        self.asked += 1
        return self.asked


def test_code_that_computes_attributes_and_does_more():
    check(model(lambda self, x: self.b(self.a(x)) * self.act.scale, act=Counting), "kept")


class Computing(types.ModuleType):
    """As `torch.backends`: a Python module with attributes that it computes."""

    @property
    def computed(self):
        return self.factor

    def __getattr__(self, name):
        return self.factor


COMPUTING = Computing("computing")
COMPUTING.factor = 2


def reads_a_variable(self, x):
    return self.b(self.a(x)) * COMPUTING.factor


def reads_what_it_computes(self, x):
    return self.b(self.a(x)) * COMPUTING.other


def test_a_variable_of_a_module_that_computes_others(monkeypatch):
    tied, given = fxtie.transform(model(reads_a_variable)(), RULE), x()
    assert not fxtie.report(tied).kept
    before = tied(given)
    monkeypatch.setattr(COMPUTING, "factor", 3)
    with pytest.warns(fxtie.Outdated, match="computing.factor is 3"):
        assert torch.allclose(tied(given), before * 1.5)


def reads_what_hides_a_variable(self, x):
    return self.b(self.a(x)) * COMPUTING.computed


@pytest.mark.parametrize("forward", [reads_what_it_computes, reads_what_hides_a_variable])
def test_what_a_module_computes(forward, monkeypatch):
    monkeypatch.setitem(vars(COMPUTING), "computed", 5)  # which the property hides
    check(model(forward), "kept")


@pytest.mark.parametrize("kind", [Wrapping, Forwarding])
def test_guards_run_no_code_that_computes_attributes(kind):
    tied, given = (
        fxtie.transform(model(reads_what_it_wraps, act=lambda: kind({"scale": 2}))(), RULE),
        x(),
    )
    codes, called = {f.__code__ for f in vars(kind).values() if hasattr(f, "__code__")}, []
    before = sys.getprofile()
    sys.setprofile(lambda frame, event, arg: called.append(frame.f_code in codes))
    try:
        tied(given)
    finally:
        sys.setprofile(before)
    assert called and not any(called) and not fxtie.report(tied).missed
