"""Suggestions as text for a terminal.

In: `Suggestions`. Out: a table, block by block.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterator, Sequence

from fxtie.looking.spelling import pattern_of
from fxtie.looking.suggest import Suggestion, Suggestions
from fxtie.looking.tables import table
from fxtie.shown import text
from fxtie.words import human_count

_LEAST_SHOWN = 0.001  # of all parameters: what saves less gets no row
_MOST_SHOWN = 20


@text.register
def suggestions_text(found: Suggestions) -> str:
    """A table of what saves most, what its marks mean, and the total."""
    return "\n".join([*_table(found), found.summary()])


def _table(found: Suggestions) -> Iterator[str]:
    """The lines of a table, the blocks that save most first."""
    shown = [g for g in found if g.saved >= _LEAST_SHOWN * found.parameters][:_MOST_SHOWN]
    by_block: dict[str, list[Suggestion]] = {}
    for group in shown:
        by_block.setdefault(group.block, []).append(group)
    with_values = all(group.closeness is not None for group in shown)
    rows: list[tuple[str, ...]] = []
    for block, groups in by_block.items():
        if len(by_block) > 1 or block:
            rows.append((block or "other layers",))
        rows += [_row(group, with_values) for group in groups]
    if rows:
        headers = ("layers", "n", "as", "kind", "saved", "distance", "best scale")
        align = ("left", "right", "left", "left", "right", "right", "right")
        n = len(headers) if with_values else len(headers) - 2
        yield table(rows, headers[:n], align[:n])
    if left_out := found[len(shown) :]:
        saved = sum(group.saved for group in left_out)
        yield f"… {len(left_out)} more, which save {human_count(saved)} together"
    if not all(group.chosen for group in shown):
        yield "(layers): left out of the rules, since another row has them"
    if rows and with_values:
        yield "distance: |derived - own| / |own|; (...): at the best scale, 100% if unrelated"


def _span(names: Sequence[str]) -> str:
    """The first and the last name: how many there are stands elsewhere."""
    return names[0] if len(set(names)) == 1 else f"{names[0]} … {names[-1]}"


def _inside(block: str, name: str) -> str:
    """`.mlp.fc1`: a name as seen from its block; empty if it is not in there."""
    return name.removeprefix(block) if block and name.startswith(f"{block}.") else ""


def _row(group: Suggestion, with_values: bool) -> tuple[str, ...]:
    targets = [pattern_of(group.targets)] if group.block else group.targets
    title = _span([_inside(group.block, name) or name for name in targets])
    numbers = itertools.count()
    same_block = re.sub(r"\*", lambda _: f"{{{next(numbers)}}}", group.block)

    def source(name: str) -> str:
        if title.startswith(".") and name.endswith(title):
            return name.removesuffix(title)  # the same layer of another block
        return _inside(same_block, name) or name

    row = (
        title if group.chosen else f"({title})",
        str(len(group.targets)),
        _span([source(s) for rule in group.rules for s in rule.names[:1]]),
        group.kind,
        human_count(group.saved),
    )
    near = group.closeness
    if not with_values or near is None:
        return row
    best = f"{round(near.scale, 2) + 0.0:.2f} ({_percent(near.scaled_distance)})"
    return (*row, _percent(near.distance), best if math.isfinite(near.scale) else "-")


def _percent(ratio: float) -> str:
    return f"{ratio:.1%}" if math.isfinite(ratio) else "-"
