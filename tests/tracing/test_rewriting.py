"""Rewritten functions do what Python does, or stop."""

import pytest
from elsewhere import Two
from test_source_code import defined

import fxtie
from fxtie.tracing.evaluator import Evaluator
from fxtie.tracing.stops import Stop

FACTOR = 3


def assignments(n):
    items = [n, 2, 3]
    items[0], (a, *rest), b = items[1], (7, 8, 9), n
    items[1] += a
    for items[2], (c, d) in ((4, (5, 6)),):
        b = a = c + d
    items[0] = a = items[1] = a + 1
    x: int = b
    return items, a, rest, b, x


def comparisons(n):
    return [(0 < k < n, k in (1, 2) == True, 0 < (m := k) <= m < 2) for k in range(n)]


def booleans(n):
    return [((k and n) or 5, not k, (k or (last := k)) and 0) for k in range(n)], last


def comprehensions(n):
    pairs = {k: [k, (k, k + 1)] for k in range(n) if k != 1}
    sums = [a + b + c for a, (b, c) in pairs.values() for _ in range(2)]
    return pairs, sums, sorted({k % 2 for k in range(n)}), [*(k for k in range(n) if k)]


def loops(n):
    found = []
    for k in range(n):
        if k == 1:
            continue
        while True:
            k += 1
            if k > 2:
                break
        else:
            found.append("never")
        found.append(k)
    else:
        found.append("end")
    return found


def functions(n, *args, by=2, **others):
    def add(a, b=n, *more, c=FACTOR):
        return a + b + c + len(more) + (add(a - 1) if a else 0)

    others["n"] = n
    apply = lambda f, **given: given.update(n=n) or f(**given)  # noqa: E731
    return add(1), add(2, 3, 4, c=5), apply(lambda n, by: n * by, by=by), args, others


def strings(n):
    return f"{n!r:>{n}} {n=} {'a' * n}", f"{(n, [n])}", 1 if __builtins__ else 2


class Base:
    def scale(self, n):
        return n * 2


class Derived(Base):
    def scale(self, n):
        return super().scale(n) + (n and super().scale(1))


def methods(n):
    return DERIVED.scale(n)


DERIVED = Derived()


@pytest.mark.parametrize(
    "function",
    [
        *(assignments, comparisons, booleans, comprehensions, loops, functions, strings),
        methods,
    ],
)
def test_results_are_those_of_python(function):
    for n in (3, 4):
        assert Evaluator().run(function, (n,), {}) == function(n)


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


class Lines(Two):
    def forward(self, x):
        x = self.a(
            self.b(x)
        )  # fmt: skip
        return x


def test_nodes_note_their_line():
    tied = fxtie.transform(Lines(), fxtie.Rule("b.weight", "a.weight"))
    traces = [node.meta.get("stack_trace", "") for node in tied.graph.nodes]
    first = Lines.forward.__code__.co_firstlineno
    assert any(f"line {first + 2}, in forward" in trace for trace in traces)
    assert Evaluator().running == []
