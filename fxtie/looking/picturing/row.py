"""Columns and blocks -> a `Row`: where they stand, in pixels, and the arcs over them.

The squares of the layers hang from one line, at height 0. The area of a square is the number of the
layer's parameters.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from fxtie.looking.grouping import grouped
from fxtie.looking.picturing.folding import Block, Column, Item
from fxtie.looking.picturing.scene import DrawnTie
from fxtie.words import columns, join, list_names

WIDTH = 1160.0  # of a row, unless it has very many columns
_CHARACTER = 6.05  # width of one in a label
_LABEL = 13.0  # height of a label's line
_LONGEST = 22  # characters of a label
_LARGEST = 132.0  # side of a square
_HIGHEST = 190.0  # arc
_LOOP = 14.0  # height of an arc from a column to itself
_ROUNDS = 40  # of halving: the scale is then exact


@dataclass
class Square:
    """A layer on the line."""

    column: Column
    stored: float  # the share of its parameters that the layer still stores
    learned: float  # the share that transforms bring
    x: float = 0.0  # its left edge
    side: float = 0.0  # its width and height
    # Whether its label stands below it as it is read; otherwise it is turned.
    is_label_across: bool = False

    @property
    def middle(self) -> float:
        return self.x + self.side / 2

    @property
    def label(self) -> str:
        """The layer's name, cut if it is long."""
        title = self.column.title
        return title if len(title) <= _LONGEST else f"…{title[1 - _LONGEST :]}"

    @property
    def label_width(self) -> float:
        return columns(self.label) * _CHARACTER


@dataclass
class Bracket:
    """What stands below the columns of a block."""

    block: Block
    left: float  # where it begins and ends
    right: float
    depth: int  # the number of brackets that it is inside of

    @property
    def label(self) -> str:
        """The names of the blocks, inside of another bracket without that one's; empty if long."""
        names = self.block.names
        name = list_names([n.rpartition(".")[2] for n in names] if self.depth else names)
        room = self.right - self.left + 8
        return name if columns(f"{name} {self.times}") * _CHARACTER <= room else ""

    @property
    def times(self) -> str:
        """How often the block repeats: `×11`."""
        return f"×{self.block.times}" if self.block.times > 1 else ""


@dataclass
class Arc:
    """Ties from one column to another, or to itself, by one transform."""

    tail: int  # the numbers of the columns
    head: int
    kind: str  # the transform, without its arguments
    ties: list[DrawnTie] = field(default_factory=list)  # all that it stands for
    start: float = 0.0  # where it begins and ends
    end: float = 0.0
    height: float = 0.0  # of its top

    @property
    def saved(self) -> int:
        return sum(tie.saved for tie in self.ties)


class Row:
    """All that stands on the line or hangs from it."""

    def __init__(self, items: Sequence[Item]) -> None:
        self.squares = [_square(column) for item in items for column in item.columns()]
        self.brackets: list[Bracket] = []
        count = max(1, len(self.squares))
        room = min(max(WIDTH, 8.0 * count), 2 * WIDTH)
        self.gap = min(5.0, max(1.2, 0.2 * room / count))
        self.has_labels = count * _LABEL <= 0.7 * room
        self._least = _LABEL - self.gap if self.has_labels else 1.0
        self.width = self._fit(items, room)
        for alike in grouped(self.squares, lambda square: round(square.side)).values():
            has_room = all(square.label_width <= square.side + 4 for square in alike)
            for square in alike:
                square.is_label_across = has_room
        self.arcs = self._arcs()  # the widest first
        self.height = max((arc.height for arc in self.arcs), default=0.0)

    # -- places -----------------------------------------------------------------------------------

    def _fit(self, items: Sequence[Item], room: float) -> float:
        """Choose the largest scale (pixels per square root of a parameter) that has room."""
        largest = max((_parameters(square.column) for square in self.squares), default=0)
        high = _LARGEST / math.sqrt(largest or 1)
        if (width := self._place(items, high)) <= room:
            return width
        low = 0.0
        for _ in range(_ROUNDS):
            middle = (low + high) / 2
            low, high = (middle, high) if self._place(items, middle) <= room else (low, middle)
        return self._place(items, low)

    def _place(self, items: Sequence[Item], scale: float) -> float:
        """Set all places. Returns the width."""
        self.brackets = []
        return self._place_items(items, scale, iter(self.squares), 0.0, 0) - self.gap

    def _place_items(
        self, items: Sequence[Item], scale: float, squares: Iterator[Square], x: float, depth: int
    ) -> float:
        for item in items:
            if isinstance(item, Column):
                square = next(squares)
                square.side = max(self.gap / 2, scale * math.sqrt(_parameters(item)))
                room = max(square.side, self._least)
                square.x = x + (room - square.side) / 2
                x += room + self.gap
            else:
                margin = self.gap * (0.8 if depth else 1.6)
                left = x + margin
                x = self._place_items(item.items, scale, squares, left, depth + 1)
                self.brackets.append(Bracket(item, left, x - self.gap, depth))
                x += margin
        return x

    # -- arcs -------------------------------------------------------------------------------------

    def _arcs(self) -> list[Arc]:
        number: dict[str, int] = {}  # of the column, by names of layers and of tensors
        for i, square in enumerate(self.squares):
            for layer in square.column.layers:
                number |= dict.fromkeys(
                    [layer.name, *(join(layer.name, a) for a in layer.shapes)], i
                )
        arcs: dict[tuple[int, int, str], Arc] = {}
        for head, square in enumerate(self.squares):
            for tie in square.column.all_ties:
                # A buffer of a module without parameters has no column.
                tails = (number.get(s, number.get(s.rpartition(".")[0])) for s in tie.sources)
                for tail in dict.fromkeys(tail for tail in tails if tail is not None):
                    key = tail, head, tie.kind
                    arcs.setdefault(key, Arc(*key)).ties.append(tie)
        for arc in arcs.values():
            arc.start, arc.end = self.squares[arc.tail].middle, self.squares[arc.head].middle
        ordered = sorted(arcs.values(), key=lambda arc: (-abs(arc.end - arc.start), -arc.saved))
        _raise_arcs(ordered)
        return ordered


def _raise_arcs(arcs: list[Arc]) -> None:
    """Set the heights: a wide arc goes over the narrow ones, one of the same ends below."""
    widest = max((abs(arc.end - arc.start) for arc in arcs), default=0.0)
    ends: dict[tuple[int, int], int] = {}
    for arc in arcs:
        span = abs(arc.end - arc.start)
        nth = ends[arc.tail, arc.head] = ends.get((arc.tail, arc.head), -1) + 1
        top = min(_HIGHEST, widest / 2) * (span / widest) ** 0.75 if span else _LOOP
        arc.height = top * 0.94**nth


def _parameters(column: Column) -> int:
    """What a column has, or would have if nothing were derived."""
    own = sum(math.prod(shape) for shape in column.layers[0].shapes.values())
    return own + sum(tie.learned for tie in column.ties)


def _square(column: Column) -> Square:
    total = _parameters(column) or 1
    derived = {tie.attr for tie in column.ties if not tie.stored}
    stored = sum(n for attr, n in column.layers[0].sizes.items() if attr not in derived)
    return Square(column, stored / total, sum(tie.learned for tie in column.ties) / total)
