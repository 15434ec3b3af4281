"""A diff -> what its page says: layer by layer, before and after side by side.

In: a `GraphDiff`. Out: a `Page`.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence

from fxtie.looking.diff import GraphDiff
from fxtie.looking.diff_text import alike
from fxtie.looking.layers import LayerDiff, RegionDiff, by_layer
from fxtie.looking.layout import Arrow, Box, Picture
from fxtie.looking.nodes import NodeInfo
from fxtie.looking.page import Page, Section
from fxtie.shown import page
from fxtie.words import count

_LEGEND = (
    ("removed", "removed"),
    ("added", "added"),
    ("derived", "derived"),
    ("changed", "changed"),
    ("stub", "in another layer"),
)
_MOST_ON_MAP = 40  # boxes: more are hard to read and slow to lay out
_MOST_STUBS = 6  # layers that a layer reads from or gives to


@page.register
def diff_page(diff: GraphDiff) -> Page:
    """What the page of a diff says."""
    regions = [_Region(region) for region in diff.regions]
    sections = [section for region in regions for section in region.sections()]
    if code := diff.code():
        sections.append(Section("generated code", code=code, is_open=False, is_quiet=True))
    facts = [("in no graph, since their forwards were kept", ", ".join(diff.unseen))]
    return Page(
        "fxtie: what changed",
        diff.summary(),
        [fact for fact in facts if fact[1]],
        sections,
        _map(diff, regions),
        _LEGEND,
    )


class _Region:
    """The sections of one graph: one per layer that changed, one per run of others."""

    def __init__(self, region: RegionDiff) -> None:
        self.region = region
        self.layers = region.layers
        groups = alike([layer for layer in self.layers if layer.changed])
        self.first_of = {layer.name: group[0].name for group in groups for layer in group}
        self.matched_back = {new: old for old, new in region.matched.items()}
        self.runs: list[list[LayerDiff]] = []
        for layer in self.layers:
            if self.runs and not (layer.changed or self.runs[-1][-1].changed):
                self.runs[-1].append(layer)
            else:
                self.runs.append([layer])
        self.id_of = {
            layer.name: f"layer:{region.name}:{run[0].name}" for run in self.runs for layer in run
        }

    def sections(self) -> Iterator[Section]:
        old, new = by_layer(self.region.before), by_layer(self.region.after)
        for run in self.runs:
            if run[0].changed:
                (layer,) = run
                before, after = old.get(layer.name, []), new.get(layer.name, [])
                yield self.changed(layer, before, after)
            else:
                yield self.unchanged(run, [node for layer in run for node in new[layer.name]])

    def unchanged(self, run: list[LayerDiff], nodes: list[NodeInfo]) -> Section:
        name, last = run[0].name or "(root)", run[-1].name or "(root)"
        return Section(
            name if len(run) == 1 else f"{name} … {last}",
            f"{count(len(run), 'layer')}, {count(len(nodes), 'node')}, unchanged",
            [("before and after", self.picture(nodes, self.region.after, old=False))],
            id=self.id_of[run[0].name],
            is_open=False,
            is_quiet=True,
        )

    def changed(self, layer: LayerDiff, before: list[NodeInfo], after: list[NodeInfo]) -> Section:
        removed = sum(line.mark == "-" for line in layer.lines)
        added = sum(line.mark == "+" for line in layer.lines)
        first = self.first_of[layer.name]
        return Section(
            layer.name or "(root)",
            f"-{removed} +{added} nodes" + ("" if first == layer.name else f", as {first}"),
            [
                ("before", self.picture(before, self.region.before, old=True)),
                ("after", self.picture(after, self.region.after, old=False)),
            ],
            id=self.id_of[layer.name],
            is_open=first == layer.name,
        )

    def picture(
        self, nodes: list[NodeInfo], all_nodes: Iterable[NodeInfo], *, old: bool
    ) -> Picture | None:
        """The nodes of one layer, and the layers that they read from and give to."""
        if not nodes:
            return None
        inside = {node.name for node in nodes}
        layer_of = {node.name: node.layer for node in all_nodes}
        crossing = [
            ("from", source, node.name) if node.name in inside else ("to", node.name, source)
            for node in all_nodes
            for source in node.inputs
            if (node.name in inside) != (source in inside)
        ]
        stubs = self.stubs({(where, layer_of[outer]) for where, outer, _ in crossing})
        boxes = {node.name: self.box(node, old=old) for node in nodes}
        boxes |= {stub.key: stub for stub in stubs.values()}
        ends = [(source, node.name) for node in nodes for source in node.inputs if source in inside]
        for where, outer, inner in crossing:
            stub = stubs[where, layer_of[outer]].key
            ends.append((stub, inner) if where == "from" else (inner, stub))
        return Picture(tuple(boxes.values()), tuple(Arrow(*pair) for pair in dict.fromkeys(ends)))

    def stubs(self, others: set[tuple[str, str]]) -> dict[tuple[str, str], Box]:
        """Boxes for other layers, `from` or `to` which something goes: one for all if many."""
        stubs = {}
        for where in ("from", "to"):
            layers = [name for name in self.id_of if (where, name) in others]
            names = [name or "(root)" for name in layers]
            many = Box(where, (f"{where} {count(len(names), 'layer')}",), "stub", "\n".join(names))
            for layer, name in zip(layers, names, strict=True):
                text, tip = f"{where} {name}", f"go to {name}"
                one = Box(f"{where} {layer}", (text,), "stub", tip, href=self.id_of[layer])
                stubs[where, layer] = one if len(layers) <= _MOST_STUBS else many
        return stubs

    def box(self, node: NodeInfo, *, old: bool) -> Box:
        other = self.region.matched.get(node.name) if old else self.matched_back.get(node.name)
        if other is None:
            kind = "removed" if old else ("derived" if node.tie else "added")
        elif (other if old else node.name) in self.region.changed:
            kind = "changed"
        else:
            kind = "derived" if node.tie else ""
        second = " ".join(filter(None, (node.name, node.shape)))
        return Box(node.name, (node.target, second), kind, _tip(node))


def _tip(node: NodeInfo) -> str:
    """All that there is to say of a node."""
    rows = (
        (node.op, f"{node.target}({node.args})" if node.op != "get_attr" else node.target),
        ("module", node.module),
        ("shape", node.shape),
        ("dtype", node.dtype),
        ("parameters", f"{node.parameters:,}" if node.parameters else ""),
        ("derives", node.tie),
        ("source", node.source),
    )
    return "\n".join(f"{name}: {value}" for name, value in rows if value)


# --- Overview ---------------------------------------------------------------------------------


def _map(diff: GraphDiff, regions: Sequence[_Region]) -> Picture | None:
    """Which layer feeds which, and which layer's tensors are derived from which."""
    box_of = _gathering(regions)
    changed = {box_of(layer.name) for layer in diff.layers}
    boxes: dict[str, Box] = {}
    flows: dict[tuple[str, str], None] = {}
    for one in regions:
        for layer in one.layers:
            key = box_of(layer.name)
            kind = "changed" if key in changed else ""
            boxes.setdefault(key, Box(key, (key,), kind, key, href=one.id_of[layer.name]))
        nodes = {node.name: node for node in one.region.after}
        for node in nodes.values():
            # What is read or derived belongs to no layer alone; ties are drawn instead.
            flow = [
                s for s in map(nodes.get, node.inputs) if s and not (s.op == "get_attr" or s.tie)
            ]
            flows |= {(box_of(source.layer), box_of(node.layer)): None for source in flow}
    ties = {
        (box_of(source.rpartition(".")[0]), box_of(target.rpartition(".")[0])): None
        for target, sources in diff.ties
        for source in sources
    }
    place = {key: i for i, key in enumerate(boxes)}
    arrows = []
    for tail, head in flows | ties:
        if tail != head and tail in boxes and head in boxes:
            ranks = (tail, head) in flows and place[tail] < place[head]
            arrows.append(Arrow(tail, head, "tie" if (tail, head) in ties else "", ranks))
    return Picture(tuple(boxes.values()), tuple(arrows), across=True) if boxes else None


def _gathering(regions: Sequence[_Region]) -> Callable[[str], str]:
    """A function from a layer to its box on the map: its own, its block's, or a run of blocks'.

    It makes the smallest boxes that are few enough. Blocks that follow one another share a box if
    the same has changed in each; if the boxes are still too many, neighbours share one.
    """
    change = {layer.name: one.first_of.get(layer.name) for one in regions for layer in one.layers}
    deepest = max((name.count(".") + 1 for name in change), default=1)

    for depth in range(deepest, 0, -1):
        changes: dict[str, list[tuple[str, str | None]]] = {}
        for name, first in change.items():
            block = _cut(name, depth)
            changes.setdefault(block, []).append((name.removeprefix(block), first))
        runs = [[name] for name in changes]
        if len(runs) > _MOST_ON_MAP:
            runs = [list(run) for _, run in itertools.groupby(changes, key=changes.__getitem__)]
        if len(runs) <= _MOST_ON_MAP:
            break
    size = max(1, math.ceil(len(runs) / _MOST_ON_MAP))
    joined = [list(itertools.chain(*runs[i : i + size])) for i in range(0, len(runs), size)]
    label = {
        block: " … ".join(dict.fromkeys(name or "(root)" for name in (run[0], run[-1])))
        for run in joined
        for block in run
    }

    def box_of(name: str) -> str:
        while name and _cut(name, depth) not in label:
            name = name.rpartition(".")[0]  # a part of a layer that was called as one
        return label.get(_cut(name, depth), "")

    return box_of


def _cut(name: str, depth: int) -> str:
    return ".".join(name.split(".")[:depth])
