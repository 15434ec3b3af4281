"""Suggestions as text for a terminal.

In: `Suggestions`. Out: a table, block by block, what its marks mean, and the total.
"""

from __future__ import annotations

from fxtie.looking.suggestions import Suggestions
from fxtie.looking.tables import table
from fxtie.shown import text

_ALIGN = ("left", "right", "left", "left", "right", "right", "right")


@text.register
def suggestions_text(found: Suggestions) -> str:
    """A table of what saves most, what its marks mean, and the total."""
    headers, rows = found.table()
    lines = [table(rows, headers, _ALIGN[: len(headers)])] if rows else []
    return "\n".join([*lines, *found.notes(), found.summary()])
