"""Whether a forward that needs a row of the gate's tables is a graph."""

import einops  # noqa: F401  # programs may import only what is imported
from forwards import RULES, Program

import fxtie


def root_is_kept(*statements):
    """The reasons why the root of a program is no graph; none if it is."""
    tied = fxtie.transform(Program([*statements, "x = self.b(x)"]).make(), RULES)
    return [kept.reason for kept in fxtie.report(tied).kept if not kept.name]


def title(row):
    owner, name = row if isinstance(row, tuple) else (None, getattr(row, "__name__", str(row)))
    return f"{owner.__name__}.{name}" if owner else name
