"""Plans as text for a terminal.

In: a `Plan`. Out: an aligned table, in which ties that differ in indices only share a row.
Called by `plan.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from fxtie.show.tables import table
from fxtie.show.words import list_names, role

if TYPE_CHECKING:
    from fxtie.plan import Plan, Step

HEADERS = ("target", "sources", "transform", "shape", "saved")


def plan_text(plan: Plan) -> str:
    """The table, and the total."""
    groups: dict[tuple[object, ...], list[Step]] = {}
    for step in plan.steps:
        _, _, transform, shape, _ = row([step])
        key = (*map(_role, (step.tie.target, *step.tie.sources)), transform, shape)
        groups.setdefault(key, []).append(step)
    if not groups:
        return plan.summary()
    align = ("left", "left", "left", "left", "right")
    return f"{table(map(row, groups.values()), HEADERS, align)}\n{plan.summary()}"


def _role(tensor: str) -> tuple[str, str]:
    owner, _, attr = tensor.rpartition(".")
    return role(owner), attr


def row(steps: Sequence[Step]) -> tuple[str, ...]:
    """One row for ties that are alike."""
    first = steps[0]
    sources = zip(*(step.tie.sources for step in steps), strict=True)
    return (
        list_names([step.tie.target for step in steps]),
        ", ".join(list_names(list(dict.fromkeys(names))) for names in sources) or "-",
        first.transform_name,
        "x".join(map(str, first.spec.shape)) or "scalar",
        f"{sum(step.saved for step in steps):,}",
    )
