"""Diffs as text for a terminal.

In: a `GraphDiff`. Out: aligned tables, coloured on a terminal. Called by `diff.py`; the numbers as
words also by `plan.py`.
"""

from __future__ import annotations

import os
import re
import shutil
import sys
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from tabulate import tabulate

from fxtie.show.layers import LayerDiff, Line

if TYPE_CHECKING:
    from fxtie.diff import GraphDiff

_COLOURS = {"-": "\033[31m", "+": "\033[32m"}
_BOLD, _RESET = "\033[1m", "\033[0m"
_CONTEXT = 2  # unchanged nodes shown around changed ones
_MOST_NAMES = 8


def human_count(n: int) -> str:
    """`25.6M`: a number of parameters, short."""
    for size, suffix in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if n >= size:
            return f"{n / size:.1f}{suffix}"
    return str(n)


def count(n: int, noun: str) -> str:
    """`1 layer`, `2 layers`."""
    return f"{n} {noun}{'' if n == 1 else 's'}"


def diff_text(diff: GraphDiff) -> str:
    """A table per kind of change, and the summary. Layers that change alike share one.

    Coloured if standard output is a terminal, unless the environment says NO_COLOR.
    """
    colour = wants_colour()
    parts = []
    for layers in alike(diff.layers):
        title = layers[0].name or "(root)"
        parts.append(f"{_BOLD}{title}{_RESET}" if colour else title)
        parts[-1] += f"\n{_table(layers[0], colour)}"
        if len(layers) > 1:
            names = list_names([layer.name for layer in layers[1:]])
            parts[-1] += f"\n{names}: the same"
    if diff.unseen:
        names = list_names(diff.unseen)
        parts.append(f"derived in forwards that were kept, so in no graph: {names}")
    return "\n\n".join([*parts, diff.summary()])


def wants_colour() -> bool:
    """Whether what is printed now should be coloured."""
    # https://no-color.org: any value but the empty one.
    return sys.stdout.isatty() and not os.environ.get("NO_COLOR")


# -- tables ---------------------------------------------------------------------------------------


def _table(layer: LayerDiff, colour: bool) -> str:
    rows = [(ln.mark, ln.op, ln.name, ln.target, ln.args) for ln in _with_context(layer.lines)]
    text = tabulate(rows, ("", "opcode", "name", "target", "args"), disable_numparse=True)
    lines = [line.rstrip() for line in text.splitlines()]
    if not colour:
        return "\n".join(lines)
    width = shutil.get_terminal_size((0, 0)).columns
    if width >= 60:  # a long line that wraps spoils the table
        lines = [f"{line[: width - 1]}…" if len(line) > width else line for line in lines]
    head, body = lines[:2], lines[2:]
    body = [f"{_COLOURS[ln[0]]}{ln}{_RESET}" if ln[:1] in _COLOURS else ln for ln in body]
    return "\n".join([*head, *body])


def _with_context(lines: Sequence[Line]) -> Iterator[Line]:
    """The lines that changed and a few around them, with `…` for what is left out."""
    near = {
        j
        for i, line in enumerate(lines)
        if line.mark != " "
        for j in range(i - _CONTEXT, i + _CONTEXT + 1)
    }
    left_out = 0
    for i, line in enumerate([*lines, None]):
        if line is not None and i not in near:
            left_out += 1
            continue
        if left_out:
            yield Line("…", count(left_out, "node"), "", "", "")
            left_out = 0
        if line is not None:
            yield line


# -- folding what repeats -------------------------------------------------------------------------


def alike(layers: Sequence[LayerDiff]) -> list[list[LayerDiff]]:
    """Layers grouped by what changed in them, up to the indices in names."""
    groups: dict[object, list[LayerDiff]] = {}
    for layer in layers:
        groups.setdefault(_change(layer), []).append(layer)
    return list(groups.values())


def _change(layer: LayerDiff) -> object:
    def without_indices(text: str) -> str:
        # Names only: `(1, 1)`, `torch.float16` and the like must not differ.
        return re.sub(r"(?<![\w.'\"])[A-Za-z_]\w*", lambda name: unnumbered(name[0]), text)

    lines = [
        (
            line.mark,
            line.op,
            line.target if line.op == "call_function" else re.sub(r"\d+", "#", line.target),
            without_indices(line.args),
        )
        for line in layer.lines
    ]
    return re.sub(r"\d+", "#", layer.name), tuple(lines)


def unnumbered(name: str) -> str:
    return re.sub(r"\d+", "#", re.sub(r"_\d+$", "", name))


def list_names(names: Sequence[str]) -> str:
    """Names in short: `layers.1 … layers.9, layers.12, layers.14 … layers.20`.

    `a.1 … a.9` stands for all of these, `a.1, a.3 … a.9` for every second one.
    """
    parts: list[str] = []
    i = 0
    while i < len(names):
        step, length = _progression(names[i:])
        if length >= 3:
            first = [names[i]] if step == 1 else [names[i], names[i + 1]]
            parts.append(f"{', '.join(first)} … {names[i + length - 1]}")
            i += length
        else:
            parts.append(names[i])
            i += 1
    if len(parts) > _MOST_NAMES:
        parts = [*parts[: _MOST_NAMES - 1], f"… {parts[-1]}"]
    return ", ".join(parts) + (f" ({len(names)} in all)" if len(parts) >= _MOST_NAMES else "")


def _progression(names: Sequence[str]) -> tuple[int, int]:
    """How far names count up in one of their indices by equal steps: the step, the number."""
    split = [re.split(r"(\d+)", name) for name in names[:2]]
    if len(names) < 2 or len(split[0]) != len(split[1]):
        return 0, 1
    differ = [k for k, (a, b) in enumerate(zip(*split, strict=True)) if a != b]
    if len(differ) != 1 or differ[0] % 2 == 0:
        return 0, 1
    k = differ[0]
    start, step = int(split[0][k]), int(split[1][k]) - int(split[0][k])
    length = 1
    for name in names[1:]:
        expected = [*split[0][:k], str(start + length * step), *split[0][k + 1 :]]
        if step < 1 or name != "".join(expected):
            break
        length += 1
    return step, length
