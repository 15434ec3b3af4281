"""A `Flow` of boxes -> a `Drawing`, with every coordinate.

The way of Sugiyama, Tagawa and Toda, "Methods for Visual Understanding of Hierarchical System
Structures" (IEEE Transactions on Systems, Man, and Cybernetics 11, 1981): boxes get ranks, so that
arrows lead down; an arrow that skips ranks bends in each of them; each rank is ordered by where its
neighbours are, and then moved below them. All arrows from one box share their bends.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from graphlib import TopologicalSorter
from statistics import fmean

from fxtie.looking.grouping import grouped
from fxtie.words import columns, cut

_CHARACTER, _LINE = 6.62, 15.0  # pixels, in the monospaced 11px that page.css sets
_MARGIN = 8.0
_LONGEST = 44  # characters of a line
_ASIDE, _BELOW = 14.0, 26.0  # pixels between two boxes of a rank, and between two ranks
_SWEEPS = 4  # over all ranks, down and up


@dataclass(frozen=True)
class Box:
    """One box."""

    key: str  # what arrows call it, unique in its flow
    lines: tuple[str, ...]  # its text, of any length; what doesn't fit is cut in the middle
    # How it is drawn: `removed`, `added`, `changed`, `derived`, `stub`, or nothing special.
    kind: str = ""
    tip: str = ""  # text shown while the pointer is over it
    href: str = ""  # the id that a click leads to

    @property
    def size(self) -> tuple[float, float]:
        widest = max(map(columns, self.shown))
        return widest * _CHARACTER + 2 * _MARGIN, len(self.lines) * _LINE + _MARGIN

    @property
    def shown(self) -> list[str]:
        """The lines, cut."""
        return [cut(line, _LONGEST) for line in self.lines]


@dataclass(frozen=True)
class Flow:
    """What is to be drawn, downwards."""

    boxes: tuple[Box, ...]  # in the order of the forward, which the layout keeps to where it can
    arrows: tuple[tuple[str, str], ...] = ()  # the keys of two boxes each, in no circle


@dataclass(frozen=True)
class Drawing:
    """A flow with coordinates, in pixels from the top left."""

    size: tuple[float, float]  # width and height
    boxes: Sequence[tuple[Box, float, float]]  # each with the coordinates of its centre
    paths: Sequence[str]  # SVG paths of the arrows, in parts


@dataclass(eq=False)
class _Slot:
    """A place in a rank: of a box, or a bend of what passes by."""

    rank: int
    box: Box | None = None
    above: list[_Slot] = field(default_factory=list)
    below: list[_Slot] = field(default_factory=list)
    x: float = 0.0
    top: float = 0.0
    bottom: float = 0.0

    @property
    def width(self) -> float:
        return self.box.size[0] if self.box else 0.0


def draw(flow: Flow) -> Drawing:
    """Lay out a flow."""
    ranks = _ranked(flow)
    for rank in ranks:
        _number(rank)
    for downwards in (True, False) * _SWEEPS:
        for rank in ranks if downwards else reversed(ranks):
            _order(rank, downwards)
    for rank in ranks:
        _set_apart(rank, [0.0] * len(rank))
    for downwards in (True, False) * _SWEEPS:
        for rank in ranks if downwards else reversed(ranks):
            _align(rank, downwards)
    slots = [slot for rank in ranks for slot in rank]
    left = min((slot.x - slot.width / 2 for slot in slots), default=0.0) - 1
    for slot in slots:
        slot.x -= left
    height = _stack(ranks)
    width = max((slot.x + slot.width / 2 for slot in slots), default=0.0) + 1
    boxes = [(slot.box, slot.x, (slot.top + slot.bottom) / 2) for slot in slots if slot.box]
    return Drawing((width, height), boxes, [_path(a, b) for a in slots for b in a.below])


# -- ranks ----------------------------------------------------------------------------------------


def _ranked(flow: Flow) -> list[list[_Slot]]:
    """Slots by rank, linked with those of the next rank."""
    slots = {box.key: _Slot(rank, box) for box, rank in zip(flow.boxes, _levels(flow), strict=True)}
    ranks: list[list[_Slot]] = [
        [] for _ in range(1 + max((s.rank for s in slots.values()), default=0))
    ]
    read_by = grouped(flow.arrows, lambda arrow: arrow[0])
    for slot in slots.values():
        ranks[slot.rank].append(slot)
    for key, arrows in read_by.items():
        last, targets = slots[key], [slots[head] for _, head in arrows]
        for rank in range(last.rank, max(head.rank for head in targets)):
            for head in targets:
                if head.rank == rank + 1:
                    _link(last, head)
            if any(head.rank > rank + 1 for head in targets):
                bend = _Slot(rank + 1)
                ranks[rank + 1].append(bend)
                _link(last, bend)
                last = bend
    return ranks


def _levels(flow: Flow) -> list[int]:
    """The rank of each box: below all that it reads; what reads nothing, close to its readers."""
    reads: dict[str, list[str]] = {box.key: [] for box in flow.boxes}
    readers: dict[str, list[str]] = {box.key: [] for box in flow.boxes}
    for tail, head in flow.arrows:
        reads[head].append(tail)
        readers[tail].append(head)
    level: dict[str, int] = {}
    for key in TopologicalSorter(reads).static_order():
        level[key] = max((level[tail] + 1 for tail in reads[key]), default=0)
    for key, tails in reads.items():
        if not tails and readers[key]:
            level[key] = min(level[head] for head in readers[key]) - 1
    return [level[box.key] for box in flow.boxes]


def _link(above: _Slot, below: _Slot) -> None:
    above.below.append(below)
    below.above.append(above)


def _order(rank: list[_Slot], downwards: bool) -> None:
    """Sort a rank by the places of its neighbours, which `x` holds until all are sorted."""

    def middle(slot: _Slot) -> float:
        near = slot.above if downwards else slot.below
        return fmean(other.x for other in near) if near else slot.x

    rank.sort(key=middle)
    _number(rank)


def _number(rank: list[_Slot]) -> None:
    for place, slot in enumerate(rank):
        slot.x = place


# -- coordinates ----------------------------------------------------------------------------------


def _align(rank: list[_Slot], downwards: bool) -> None:
    """Move a rank to below its neighbours, or above them."""
    near = [slot.above if downwards else slot.below for slot in rank]
    wanted = [
        fmean(other.x for other in others) if others else slot.x
        for slot, others in zip(rank, near, strict=True)
    ]
    _set_apart(rank, wanted)


def _set_apart(rank: list[_Slot], wanted: list[float]) -> None:
    """Set `x` as close as can be to what is wanted, by least squares, with room between slots.

    With what must lie between them taken off, places may not decrease: neighbours that do are
    pooled at their mean.
    """
    offsets = [0.0]
    for a, b in itertools.pairwise(rank):
        offsets.append(offsets[-1] + (a.width + b.width) / 2 + _ASIDE)
    pools: list[tuple[float, int]] = []  # mean place, number
    for place, offset in zip(wanted, offsets, strict=False):
        mean, n = place - offset, 1
        while pools and pools[-1][0] > mean:
            other, m = pools.pop()
            mean, n = (other * m + mean * n) / (m + n), m + n
        pools.append((mean, n))
    means = (mean for mean, n in pools for _ in range(n))
    for slot, mean, offset in zip(rank, means, offsets, strict=False):
        slot.x = mean + offset


def _stack(ranks: list[list[_Slot]]) -> float:
    """Set the heights of all ranks. Returns the whole."""
    y = 1.0
    for rank in ranks:
        tallest = max((slot.box.size[1] for slot in rank if slot.box), default=0.0)
        for slot in rank:
            height = slot.box.size[1] if slot.box else tallest
            slot.top = y + (tallest - height) / 2
            slot.bottom = slot.top + height
        y += tallest + _BELOW
    return y - _BELOW + 1


def _path(above: _Slot, below: _Slot) -> str:
    """From the bottom of one to the top of the other; with a head, or through a bend."""
    middle = (above.bottom + below.top) / 2
    x, y = below.x, below.top
    end = f"M{x - 3:.1f},{y - 6:.1f} L{x:.1f},{y:.1f} L{x + 3:.1f},{y - 6:.1f}"
    through = f"L{x:.1f},{below.bottom:.1f}"
    return (
        f"M{above.x:.1f},{above.bottom:.1f} C{above.x:.1f},{middle:.1f} {x:.1f},{middle:.1f} "
        f"{x:.1f},{y:.1f} {end if below.box else through}"
    )
