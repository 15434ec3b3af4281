"""What a call of a module can reach, by whatever holds it."""

import contextvars
import functools
import threading
import types
import weakref

import numpy
import pytest
import torch

from fxtie.capturing.reach import Reach, Reached

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


def by_a_python_module(state):
    module = types.ModuleType("module")
    module.state = state
    return [module]


def by_a_thread(state):
    here = threading.local()
    here.state = state
    return here


def by_a_context(state):
    variable = contextvars.ContextVar("variable")
    variable.set(state)
    return variable


HOLDERS = {
    "what a thread has": by_a_thread,
    "what a context has": by_a_context,
    "a Python module": by_a_python_module,
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
    reach = Reach(Reached())
    number = reach.add(HOLDERS[name](state), torch.ones(1))
    assert [*reach.calls(state)] == [number]
    assert [*reach.calls(other)] == []


def test_a_global_that_a_function_names():
    reach = Reach(Reached())
    number = reach.add(uses_a_global)
    assert [*reach.calls(STATE)] == [number]


def test_what_may_hold_anything_reaches_everything():
    reach = Reach(Reached())
    assert [*reach.calls(State())] == []
    number = reach.add(numpy.ones(1))
    assert [*reach.calls(State())] == [number]


def test_classes_and_globals_are_reached_by_every_call():
    reach = Reach(Reached())
    number = reach.add(None)
    assert [*reach.calls(State)] == [number]
    assert [*reach.calls(globals())] == [number]
    assert [*reach.calls(uses_a_global)] == []


class Referring:
    """An object that holds another one in a way of its own."""

    def __init__(self, held):
        self.held = held


def by_a_weak_reference(state):
    return Referring(weakref.ref(state))


def by_a_cache(state):
    cached = functools.lru_cache(lambda number: state)
    cached(1)
    return cached


@pytest.mark.parametrize("holder", [by_a_weak_reference, by_a_cache])
def test_what_the_garbage_collector_does_not_tell(holder):
    state = State()
    reach = Reach(Reached())
    number = reach.add(holder(state), threading.Lock(), object(), uses_a_global.__code__)
    assert [*reach.calls(state)] == [number]
    assert [*reach.calls(State())] == []


class Registry:
    """A class that knows an object."""

    held = STATE


def test_what_classes_reach_is_found_once():
    shared = Reached()
    first, second = Reach(shared), Reach(shared)
    first.add(Registry())
    known = {*shared.ids}
    assert id(STATE) in known
    number = second.add(Registry())
    assert shared.ids == known and [*second.calls(STATE)] == [number]
    # What shares nothing with others reaches none of it.
    second.add([1])
    assert [*second.calls(STATE)] == [number]


def test_what_is_shared_may_hold_anything():
    class Unknown:
        held = numpy.ones(1)

    shared = Reached()
    reach = Reach(shared)
    assert [*reach.calls(STATE)] == []
    numbers = [reach.add([1]), reach.add(Unknown())]
    assert [*reach.calls(STATE)] == numbers[1:]
