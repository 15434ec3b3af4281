"""Boxes and arrows -> their coordinates, by graphviz.

In: `Picture`s. Out: `Drawing`s, with every coordinate.

graphviz gets numbers only: which box feeds which, and how large each is. It gets no text of the
model, so nothing has to be escaped and no font is needed. One `dot` process lays out all pictures
of a page.
"""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from fxtie.errors import FxtieError

_CHARACTER, _LINE = 6.62, 15.0  # pixels, in the monospaced 11px that page.css sets
_MARGIN = 8.0
_LONGEST = 44  # characters of a line
_INCH = 72.0  # of dot's: what is one pixel here


@dataclass(frozen=True)
class Box:
    """One box.

    Attributes:
        key: what arrows call it, unique in its picture.
        lines: its text, of any length; what doesn't fit is cut in the middle.
        kind: how it is drawn: `removed`, `added`, `changed`, `derived`, `stub`, or nothing special.
        tip: text shown while the pointer is over it.
        id: its id in the page, for links.
        href: the id that a click leads to.
    """

    key: str
    lines: tuple[str, ...]
    kind: str = ""
    tip: str = ""
    id: str = ""
    href: str = ""

    @property
    def size(self) -> tuple[float, float]:
        widest = max(sum(map(_columns, line)) for line in self.shown)
        return widest * _CHARACTER + 2 * _MARGIN, len(self.lines) * _LINE + _MARGIN

    @property
    def shown(self) -> list[str]:
        """The lines, cut."""
        return [cut(line, _LONGEST) for line in self.lines]


@dataclass(frozen=True)
class Arrow:
    """From one box to another.

    Attributes:
        tail, head: the keys of the boxes.
        kind: how it is drawn: `tie`, or nothing special.
        ranks: whether the head must stand after the tail.
    """

    tail: str
    head: str
    kind: str = ""
    ranks: bool = True


@dataclass(frozen=True)
class Picture:
    """What is to be drawn. Between two boxes there is one arrow at most in each direction.

    Attributes:
        boxes, arrows: in the order of the forward, which the layout keeps to where it can.
        across: from left to right instead of downwards.
    """

    boxes: tuple[Box, ...]
    arrows: tuple[Arrow, ...] = ()
    across: bool = False


@dataclass(frozen=True)
class Drawing:
    """A picture with coordinates, in pixels from the top left.

    Attributes:
        size: width and height.
        boxes: each with the coordinates of its centre.
        paths: each arrow's kind, and its SVG path.
    """

    size: tuple[float, float]
    boxes: list[tuple[Box, float, float]] = field(default_factory=list)
    paths: list[tuple[str, str]] = field(default_factory=list)


def cut(text: str, longest: int) -> str:
    """`text` without its middle, if it is too long."""
    if len(text) <= longest:
        return text
    head = longest // 2
    return f"{text[:head]}…{text[head + 1 - longest :]}"


def _columns(character: str) -> int:
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1


def draw(pictures: Sequence[Picture]) -> list[Drawing]:
    """Lay out pictures.

    Raises:
        FxtieError: if graphviz is missing, saying how to install it.
    """
    if not pictures:
        return []
    lines = iter(_dot("\n".join(map(_source, pictures))).splitlines())
    return [_placed(picture, lines) for picture in pictures]


def _dot(source: str) -> str:
    install = "Install both: `pip install fxtie[viz]` and `apt install graphviz` (or as told at "
    install += "https://graphviz.org/download). Plain text needs neither: print() it."
    try:
        import graphviz
    except ImportError as error:
        raise FxtieError(f"Pictures need the Python package graphviz. {install}") from error
    try:
        return str(graphviz.pipe_string("dot", "plain", input_string=source, encoding="utf-8"))
    except graphviz.ExecutableNotFound as error:
        raise FxtieError(
            f"Pictures need graphviz's program `dot`, which is not there. {install}"
        ) from error
    except graphviz.CalledProcessError as error:
        raise FxtieError(f"graphviz's `dot` failed: {error.stderr}") from error


def _source(picture: Picture) -> str:
    """A picture in dot's language; boxes are numbered."""
    number = {box.key: i for i, box in enumerate(picture.boxes)}
    lines = [
        "digraph {",
        f"rankdir={'LR' if picture.across else 'TB'}; nodesep=0.2; ranksep=0.3",
        'node [shape=box, fixedsize=true, label=""]; edge [arrowhead=none]',
    ]
    for i, box in enumerate(picture.boxes):
        width, height = box.size
        lines.append(f"{i} [width={width / _INCH:.4f}, height={height / _INCH:.4f}]")
    for arrow in picture.arrows:
        options = "" if arrow.ranks else " [constraint=false]"
        lines.append(f"{number[arrow.tail]} -> {number[arrow.head]}{options}")
    return "\n".join([*lines, "}"])


def _placed(picture: Picture, lines: Iterator[str]) -> Drawing:
    """Read one graph of dot's `plain` output: `graph`, `node`s, `edge`s, `stop`."""
    _, _, width, height = next(lines).split()
    drawing = Drawing((float(width) * _INCH + 2, float(height) * _INCH + 2))

    def point(x: str, y: str) -> tuple[float, float]:
        return float(x) * _INCH + 1, (float(height) - float(y)) * _INCH + 1

    keys = [box.key for box in picture.boxes]
    kinds = {(arrow.tail, arrow.head): arrow.kind for arrow in picture.arrows}
    for line in lines:
        what, *words = line.split()
        if what == "stop":
            break
        if what == "node":
            drawing.boxes.append((picture.boxes[int(words[0])], *point(words[1], words[2])))
        else:
            n = int(words[2])
            numbers = words[3 : 3 + 2 * n]
            points = [point(*pair) for pair in zip(numbers[::2], numbers[1::2], strict=True)]
            ends = keys[int(words[0])], keys[int(words[1])]
            drawing.paths.append((kinds[ends], _path(points)))
    return drawing


def _path(points: list[tuple[float, float]]) -> str:
    """A curve through Bézier points, with an arrow's head at its end."""
    (start, *rest), (x, y) = points, points[-1]
    angle = math.atan2(y - points[-2][1], x - points[-2][0])
    left, right = (
        (x - 7 * math.cos(angle + side), y - 7 * math.sin(angle + side)) for side in (0.4, -0.4)
    )

    def text(*places: tuple[float, float]) -> str:
        return " ".join(f"{x:.1f},{y:.1f}" for x, y in places)

    return f"M{text(start)} C{text(*rest)} M{text(left)} L{text((x, y), right)}"
