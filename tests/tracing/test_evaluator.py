"""Functions that the gate runs: what stops, where, and which names they read."""

import pytest
import torch
from compared import RULE, check, model, x
from test_source_code import defined

import fxtie
from fxtie.tracing.evaluator import Evaluator
from fxtie.tracing.stops import Stop

STOPS = {
    "reads a name that only an untaken branch binds": "if n > 9:\n  with n as y: pass\nreturn y",
    "a global that is declared in an untaken branch": "if n > 9:\n  global y\ny = 2\nreturn y",
    "a generator that never yields": "def g():\n  return 1\n  yield\nreturn [*g()]",
    "a name of a class that is private": "return __y",
    "an unbound name": "del n\nreturn n",
    "too many values": "a, b = 1, 2, 3",
    "an argument twice": "return (lambda a: a)(n, **{'a': n})",
    "a check that fails": "if (m := n) == 3: raise ValueError(m)",
    "super outside of a method": "return super().f",
    "an attribute of a function that it makes": "return (lambda: n).__name__",
}


@pytest.mark.parametrize("name", STOPS)
def test_what_is_not_sure_stops(name):
    body = STOPS[name].replace("\n", "\n  ")
    function = defined(f"y = 1\n__y = 1\ndef f(n):\n  {body}\n")
    with pytest.raises(Stop) as caught:
        Evaluator().run(function, (3,), {})
    assert caught.value.file == function.__code__.co_filename and caught.value.line >= 4


@pytest.mark.parametrize("body", ["yield n", "await n"])
def test_generators_stop(body):
    function = defined(f"{'async ' if 'await' in body else ''}def f(n):\n  {body}\n")
    with pytest.raises(Stop, match="runs the generator f"):
        Evaluator().run(function, (3,), {})


def test_what_is_not_reached_does_not_matter():
    function = defined(
        "def f(n):\n  if n > 9:\n    with n: pass\n    n.x = yield_(lambda: 0)\n  return n"
    )
    assert Evaluator().run(function, (3,), {}) == 3


def refuses(self, x):
    if x.dim() != 2:
        raise ValueError(f"{x.dim()} dimensions")
    return self.b(self.a(x))


def test_errors_are_those_of_the_user():
    tied = fxtie.transform(model(refuses)(), RULE)
    assert not fxtie.report(tied).kept
    with pytest.raises(ValueError, match="3 dimensions"):
        tied(torch.randn(1, 3, 4))


FAULTY = {
    "division": lambda self, x: self.b(self.a(x)) * (1 / len(self.items)),
    "maximum": lambda self, x: self.b(self.a(x)) * max(self.items),
    "number": lambda self, x: self.b(self.a(x)) * float("no"),
    "index": lambda self, x: self.b(self.a(x)) * [1, 2][len(self.items) + 2],
}


@pytest.mark.parametrize("name", FAULTY)
def test_code_that_raises_when_it_is_tied(name):
    fill = (lambda model: model.items.append(2)) if name in ("division", "maximum") else None
    check(model(FAULTY[name], items=list), "kept", change=fill, raises=True)


def joins_a_list_to_sizes(self, x):
    values = [1]
    sizes = (values, *x.shape)
    values.append(2)
    return self.b(self.a(x)) * len(sizes[0])


def joins_a_list_of_the_users(self, x):
    sizes = [self.table, *x.shape]
    return self.b(self.a(x)) * len(sizes[0])


class Shaped:
    """A value with a method of that name, and another meaning."""

    def reshape(self, *sizes):
        return len(sizes)


def calls_a_method_of_that_name(self, x, other):
    return self.b(self.a(x)) * other.reshape(*x.shape)


def unpacks_the_rest(self, x):
    *first, last = x.shape
    return self.b(self.a(x)).reshape(*first, last, 1).sum(-1) * len(first)


def unpacks_at_least_three(self, x):
    first, *_, width, depth = x.shape
    return self.b(self.a(x)).reshape(-1, width * depth) * first


CALLS = {
    joins_a_list_to_sizes: ("kept", [lambda: ((x(),), {})]),
    joins_a_list_of_the_users: ("kept", [lambda: ((x(),), {})]),
    calls_a_method_of_that_name: (
        "graph",
        [lambda: ((x(), torch.ones(12)), {}), lambda: ((x(), Shaped()), {})],
    ),
    unpacks_the_rest: (
        "graph",
        [lambda: ((x(),), {}), lambda: ((torch.randn(2, 3, 4),), {}), lambda: ((x()[0],), {})],
    ),
    unpacks_at_least_three: (
        "graph",
        [lambda: ((torch.randn(2, 3, 4),), {}), lambda: ((x(),), {})],
    ),
}


@pytest.mark.parametrize("forward", CALLS)
def test_items_of_which_the_number_is_not_known(forward):
    """Of sizes, lists, and objects that have a method as tensors have."""
    expected, calls = CALLS[forward]
    raises = forward is unpacks_at_least_three
    check(model(forward, table=lambda: [1]), expected, *calls, raises=raises)
