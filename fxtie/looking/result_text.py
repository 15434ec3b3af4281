"""Reports, fits and proofs as text for a terminal.

In: a `Report`, a `Fit`, a `Verification`. Out: a table.
"""

from __future__ import annotations

from fxtie.capturing.report import Report
from fxtie.life.fit import Fit
from fxtie.life.verifying.results import Verification
from fxtie.looking.tables import table
from fxtie.shown import text
from fxtie.words import human_bytes


@text.register
def report_text(report: Report) -> str:
    """The table, below the totals."""
    headers, rows = report.table()
    saved = f"{human_bytes(report.bytes_saved)} of parameters saved"
    return f"{report.summary()}\n{saved}\n{table(rows, headers)}"


@text.register
def fit_text(fit: Fit) -> str:
    """The errors of each target, and which are too large."""
    rows = [(name, f"{fit.before[name]:.2%}", f"{error:.2%}") for name, error in fit.after.items()]
    headers = ("target", "error before", "error after")
    return f"{table(rows, headers, ('left', 'right', 'right'))}\n{fit.verdict()}"


@text.register
def verification_text(verification: Verification) -> str:
    """A row for each call, and what was not compared."""
    rows = []
    for call in verification.calls:
        errors = _short(call.output_error), _short(call.gradient_error)
        compared = ", ".join(call.compared)
        rows.append((call.mode, call.call, compared, str(call.tensors), *errors))
    headers = ("mode", "call", "compared", "tensors", "output error", "gradient error")
    notes = [f"\nNot compared: {what} {why}." for what, why in verification.skipped.items()]
    return table(rows, headers) + "".join(notes)


def _short(error: float | None) -> str:
    return "-" if error is None else f"{error:.1e}" if error else "0"
