"""Questions that a value can't answer before the graph runs."""

import contextlib
import operator

import numpy as np
import pytest
from compared import check, model
from torch import fx

from fxtie.tracing.stops import Stop
from fxtie.tracing.traced import Traced, is_traced

QUESTIONS = {
    "grad": lambda self, x: self.b(self.a(x)) * (1 if self.a.weight.grad is None else 2),
    "grad_fn": lambda self, x: self.b(self.a(x)) * (1 if self.a(x).grad_fn is None else 2),
    "str": lambda self, x: self.b(self.a(x)) * (2 if str(x.shape[-1]) in self.heads else 1),
    "prod": lambda self, x: self.b(self.a(x)).reshape(-1, int(np.prod(x.shape[1:]))),
}


@pytest.mark.parametrize("name", QUESTIONS)
def test_questions(name):
    check(model(QUESTIONS[name], heads=lambda: {"4": 2}), "kept")


def caught_length(self, x):
    try:
        n = len(x)
    except TypeError:
        n = 1
    return self.b(self.a(x)) * n


def caught_float(self, x):
    try:
        scale = float(self.a.weight.detach().max())
    except (TypeError, ValueError):
        scale = 1.0
    return self.b(self.a(x)) * scale


def suppressed(self, x):
    n = 1
    with contextlib.suppress(Exception):
        n = int(x.shape[0])
    return self.b(self.a(x)) * n


@pytest.mark.parametrize("forward", [caught_length, caught_float, suppressed])
def test_what_the_code_would_catch(forward):
    check(model(forward), "kept")


@pytest.mark.parametrize(
    "ask", [bool, len, iter, hash, str, repr, int, float, round, operator.index, [1].__getitem__]
)
def test_what_python_asks_stops(ask):
    value = Traced(fx.Graph().placeholder("x"))
    with pytest.raises(Stop, match="a value that is known only when it runs"):
        ask(value)


def test_traced_values_are_found_in_containers():
    value = Traced(fx.Graph().placeholder("x"))
    assert all(map(is_traced, (value, [1, (value,)], {"a": {"b": value}}, slice(0, value))))
    assert not is_traced([1, {"a": ()}], slice(0, 1))
