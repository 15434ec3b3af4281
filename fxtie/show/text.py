"""Diffs as text for a terminal.

In: a `GraphDiff`. Out: aligned tables, coloured on a terminal. Called by `diff.py`.
"""

from __future__ import annotations

import os
import re
import sys
from typing import TYPE_CHECKING

from tabulate import tabulate

if TYPE_CHECKING:
    from fxtie.diff import GraphDiff, LayerDiff

_COLOURS = {"-": "\033[31m", "+": "\033[32m"}
_RESET = "\033[0m"


def human_count(n: int) -> str:
    """`25.6M`: a number of parameters, short."""
    for size, suffix in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if n >= size:
            return f"{n / size:.1f}{suffix}"
    return str(n)


def diff_text(diff: GraphDiff) -> str:
    """A table per kind of change, and the summary. Layers that change alike share one."""
    if not diff:
        return "no difference"
    parts = []
    for layers in _alike(diff.layers):
        title = layers[0].name or "(root)"
        parts.append(f"{title}\n{_table(layers[0])}")
        if len(layers) > 1:
            parts[-1] += f"\n  the same: {_listed([layer.name for layer in layers[1:]])}"
    return "\n\n".join([*parts, diff.summary()])


def _alike(layers: tuple[LayerDiff, ...]) -> list[list[LayerDiff]]:
    """Layers grouped by what changed in them, numbers and their own names apart."""
    groups: dict[object, list[LayerDiff]] = {}
    for layer in layers:
        key = tuple(
            (line.mark, line.op, re.sub(r"\d+", "", line.target.replace(layer.name, "")))
            for line in layer.lines
        )
        groups.setdefault(key, []).append(layer)
    return list(groups.values())


def _listed(names: list[str], most: int = 6) -> str:
    if len(names) > most:
        return ", ".join(names[: most - 1]) + f", … {names[-1]} ({len(names)} layers)"
    return ", ".join(names)


def _table(layer: LayerDiff) -> str:
    rows = [(line.mark, line.op, line.name, line.target, line.args) for line in layer.lines]
    text = tabulate(rows, ("", "opcode", "name", "target", "args"), disable_numparse=True)
    if not _wants_colour():
        return "\n".join(line.rstrip() for line in text.splitlines())
    coloured = []
    for line in text.splitlines():
        colour = _COLOURS.get(line[:1]) if not line.startswith("--") else None
        coloured.append(f"{colour}{line}{_RESET}" if colour else line)
    return "\n".join(coloured)


def _wants_colour() -> bool:
    # https://no-color.org: any value but the empty one.
    return sys.stdout.isatty() and not os.environ.get("NO_COLOR")
