"""A `GraphDiff` -> its `Page`: layer by layer, before and after side by side."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from fxtie.looking.diff import GraphDiff
from fxtie.looking.diff_layers import LayerDiff, RegionDiff, by_layer
from fxtie.looking.diff_text import alike
from fxtie.looking.layout import Box, Flow
from fxtie.looking.nodes import NodeInfo
from fxtie.looking.page import Page, Section
from fxtie.shown import page
from fxtie.words import count, list_tensors

_LEGEND = (
    ("removed", "removed"),
    ("added", "added"),
    ("derived", "derived"),
    ("changed", "changed"),
    ("", "unchanged"),
    ("stub", "in another layer"),
)
_MOST_STUBS = 6  # layers that a layer reads from or gives to


@page.register
def diff_page(diff: GraphDiff) -> Page:
    """What the page of a diff says."""
    regions = [_Region(region) for region in diff.regions]
    sections = [section for region in regions for section in region.sections()]
    if code := diff.code():
        sections.append(Section("generated code", code=code, is_open=False, is_quiet=True))
    unseen = ("in no graph, since their forwards were kept", list_tensors(diff.unseen))
    return Page(
        "fxtie: what changed",
        diff.summary(),
        [unseen] if diff.unseen else [],
        None if diff.picture is None else diff.picture.scene,
        sections,
        _LEGEND,
    )


class _Region:
    """The sections of one graph: one per layer that changed, one per run of others."""

    def __init__(self, region: RegionDiff) -> None:
        self.region = region
        groups = alike([layer for layer in region.layers if layer.changed])
        self.first_of = {layer.name: group[0].name for group in groups for layer in group}
        self.matched_back = {new: old for old, new in region.matched.items()}
        self.runs: list[list[LayerDiff]] = []
        for layer in region.layers:
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
            [("before and after", self.flow(nodes, self.region.after, old=False))],
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
                ("before", self.flow(before, self.region.before, old=True)),
                ("after", self.flow(after, self.region.after, old=False)),
            ],
            id=self.id_of[layer.name],
            is_open=first == layer.name,
        )

    def flow(
        self, nodes: list[NodeInfo], all_nodes: Iterable[NodeInfo], *, old: bool
    ) -> Flow | None:
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
        return Flow(tuple(boxes.values()), tuple(dict.fromkeys(ends)))

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
