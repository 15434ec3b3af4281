"""Plans as text.

In: a `Plan`. Out: a table, in which ties that differ in indices only share a row, and the totals.
"""

from __future__ import annotations

from collections.abc import Iterator

from fxtie.looking.grouping import grouped
from fxtie.looking.tables import Table
from fxtie.planning.plan import HEADERS, Plan, row
from fxtie.planning.steps import Step
from fxtie.shown import parts
from fxtie.words import list_tensors, role


@parts.register
def plan_parts(plan: Plan) -> list[Table | str]:
    """The table, what stays stored, and the total."""
    tables = [ties_table(plan)] if plan.steps else []
    return [*tables, *_stored(plan), plan.summary()]


def ties_table(plan: Plan) -> Table:
    """The ties of a plan."""

    def key(step: Step) -> tuple[object, ...]:
        _, _, transform, shape, _ = row([step])
        return *map(_role, (step.tie.target, *step.tie.sources)), transform, shape

    rows = [row(steps) for steps in grouped(plan.steps, key).values()]
    return Table(HEADERS, rows, numbers=("saved",))


def _stored(plan: Plan) -> Iterator[str]:
    """What stays stored inside of modules that matched, and why."""
    for why, names in grouped(plan.stored, plan.stored.__getitem__).items():
        yield f"stored: {list_tensors(names)} ({why})"


def _role(tensor: str) -> tuple[str, str]:
    owner, _, attr = tensor.rpartition(".")
    return role(owner), attr
