"""Rows of text -> a table for a terminal, by tabulate, or in HTML."""

from __future__ import annotations

import html
import re
import shutil
import sys
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

_NARROWEST = 12  # column, when a table is made to fit
_BETWEEN = 2  # columns of blanks


@dataclass(frozen=True)
class Table:
    """Rows of text below headers."""

    headers: Sequence[str]  # one for each column
    # Cells. One cell alone has its row for itself, as a heading of those below.
    rows: Sequence[Sequence[str]]
    numbers: Sequence[str] = ()  # the headers of columns that are aligned to the right

    def __str__(self) -> str:
        """As text. On a terminal, wide columns are broken into lines so that the table fits."""
        widths = self._widths(terminal_width())
        if not widths:
            return self.text()
        rows = [[*map(_wrapped, row, widths)] for row in self.rows]
        return Table(self.headers, rows, self.numbers).text()

    def text(self) -> str:
        """As text, however wide it is."""
        from tabulate import tabulate

        rows, align = list(self.rows), self._alignment
        return tabulate(rows, self.headers, colalign=align, disable_numparse=True)

    @property
    def _alignment(self) -> list[str]:
        return ["right" if name in self.numbers else "left" for name in self.headers]

    def html(self) -> str:
        """As HTML, with all text escaped."""
        lines = "".join(
            f"<th{self._align(i)}>{_escape(h)}</th>" for i, h in enumerate(self.headers)
        )
        body = "".join(map(self._row, self.rows))
        return f"<table><thead><tr>{lines}</tr></thead><tbody>{body}</tbody></table>"

    def _row(self, row: Sequence[str]) -> str:
        if len(row) == 1 < len(self.headers):
            return f'<tr><th colspan="{len(self.headers)}" align="left">{_escape(*row)}</th></tr>'
        cells = (f"<td{self._align(i)}>{_escape(cell)}</td>" for i, cell in enumerate(row))
        return f"<tr>{''.join(cells)}</tr>"

    def _align(self, column: int) -> str:
        return f' align="{self._alignment[column]}"'

    def _widths(self, room: int) -> list[int]:
        """How wide each column may be for the table to fit; empty if it does, or for no room."""
        whole = [row for row in self.rows if len(row) == len(self.headers)]
        least = [len(header) + _BETWEEN for header in self.headers]  # as tabulate has it
        widths = [
            max([wide, *(len(line) for cell in cells for line in cell.split("\n"))])
            for wide, *cells in zip(least, *whole, strict=True)
        ]
        room -= _BETWEEN * (len(widths) - 1)
        if room <= 0 or sum(widths) <= room:
            return []
        least = [max(wide, _NARROWEST) for wide in least]
        while sum(widths) > room:
            spare = [wide - narrow for wide, narrow in zip(widths, least, strict=True)]
            if max(spare) <= 0:
                break
            widths[spare.index(max(spare))] -= 1
        return widths


def terminal_width() -> int:
    """The columns of the terminal that is printed to; 0 if it is none."""
    return shutil.get_terminal_size((0, 0)).columns if sys.stdout.isatty() else 0


class _Wrapper(textwrap.TextWrapper):
    """Breaks lines at blanks, and names and paths after their dots and slashes."""

    wordsep_re = re.compile(r"(\s+)|(?<=[./])")


def _wrapped(cell: str, width: int) -> str:
    """A cell in lines of a width."""
    wrapper = _Wrapper(width)
    return "\n".join("\n".join(wrapper.wrap(line)) for line in cell.split("\n"))


def _escape(text: str) -> str:
    return html.escape(text).replace("\n", "<br>")
