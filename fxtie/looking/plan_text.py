"""Plans as text for a terminal.

In: a `Plan`. Out: an aligned table, in which ties that differ in indices only share a row.
"""

from __future__ import annotations

from collections.abc import Iterator

from fxtie.looking.grouping import grouped
from fxtie.looking.tables import table
from fxtie.planning.plan import HEADERS, Plan, row
from fxtie.planning.steps import Step
from fxtie.shown import text
from fxtie.words import list_names, role


@text.register
def plan_text(plan: Plan) -> str:
    """The table, and the total."""

    def key(step: Step) -> tuple[object, ...]:
        _, _, transform, shape, _ = row([step])
        return *map(_role, (step.tie.target, *step.tie.sources)), transform, shape

    groups = grouped(plan.steps, key)
    if not groups:
        return plan.summary()
    align = ("left", "left", "left", "left", "right")
    lines = [table(map(row, groups.values()), HEADERS, align), *_stored(plan), plan.summary()]
    return "\n".join(lines)


def _stored(plan: Plan) -> Iterator[str]:
    """What stays stored inside of modules that matched, and why."""
    whys: dict[str, dict[tuple[str, str], list[str]]] = {}
    for name, why in plan.stored.items():
        whys.setdefault(why, {}).setdefault(_role(name), []).append(name)
    for why, groups in whys.items():
        yield f"stored: {', '.join(map(list_names, groups.values()))} ({why})"


def _role(tensor: str) -> tuple[str, str]:
    owner, _, attr = tensor.rpartition(".")
    return role(owner), attr
