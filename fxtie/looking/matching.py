"""Match the nodes of two graphs by where they come from, not by their position.

Every node is put into a layer. Within a layer, nodes that do the same are matched in order. What is
left in the same place on both sides (`call_module conv_2` here, `F.conv2d` there) *stands in* for
each other: their readers haven't changed.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Hashable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import fx

from fxtie.looking.grouping import grouped
from fxtie.tracing.graphs import same_arguments
from fxtie.words import join

Nodes = list[fx.Node]
Gap = tuple[Nodes, Nodes]


@dataclass
class Matching:
    """How two graphs correspond."""

    layers: dict[fx.Node, str] = field(default_factory=dict)  # of both, their dotted names
    # Nodes before -> the same nodes after.
    pairs: dict[fx.Node, fx.Node] = field(default_factory=dict)
    # Nodes before -> nodes after that took their place.
    stand_ins: dict[fx.Node, fx.Node] = field(default_factory=dict)

    def same_arguments(self, before: fx.Node, after: fx.Node) -> bool:
        """Whether two matched nodes read the same, whatever it is called."""
        return same_arguments(
            (before.args, before.kwargs),
            (after.args, after.kwargs),
            lambda a, b: b in (self.pairs.get(a), self.stand_ins.get(a)),
        )


def match_graphs(before: fx.Graph, after: fx.Graph, region: str = "") -> Matching:
    """Match the nodes of two graphs of a module, whose dotted name is `region`."""
    matching = Matching()
    # Provenance is of use only if both graphs have it.
    by_stack = all(any(map(_stack, graph.nodes)) for graph in (before, after))
    for graph in (before, after):
        for node in graph.nodes:
            matching.layers[node] = layer_of(node, region, by_stack)
    old, new = (grouped(g.nodes, matching.layers.__getitem__) for g in (before, after))
    for layer in old:
        for gap in list(_align(old[layer], new.get(layer, []), matching)):
            matching.stand_ins.update(_stand_ins(*gap))
    _adopt(before, after, matching, region)
    return matching


# -- layers ---------------------------------------------------------------------------------------


def layer_of(node: fx.Node, region: str, by_stack: bool) -> str:
    """The layer that a node belongs to; the region's own name for what its forward does itself."""
    if tie := node.meta.get("tie") or _tie_of_readers(node):
        return str(tie).rpartition(".")[0]
    if node.op == "call_module":
        return join(region, str(node.target))
    if node.op == "get_attr" and node.users and not (by_stack and _stack(node)):
        return layer_of(next(iter(node.users)), region, by_stack)
    return join(region, _stack(node) if by_stack else "")


def _tie_of_readers(node: fx.Node) -> str:
    """A tensor that is read for one tie alone belongs to that tie."""
    if node.op != "get_attr":
        return ""
    ties = {user.meta.get("tie", "") for user in node.users}
    return str(ties.pop()) if len(ties) == 1 else ""


def _stack(node: fx.Node) -> str:
    """The innermost module that was being called when the node was recorded."""
    stack = node.meta.get("nn_module_stack")
    if not stack:
        return ""
    path = str(next(reversed(stack.values()))[0])
    return path.removeprefix("L['self']").removeprefix(".")  # as torch.compile writes it


# -- nodes ----------------------------------------------------------------------------------------


def _align(old: Nodes, new: Nodes, matching: Matching) -> Iterator[Gap]:
    """Match the nodes of one layer. Yields what stays unmatched between matched ones."""

    def deed(node: fx.Node) -> Hashable:
        return node.op, target_key(node)

    def deed_and_inputs(node: fx.Node) -> Hashable:
        def call(value: fx.Node) -> str:
            layer = matching.layers[value]
            return layer if layer != matching.layers[node] else f"{value.op} {target_key(value)}"

        return deed(node), arguments_text((node.args, node.kwargs), call)

    for rest in _common(old, new, deed_and_inputs, matching.pairs):
        yield from _common(*rest, deed, matching.pairs)


def _common(
    old: Nodes, new: Nodes, key: Callable[[fx.Node], Hashable], pairs: dict[fx.Node, fx.Node]
) -> Iterator[Gap]:
    """Pair a longest common subsequence. Yields the gaps in it."""
    matcher = difflib.SequenceMatcher(None, [*map(key, old)], [*map(key, new)], autojunk=False)
    for tag, i, i_end, j, j_end in matcher.get_opcodes():
        if tag == "equal":
            pairs.update(zip(old[i:i_end], new[j:j_end], strict=True))
        else:
            yield old[i:i_end], new[j:j_end]


def _stand_ins(old: Nodes, new: Nodes) -> Iterator[tuple[fx.Node, fx.Node]]:
    """What others read of a gap, from its end: the results of a layer come last."""

    def results(nodes: Nodes) -> Nodes:
        inside = set(nodes)
        return [
            node
            for node in nodes
            if not inside.issuperset(node.users)
            and node.op not in ("get_attr", "placeholder")
            and "tie" not in node.meta
        ]

    return zip(reversed(results(old)), reversed(results(new)), strict=False)


def _adopt(before: fx.Graph, after: fx.Graph, matching: Matching, region: str) -> None:
    """Nodes without provenance that stand where one layer's nodes were go to that layer."""
    removed = _unmatched(before, matching.pairs)
    added = _unmatched(after, {node: node for node in matching.pairs.values()})
    for place, nodes in added.items():
        gone = removed.get(place, [])
        layers = {matching.layers[node] for node in gone}
        homeless = [n for n in nodes if not _stack(n) and "tie" not in n.meta]
        if len(layers) == 1 and region not in layers and homeless:
            layer = layers.pop()
            matching.layers.update(dict.fromkeys(homeless, layer))
            matching.stand_ins.update(_stand_ins(gone, nodes))


def _unmatched(graph: fx.Graph, matched: Mapping[fx.Node, fx.Node]) -> dict[fx.Node | None, Nodes]:
    """The nodes of a graph that are not matched, by what the one ahead of them is matched with."""
    found: dict[fx.Node | None, Nodes] = {}
    ahead: fx.Node | None = None
    for node in graph.nodes:
        if node in matched:
            ahead = matched[node]
        else:
            found.setdefault(ahead, []).append(node)
    return found


# -- text -----------------------------------------------------------------------------------------


def target_key(node: fx.Node) -> str:
    """What a node calls or reads, told apart from everything of the same name."""
    if isinstance(node.target, str):
        return node.target
    return f"{getattr(node.target, '__module__', '')}.{node.target}"


def arguments_text(value: Any, call: Callable[[fx.Node], str]) -> str:
    """Arguments as they stand in code, with nodes named by `call`."""
    if isinstance(value, fx.Node):
        return call(value)
    if isinstance(value, dict):
        return ", ".join(f"{key}={arguments_text(item, call)}" for key, item in value.items())
    if isinstance(value, list | tuple):
        inner = ", ".join(arguments_text(item, call) for item in value)
        if isinstance(value, list):
            return f"[{inner}]"
        return f"({inner},)" if len(value) == 1 else f"({inner})"
    if isinstance(value, slice):
        parts = (value.start, value.stop, value.step)
        return f"slice({', '.join(arguments_text(part, call) for part in parts)})"
    return repr(value)
