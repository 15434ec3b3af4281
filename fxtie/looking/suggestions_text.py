"""Suggestions as text.

In: `Suggestions`. Out: a table, block by block, what its marks mean, and the total.
"""

from __future__ import annotations

from fxtie.looking.suggestions import Suggestions
from fxtie.looking.tables import Table
from fxtie.shown import parts

_NUMBERS = ("n", "saved", "distance", "best scale")


@parts.register
def suggestions_parts(found: Suggestions) -> list[Table | str]:
    """A table of what saves most, what its marks mean, and the total."""
    headers, rows = found.table()
    tables = [Table(headers, rows, _NUMBERS)] if rows else []
    return [*tables, *found.notes(), found.summary()]
