"""A `Scene` -> a row of `Column`s and `Block`s, in which what repeats stands once.

Blocks are submodules that are numbered (`layers.3`). Those that follow one another and are alike,
in their layers and in how these are tied, fold into one, with a count. Two sources are alike if
they are the same tensor, or as far apart as the blocks are. A unit that repeats may be several
blocks: `layers.1` tied to `layers.0`, `layers.3` to `layers.2`, and so on.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from typing import TypeAlias

from fxtie.looking.picturing.scene import DrawnTie, Scene
from fxtie.planning.layers import Layer
from fxtie.words import join, split_index

_LONGEST_UNIT = 16  # blocks


@dataclass
class Column:
    """One layer, or several that are alike."""

    layers: list[Layer]
    ties: list[DrawnTie]  # those of the first one
    all_ties: list[DrawnTie]  # those of all
    title: str  # the first one's name inside of its block

    def columns(self) -> Iterator[Column]:
        yield self


@dataclass
class Block:
    """Columns with a name of their own."""

    names: list[str]  # of the blocks that it stands for
    times: int  # how often the columns repeat
    items: list[Item] = field(default_factory=list)  # columns, and blocks inside

    def columns(self) -> Iterator[Column]:
        for item in self.items:
            yield from item.columns()


Item: TypeAlias = "Column | Block"


@dataclass
class _Node:
    """A submodule: its own layer, if it has parameters, and those inside."""

    name: str
    layer: Layer | None = None
    children: dict[str, _Node] = field(default_factory=dict)

    def layers(self) -> Iterator[Layer]:
        if self.layer is not None:
            yield self.layer
        for child in self.children.values():
            yield from child.layers()


def items_of(scene: Scene, *, folded: bool, opened: Collection[str] = ()) -> list[Item]:
    """The row of a scene.

    If `folded`, blocks that are alike share their columns, but for those that are `opened`.
    """
    folding = _Folding(scene, folded, opened)
    return folding.inside([folding.root], "")


class _Folding:
    def __init__(self, scene: Scene, folded: bool, opened: Collection[str]) -> None:
        self.ties, self.folded, self.opened = scene.ties, folded, opened
        self.root = _Node("")
        for layer in scene.layers:
            node = self.root
            for part in filter(None, layer.name.split(".")):
                node = node.children.setdefault(part, _Node(join(node.name, part)))
            node.layer = layer

    def inside(self, nodes: list[_Node], block: str) -> list[Item]:
        """The items of nodes that are alike, drawn as the first; `block` is what that is in."""
        first = nodes[0]
        items: list[Item] = []
        if first.layer is not None:
            layers = [node.layer for node in nodes if node.layer is not None]
            inside = first.name.removeprefix(block).removeprefix(".")
            title = inside or first.name.rpartition(".")[2] or "(root)"
            ties = [self.ties.get(layer.name, []) for layer in layers]
            items.append(Column(layers, ties[0], [*itertools.chain(*ties)], title))
        children = list(first.children.values())
        start = 0
        while start < len(children):
            unit, times = self._repeated(children[start:])
            parts = [[*node.children.values()][start : start + unit * times] for node in nodes]
            start += unit * times
            names = [node.name for node in parts[0]]
            # Of each block of the unit, all that are alike, in all nodes.
            alike = [[n for some in parts for n in some[i::unit]] for i in range(unit)]
            if unit == 1 and times > 1:
                items.append(Block(names, times, self.inside(alike[0], names[0])))
                continue
            inner: list[Item] = []
            for i, some in enumerate(alike):
                inner += self._one(some, names[i::unit], block)
            items += inner if times == 1 else [Block(names, times, inner)]
        return items

    def _one(self, nodes: list[_Node], names: list[str], block: str) -> list[Item]:
        """Nodes that are alike, as a block if they are numbered and have several columns."""
        if split_index(names[0])[1]:
            items = self.inside(nodes, names[0])
            if sum(1 for item in items for _ in item.columns()) > 1:
                return [Block(names, 1, items)]
        return self.inside(nodes, block)

    # -- what repeats -----------------------------------------------------------------------------

    def _repeated(self, nodes: list[_Node]) -> tuple[int, int]:
        """How many of the first nodes are a unit that repeats, and how often."""
        best = (1, 1)
        is_whole = not self.folded or nodes[0].name in self.opened
        longest = 0 if is_whole else min(_LONGEST_UNIT, len(nodes) // 2)
        for unit in range(1, longest + 1):
            times = 1
            while (times + 1) * unit <= len(nodes) and all(
                self._alike(nodes[i], nodes[times * unit + i]) for i in range(unit)
            ):
                times += 1
            if times > 1 and unit * times > best[0] * best[1]:
                best = unit, times
        return best

    def _alike(self, a: _Node, b: _Node) -> bool:
        """Whether two blocks have the same layers, tied in the same way."""
        (word, index), (other_word, other_index) = split_index(a.name), split_index(b.name)
        if word != other_word or not (index and other_index):
            return False
        ours, theirs = list(a.layers()), list(b.layers())
        return len(ours) == len(theirs) and all(
            x.name.removeprefix(a.name) == y.name.removeprefix(b.name)
            and (x.type, x.shapes) == (y.type, y.shapes)
            and self._tied_alike(x, y, a.name, b.name)
            for x, y in zip(ours, theirs, strict=True)
        )

    def _tied_alike(self, x: Layer, y: Layer, a: str, b: str) -> bool:
        ours, theirs = self.ties.get(x.name, []), self.ties.get(y.name, [])
        return len(ours) == len(theirs) and all(
            (s.attr, s.transform, s.stored) == (t.attr, t.transform, t.stored)
            and len(s.sources) == len(t.sources)
            and all(
                there in (here, _shifted(here, a, b))
                for here, there in zip(s.sources, t.sources, strict=True)
            )
            for s, t in zip(ours, theirs, strict=True)
        )


def _shifted(source: str, a: str, b: str) -> str:
    """A source of block `a`, as far from block `b`."""
    (siblings, at), (_, to) = split_index(a), split_index(b)
    match = re.match(rf"{re.escape(siblings)}(\d+)(?=\.)", source)
    if match is None:
        return source
    return f"{siblings}{int(match[1]) + int(to) - int(at)}{source[match.end() :]}"
