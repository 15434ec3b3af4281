"""A `Scene` -> SVG that needs no script and no network."""

from __future__ import annotations

import math
import re
import xml.etree.ElementTree as ET
from collections.abc import Callable
from typing import Any

from fxtie.looking.picturing.folding import Block, Item, items_of
from fxtie.looking.picturing.legend import Entry, Legend
from fxtie.looking.picturing.row import Arc, Bracket, Row, Square
from fxtie.looking.picturing.scene import SHARED, Scene
from fxtie.words import columns, count, human_count, list_names

_MOST_UNFOLDED = 28  # columns: so few are never folded
MOST_COLUMNS = 2000  # more are always folded where they can be
_MARGIN = 28.0
_HEAD = 98.0  # height
_LEVEL = 26.0  # height of a bracket and its name
_LEVELS = 3  # of brackets
_BIG, _TEXT = 27.5, 6.7  # widths of a character in the headline, and below it and in the legend
_LINES, _LINE = 4, 18.0  # of the legend: how many in a column, and how high
_MOST_TOLD = 6  # ties in the tip of one arc


def tie_svg(scene: Scene, style: str, *, folded: bool = True) -> str:
    """The picture, with a style sheet inside. If `folded`, blocks that are alike are drawn once."""
    return TieDrawing(scene, row_items(scene, folded=folded)).svg(style)


def tie_height(scene: Scene) -> int:
    """How high the picture is, folded, in pixels."""
    return math.ceil(TieDrawing(scene, row_items(scene, folded=True)).height)


def row_items(scene: Scene, *, folded: bool) -> list[Item]:
    """What stands in the row; a few columns are never folded, very many always."""
    whole = items_of(scene, folded=False)
    count = sum(1 for item in whole for _ in item.columns())
    folded = count > (_MOST_UNFOLDED if folded else MOST_COLUMNS)
    return items_of(scene, folded=True) if folded else whole


class TieDrawing:
    """A scene with what stands in its row.

    `leads` gives, for the name of a layer or a block, the number of the picture that a click on it
    leads to, and what that does; None where it does nothing.
    """

    def __init__(
        self,
        scene: Scene,
        items: list[Item],
        leads: Callable[[str], tuple[int, str] | None] = lambda name: None,
    ) -> None:
        self.scene, self.legend, self.row, self.leads = scene, Legend(scene), Row(items), leads
        self.line = _HEAD + self.row.height + 14  # that the squares hang from
        lengths = [square.side + self._label_room(square) for square in self.row.squares]
        self.below = self.line + max(lengths, default=0.0) + 10
        self.levels = min(_LEVELS, max((b.depth + 1 for b in self.row.brackets), default=0))
        self.height = self.below + _LEVEL * self.levels + _MARGIN / 2
        self.headline = tuple(map(human_count, scene.parameters))
        ties = [tie for ties in scene.ties.values() for tie in ties if tie.kind != SHARED]
        before, after = scene.parameters
        share = f", {after / before:.1%} of the parameters stored" if before else ""
        self.subtitle = f"{count(len(ties), 'tie')}{share}, layers {scene.order}"
        entries = self.legend.entries
        self.keys = [entries[i : i + _LINES] for i in range(0, len(entries), _LINES)]
        told = max(_BIG * len(" → ".join(self.headline)), _TEXT * len(self.subtitle))
        head = told + sum(map(_key_width, self.keys))
        self.width = 2 * _MARGIN + max(self.row.width, head)
        self.left = (self.width - self.row.width) / 2

    def svg(self, style: str = "") -> str:
        """The picture. Without a style sheet it is for a page that has one."""
        width, height = _number(self.width), _number(self.height)
        size = {"width": width, "height": height, "viewBox": f"0 0 {width} {height}"}
        root = ET.Element("svg", {**size, "class": "ties", "role": "img"})
        _add(root, "title", self.scene.summary)
        if style:
            root.set("xmlns", "http://www.w3.org/2000/svg")  # a page knows
            _add(root, "style", style)
        _rect(root, "ground", 0, 0, self.width, self.height, 10)
        self.head(root)
        for bracket in self.row.brackets:
            self.stack(root, bracket)
        for arc in self.row.arcs:
            self.arc(root, arc)
        for i, square in enumerate(self.row.squares):
            self.square(root, i, square)
        for bracket in self.row.brackets:
            self.bracket(root, bracket)
        return ET.tostring(root, encoding="unicode")

    # -- above the arcs ---------------------------------------------------------------------------

    def head(self, root: ET.Element) -> None:
        before, after = self.headline
        big = _add(root, "text", style="big", x=_MARGIN, y=52.0)
        _add(big, "tspan", before, style="ink")
        _add(big, "tspan", " → ", style="faint")
        _add(big, "tspan", after, style="ink")
        _add(root, "text", self.subtitle, style="faint", x=_MARGIN, y=76.0)
        x = self.width - _MARGIN - sum(map(_key_width, self.keys))
        for column in self.keys:
            for i, entry in enumerate(column):
                _add_key(root, entry, x + 24, 34 + _LINE * i)
            x += _key_width(column)

    # -- on the line ------------------------------------------------------------------------------

    def arc(self, root: ET.Element, arc: Arc) -> None:
        ends: dict[str, Any] = {"data-tail": str(arc.tail), "data-head": str(arc.head)}
        group = _add(root, "g", style=f"tie {self.legend.styles[arc.kind]}", **ends)
        _add(group, "title", _arc_tip(arc))
        start, end, y = self.left + arc.start, self.left + arc.end, self.line - 3
        if arc.tail == arc.head:
            start, end = start - 4, end + 4
            top = _points((start - 9, y - 1.4 * arc.height), (end + 9, y - 1.4 * arc.height))
            path = f"M{_points((start, y))} C{top} {_points((end, y))}"
        else:
            radii = _points((abs(end - start) / 2, arc.height))
            path = f"M{_points((start, y))} A{radii} 0 0 {int(end > start)} {_points((end, y))}"
        # Many arcs are thin, so that they can be told apart.
        weight = min(1.6, max(0.4, 16 / math.sqrt(len(self.row.arcs))))
        _add(group, "path", style="arc", d=path, stroke_width=weight)
        _add(group, "path", style="near", d=path)  # not seen, but wide enough to point at
        size = 1.6 + 2 * weight
        tip = _points((end, y + 1), (end - size / 2, y - size), (end + size / 2, y - size))
        _add(group, "polygon", style="tip", points=tip)

    def square(self, root: ET.Element, i: int, square: Square) -> None:
        links = {"data-layer": str(i), **self.link(square.column.layers[0].name)}
        group = _add(root, "g", style="layer", **links)
        _add(group, "title", _square_tip(square))
        x, side, rounded = self.left + square.x, square.side, min(3.0, square.side / 4)
        ties = square.column.ties
        if ties:
            main = max(ties, key=lambda tie: (not tie.stored, tie.saved))
            style = self.legend.styles[main.kind]
            edge = min(1.5, side / 4)  # drawn half outside
            frame = (x + edge / 2, self.line + edge / 2, side - edge, side - edge, rounded)
            _rect(group, f"derived {style}", *frame, stroke_width=edge)
            bottom = self.line + side
            for share, name in ((square.stored, "stored"), (square.learned, f"{style} learned")):
                height = side * share
                bottom -= height
                if share:
                    _rect(group, name, x, bottom, side, height, min(rounded, height / 2))
        else:
            _rect(group, "stored", x, self.line, side, side, rounded)
        if self.row.has_labels:
            self.label(group, square)

    def label(self, group: ET.Element, square: Square) -> None:
        x, y = self.left + square.middle, self.line + square.side
        if square.is_label_across:
            _add(group, "text", square.label, style="label faint", x=x, y=y + 16, **_CENTRED)
        else:
            turned = f"translate({_number(x - 3.2)} {_number(y + 7)}) rotate(90)"
            _add(group, "text", square.label, style="label faint", transform=turned)

    def _label_room(self, square: Square) -> float:
        if not self.row.has_labels:
            return 0.0
        return 18.0 if square.is_label_across else square.label_width + 8

    def link(self, name: str) -> dict[str, Any]:
        """Where a click on a layer or a block leads."""
        leads = self.leads(name)
        return {} if leads is None else {"data-view": str(leads[0])}

    def names(self, block: Block) -> str:
        """The names of a block, and what a click on it does."""
        leads = self.leads(block.names[0])
        click = "" if leads is None else f"\nclick to {leads[1]}"
        return list_names(block.names) + click

    # -- below it ---------------------------------------------------------------------------------

    def stack(self, root: ET.Element, bracket: Bracket) -> None:
        """Sheets behind the columns of a block that repeats."""
        if bracket.block.times == 1:
            return
        group = _add(root, "g", style="block", **self.link(bracket.block.names[0]))
        _add(group, "title", self.names(bracket.block))
        width, height = bracket.right - bracket.left + 8, self.below - self.line + 6
        for offset in (6, 3, 0):
            x, y = self.left + bracket.left - 4 + offset, self.line - 8 + offset
            _rect(group, "panel", x, y, width, height, 6)

    def bracket(self, root: ET.Element, bracket: Bracket) -> None:
        if bracket.depth >= self.levels:
            return
        left, right = self.left + bracket.left, self.left + bracket.right
        y = self.below + 4 + _LEVEL * (self.levels - 1 - bracket.depth)
        group = _add(root, "g", style="block", **self.link(bracket.block.names[0]))
        _add(group, "title", self.names(bracket.block))
        path = f"M{_points((left, y))} v4 H{_number(right)} v-4"
        _add(group, "path", style="bracket", d=path)
        text = _add(group, "text", style="label", x=(left + right) / 2, y=y + 17, **_CENTRED)
        _add(text, "tspan", f"{bracket.label} ".lstrip(), style="faint")
        _add(text, "tspan", bracket.times, style="times ink")


# -- texts shown while the pointer is over something -----------------------------------------------


def _arc_tip(arc: Arc) -> str:
    told = [f"{tie.target} = {tie.formula}" for tie in arc.ties[:_MOST_TOLD]]
    if (rest := len(arc.ties) - len(told)) > 0:
        told.append(f"… and {rest} more")
    return "\n".join([*told, f"saves {arc.saved:,} parameters"])


def _square_tip(square: Square) -> str:
    column, layer = square.column, square.column.layers[0]
    ties = {tie.attr: tie for tie in column.ties}
    names = list_names([one.name or "(root)" for one in column.layers])
    told = [f"{names}: {layer.type}"]
    for attr, shape in layer.shapes.items():
        derived = f" = {ties[attr].formula}" if attr in ties else ""
        told.append(f"{attr} {'x'.join(map(str, shape)) or 'scalar'}{derived}")
    if saved := sum(tie.saved for tie in column.all_ties):
        told.append(f"saves {saved:,} parameters")
    return "\n".join(told)


# -- elements --------------------------------------------------------------------------------------

_CENTRED: dict[str, Any] = {"text_anchor": "middle"}


_NOT_IN_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def _key_width(column: list[Entry]) -> float:
    return _TEXT * max(columns(entry.label) for entry in column) + 46


def _add_key(root: ET.Element, entry: Entry, x: float, y: float) -> None:
    if entry.is_arc:
        path = f"M{_points((x - 3, y))} a8 8 0 0 1 16 0"
        group = _add(root, "g", style=entry.style)
        _add(group, "path", style="arc", d=path, stroke_width=1.6)
    else:
        _rect(root, f"key {entry.style}", x, y - 9, 10, 10, 2)
    _add(root, "text", entry.label, style="ink", x=x + 20, y=y)


def _rect(
    parent: ET.Element,
    style: str,
    x: float,
    y: float,
    width: float,
    height: float,
    rounded: float,
    **attributes: Any,
) -> None:
    place: dict[str, Any] = {"x": x, "y": y, "width": width, "height": height, "rx": rounded}
    _add(parent, "rect", "", style, **place, **attributes)


def _add(
    parent: ET.Element, tag: str, text: str = "", style: str = "", **attributes: Any
) -> ET.Element:
    """Add an element. `style` is its class; numbers become text."""
    element = ET.SubElement(parent, tag, {"class": style} if style else {})
    element.text = _NOT_IN_XML.sub("\ufffd", text) or None
    for name, value in attributes.items():
        element.set(name.replace("_", "-"), value if isinstance(value, str) else _number(value))
    return element


def _points(*points: tuple[float, float]) -> str:
    return " ".join(f"{_number(x)},{_number(y)}" for x, y in points)


def _number(value: float) -> str:
    return f"{value:.1f}".removesuffix(".0")
