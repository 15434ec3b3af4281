"""Plans, reports, fits, proofs, suggestions and pictures as tables and lines of text."""

from __future__ import annotations

from fxtie.capturing.report import Report
from fxtie.life.fit import Fit
from fxtie.life.verifying.results import Verification
from fxtie.looking.grouping import grouped
from fxtie.looking.picture import TiePicture
from fxtie.looking.suggestions import Suggestions
from fxtie.looking.tables import Table
from fxtie.planning.plan import HEADERS, Plan, row
from fxtie.planning.steps import Step
from fxtie.shown import parts
from fxtie.words import human_bytes, list_tensors, role


@parts.register
def plan_parts(plan: Plan) -> list[Table | str]:
    """The table, what stays stored and why, and the total."""
    tables = [ties_table(plan)] if plan.steps else []
    stored = grouped(plan.stored, plan.stored.__getitem__).items()
    lines = [f"stored: {list_tensors(names)} ({why})" for why, names in stored]
    return [*tables, *lines, plan.summary()]


def ties_table(plan: Plan) -> Table:
    """The ties of a plan. Those that differ in indices only share a row."""

    def key(step: Step) -> tuple[object, ...]:
        _, _, transform, shape, _ = row([step])
        return *map(_role, (step.tie.target, *step.tie.sources)), transform, shape

    rows = [row(steps) for steps in grouped(plan.steps, key).values()]
    return Table(HEADERS, rows, numbers=("saved",))


def _role(tensor: str) -> tuple[str, str]:
    owner, _, attr = tensor.rpartition(".")
    return role(owner), attr


@parts.register
def report_parts(report: Report) -> list[Table | str]:
    """The table, below the totals."""
    saved = f"{human_bytes(report.bytes_saved)} of parameters saved"
    return [report.summary(), saved, Table(*report.table())]


@parts.register
def fit_parts(fit: Fit) -> list[Table | str]:
    """The errors of each target, and which are too large."""
    rows = [(name, f"{fit.before[name]:.2%}", f"{error:.2%}") for name, error in fit.after.items()]
    headers = ("target", "error before", "error after")
    return [Table(headers, rows, numbers=headers[1:]), fit.verdict()]


@parts.register
def verification_parts(verification: Verification) -> list[Table | str]:
    """A row for each call, and what was not compared."""
    rows = []
    for call in verification.calls:
        errors = _short(call.output_error), _short(call.gradient_error)
        compared = ", ".join(call.compared)
        rows.append((call.mode, call.call, compared, str(call.tensors), *errors))
    headers = ("mode", "call", "compared", "tensors", "output error", "gradient error")
    notes = [f"Not compared: {what} {why}." for what, why in verification.skipped.items()]
    return [Table(headers, rows, numbers=headers[3:]), *notes]


def _short(error: float | None) -> str:
    return "-" if error is None else f"{error:.1e}" if error else "0"


@parts.register
def suggestions_parts(found: Suggestions) -> list[Table | str]:
    """A table of what saves most, what its marks mean, and the total."""
    headers, rows = found.table()
    tables = [Table(headers, rows, ("n", "saved", "distance", "best scale"))] if rows else []
    return [*tables, *found.notes(), found.summary()]


@parts.register
def picture_parts(shown: TiePicture) -> list[str]:
    """The totals."""
    return [shown.summary()]
