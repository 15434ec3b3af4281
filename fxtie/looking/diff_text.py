"""A `GraphDiff` -> aligned tables, coloured on a terminal."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator, Sequence

from fxtie.looking.diff import GraphDiff
from fxtie.looking.diff_layers import LayerDiff, Line
from fxtie.looking.tables import Table, terminal_width
from fxtie.shown import text
from fxtie.words import count, list_names, list_tensors, role

_COLOURS = {"-": "\033[31m", "+": "\033[32m"}
_BOLD, _RESET = "\033[1m", "\033[0m"
_NARROWEST = 60  # terminal that lines are cut for
_CONTEXT = 2  # unchanged nodes shown around changed ones


@text.register
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
            shares = any(len(layer.lines) < len(layers[0].lines) for layer in layers[1:])
            same = "the same, sharing tensors of the first" if shares else "the same"
            parts[-1] += f"\n{names}: {same}"
    if diff.unseen:
        names = list_tensors(diff.unseen)
        parts.append(f"derived in forwards that were kept, so in no graph: {names}")
    return "\n\n".join([*parts, diff.summary()])


def wants_colour() -> bool:
    """Whether what is printed now should be coloured."""
    # https://no-color.org: any value but the empty one.
    return sys.stdout.isatty() and not os.environ.get("NO_COLOR")


# -- tables ---------------------------------------------------------------------------------------


def _table(layer: LayerDiff, colour: bool) -> str:
    rows = [(ln.mark, ln.op, ln.name, ln.target, ln.args) for ln in _with_context(layer.lines)]
    whole = Table(("", "opcode", "name", "target", "args"), rows).text()
    lines = [line.rstrip() for line in whole.splitlines()]
    if (width := terminal_width()) >= _NARROWEST:  # lines that wrap would hide the marks
        lines = [f"{line[: width - 1]}…" if len(line) > width else line for line in lines]
    if colour:
        lines[2:] = [
            f"{_COLOURS[ln[0]]}{ln}{_RESET}" if ln[:1] in _COLOURS else ln for ln in lines[2:]
        ]
    return "\n".join(lines)


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
    """Layers grouped by what changed in them, up to the indices in names.

    What several layers have in common stands in the first of them; the others may lack it.
    """
    groups: dict[object, list[tuple[_Change, list[LayerDiff]]]] = {}
    for layer in layers:
        change = _change(layer)
        same_role = groups.setdefault(role(layer.name), [])
        for first, group in same_role:
            if _lacks_only_what_is_shared(change, first):
                group.append(layer)
                break
        else:
            same_role.append((change, [layer]))
    found = [group for same_role in groups.values() for _, group in same_role]
    place = {layer.name: i for i, layer in enumerate(layers)}
    return sorted(found, key=lambda group: place[group[0].name])


_Change = list[tuple[str, ...]]


def _change(layer: LayerDiff) -> _Change:
    def without_indices(text: str) -> str:
        # Names only: `(1, 1)`, `torch.float16` and the like must not differ.
        return re.sub(r"(?<![\w.'\"])[A-Za-z_]\w*", lambda name: _unnumbered(name[0]), text)

    return [
        (
            line.mark,
            line.op,
            line.target if line.op == "call_function" else re.sub(r"\d+", "#", line.target),
            without_indices(line.args),
        )
        for line in layer.lines
    ]


def _lacks_only_what_is_shared(change: _Change, first: _Change) -> bool:
    """Whether `change` is `first` without some of the tensors that are read or derived there."""
    rest = iter(change)
    wanted = next(rest, None)
    for line in first:
        if line == wanted:
            wanted = next(rest, None)
        elif line[0] != "+":
            return False
    return wanted is None


def _unnumbered(name: str) -> str:
    """A node's name without indices: it is a dotted name with underscores, and maybe a counter."""
    return re.sub(r"\d+", "#", re.sub(r"_\d+$", "", name))
