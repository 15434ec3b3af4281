"""What a call of a module can reach, by whatever holds it."""

import functools
import types

import pytest
import torch

from fxtie.capturing.reach import Reach

STATE = types.SimpleNamespace()


def uses_a_global():
    return STATE


def by_closure(state):
    return lambda: state


def by_default(state):
    return lambda given=state: given


class Holder:
    def __init__(self, state):
        self.state = state

    def method(self):
        """Bound to what holds the state."""


def by_a_class(state):
    return type("Class", (), {"state": state})


def by_a_property(state):
    return type("Class", (), {"state": property(lambda self: state)})()


def by_a_static_method(state):
    return type("Class", (), {"state": staticmethod(lambda: state)})()


HOLDERS = {
    "a dict": lambda state: {"state": state},
    "a key": lambda state: {state: 1},
    "a list in a tuple": lambda state: ([state],),
    "an object": Holder,
    "a bound method": lambda state: Holder(state).method,
    "a partial": lambda state: functools.partial(print, state),
    "a keyword of a partial": lambda state: functools.partial(print, end=state),
    "a closure": by_closure,
    "a default argument": by_default,
    "a class": by_a_class,
    "a property": by_a_property,
    "a static method": by_a_static_method,
}


class State:
    pass


@pytest.mark.parametrize("name", HOLDERS)
def test_what_is_held_is_reached(name):
    state, other = State(), State()
    reach = Reach()
    number = reach.add(HOLDERS[name](state), torch.ones(1))
    assert [*reach.calls(state)] == [number]
    assert [*reach.calls(other)] == []


def test_a_global_that_a_function_names():
    reach = Reach()
    number = reach.add(uses_a_global)
    assert [*reach.calls(STATE)] == [number]


def test_what_may_hold_anything_reaches_everything():
    reach = Reach()
    assert [*reach.calls(State())] == []
    number = reach.add(object())
    assert [*reach.calls(State())] == [number]


def test_classes_and_globals_are_reached_by_every_call():
    reach = Reach()
    number = reach.add(None)
    assert [*reach.calls(State)] == [number]
    assert [*reach.calls(globals())] == [number]
    assert [*reach.calls(uses_a_global)] == []
