"""Why a trace stops, and where in the user's code it is."""

from __future__ import annotations

import functools
import linecache

UNKNOWN = "a value that is known only when it runs"
"""What reasons call a traced value."""


class Stop(Exception):
    """Ends a trace: a graph can't hold what the code does next.

    Attributes:
        file: the file of the user's innermost statement that led here, if it is known.
        line: its line.
    """

    file: str = ""
    line: int = 0


class Absent(Stop):
    """An attribute is not there, as far as the code knows that computes attributes."""


@functools.lru_cache(maxsize=4096)
def location(file: str, line: int, function: str) -> str:
    """A line of code, as tracebacks show it."""
    source = linecache.getline(file, line).strip()
    return f'File "{file}", line {line}, in {function}\n    {source}'
