"""Rows of text -> a table for a terminal, by tabulate, imported when it is needed."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def table(
    rows: Iterable[Sequence[str]], headers: Sequence[str], align: Sequence[str] | None = None
) -> str:
    """A table as tabulate draws it, with the cells as they are."""
    from tabulate import tabulate

    return tabulate(list(rows), headers, colalign=align, disable_numparse=True)
