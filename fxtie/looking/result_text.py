"""Reports, fits and proofs as text.

In: a `Report`, a `Fit`, a `Verification`. Out: tables and lines.
"""

from __future__ import annotations

from fxtie.capturing.report import Report
from fxtie.life.fit import Fit
from fxtie.life.verifying.results import Verification
from fxtie.looking.tables import Table
from fxtie.shown import parts
from fxtie.words import human_bytes


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
