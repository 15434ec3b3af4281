"""Rewritten functions do what Python does, or stop."""

import pytest

from fxtie.tracing.evaluator import Evaluator

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
