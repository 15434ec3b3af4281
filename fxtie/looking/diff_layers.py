"""The nodes of two matched graphs -> what changed in each layer, as lines."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace

from fxtie.looking.grouping import grouped
from fxtie.looking.nodes import NodeInfo


@dataclass(frozen=True)
class Line:
    """One node in a diff.

    Attributes:
        mark: `-` removed, `+` added, a blank for context. A changed node has one line of each.
        op: the node's opcode.
        name: its name.
        target: what it calls or reads.
        args: its arguments, as text.
    """

    mark: str
    op: str
    name: str
    target: str
    args: str


@dataclass(frozen=True)
class LayerDiff:
    """What changed in one layer.

    Attributes:
        name: the layer's dotted name, empty for the root.
        lines: its nodes in order, unchanged ones too.
    """

    name: str
    lines: tuple[Line, ...]

    @property
    def changed(self) -> bool:
        """Whether any of its nodes did."""
        return any(line.mark != " " for line in self.lines)


@dataclass(frozen=True)
class RegionDiff:
    """Two graphs of one module, node by node."""

    name: str  # the module's dotted name, empty for the root
    before: tuple[NodeInfo, ...]  # the nodes of the graph before, in order
    after: tuple[NodeInfo, ...]  # the nodes of the graph after
    # Names of nodes before -> names of the same nodes after.
    matched: dict[str, str] = field(repr=False)
    # Names of matched nodes (after) whose arguments or modules differ.
    changed: frozenset[str] = frozenset()

    @functools.cached_property
    def layers(self) -> tuple[LayerDiff, ...]:
        """All layers of both graphs, changed or not, in the order of the forward."""
        old, new = by_layer(self.before), by_layer(self.after)
        return tuple(
            LayerDiff(name, tuple(self._lines(old.get(name, []), new.get(name, []))))
            for name in _merged_order(list(old), list(new))
        )

    def _lines(self, old: list[NodeInfo], new: list[NodeInfo]) -> Iterator[Line]:
        """The nodes of one layer, each pair of matched ones where the later one stands."""
        pending = iter(new)
        for node in old:
            partner = self.matched.get(node.name)
            if partner is not None:
                for other in pending:
                    if other.name == partner:
                        break
                    yield _line("+", other)
                if partner in self.changed:
                    yield from _changed_lines(node, other)
                else:
                    yield _line(" ", other)
            else:
                yield _line("-", node)
        for other in pending:
            yield _line("+", other)


def by_layer(nodes: Iterable[NodeInfo]) -> dict[str, list[NodeInfo]]:
    """Nodes by the layer that they belong to."""
    return grouped(nodes, lambda node: node.layer)


def _merged_order(old: list[str], new: list[str]) -> Iterator[str]:
    """The layers of both, each once, in an order that fits both."""
    position = {name: i for i, name in enumerate(new)}
    done = 0
    for name in old:
        if name not in position:
            yield name
        elif position[name] >= done:
            yield from new[done : position[name] + 1]
            done = position[name] + 1
    yield from new[done:]


def _line(mark: str, node: NodeInfo) -> Line:
    return Line(mark, node.op, node.name, node.target, node.args)


def _changed_lines(before: NodeInfo, after: NodeInfo) -> Iterator[Line]:
    for mark, node in (("-", before), ("+", after)):
        line = _line(mark, node)
        if before.module != after.module:
            line = replace(line, target=f"{node.target}: {node.module}")
        yield line
