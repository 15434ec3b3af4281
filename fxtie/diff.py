"""Two graphs -> what changed, layer by layer.

In: two modules with graphs, or a plain module and its tied form. Out: `GraphDiff`, plain data that
holds on to no graph and no tensor; `show/` prints and draws it. Called by users as
`fxtie.diff(before, after)`.
"""

from __future__ import annotations

import difflib
import functools
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from torch import fx, nn

from fxtie.capture import untied_graphs
from fxtie.errors import FxtieError
from fxtie.matching import Matching, match_graphs
from fxtie.report import Report
from fxtie.show.nodes import NodeInfo, module_text, node_info
from fxtie.show.text import count, diff_text, human_count


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
    """Two graphs of one module, node by node.

    Attributes:
        name: the module's dotted name, empty for the root.
        before: the nodes of the graph before, in order.
        after: the nodes of the graph after.
        matched: names of nodes before -> names of the same nodes after.
        changed: names of matched nodes (after) whose arguments or modules differ.
    """

    name: str
    before: tuple[NodeInfo, ...]
    after: tuple[NodeInfo, ...]
    matched: dict[str, str] = field(repr=False)
    changed: frozenset[str] = frozenset()

    @functools.cached_property
    def layers(self) -> tuple[LayerDiff, ...]:
        """All layers of both graphs, changed or not, in the order of the forward."""
        old, new = _by_layer(self.before), _by_layer(self.after)
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


@dataclass(frozen=True)
class GraphDiff:
    """What changed between two graphs. `print` shows a table for each layer that did.

    Attributes:
        regions: the graphs that were compared: the model's, or those of its captured parts.
        parameters: number of parameters before and after, each Parameter counted once.
        bytes: their size before and after.
        codes: the generated forwards before and after, one pair per region.
        unseen: derived tensors that appear in no graph, since the modules that read them run the
            forward that the user wrote.
    """

    regions: tuple[RegionDiff, ...]
    parameters: tuple[int, int]
    bytes: tuple[int, int]
    codes: tuple[tuple[str, str], ...] = field(repr=False, default=())
    unseen: tuple[str, ...] = ()

    @functools.cached_property
    def layers(self) -> tuple[LayerDiff, ...]:
        """The layers that changed, in the order of the forward."""
        return tuple(layer for r in self.regions for layer in r.layers if layer.changed)

    @property
    def removed(self) -> int:
        """Number of `-` lines: nodes that are gone or were different."""
        return sum(line.mark == "-" for layer in self.layers for line in layer.lines)

    @property
    def added(self) -> int:
        """Number of `+` lines: nodes that are new or are different now."""
        return sum(line.mark == "+" for layer in self.layers for line in layer.lines)

    def __bool__(self) -> bool:
        """Whether anything changed."""
        return bool(self.layers or self.unseen or self.parameters[0] != self.parameters[1])

    def summary(self) -> str:
        """The whole change in one line.

        Example:
            >>> import fxtie
            >>> net = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))
            >>> fxtie.diff(net, net).summary()
            'no difference'
        """
        if not self:
            return "no difference"
        before, after = self.parameters
        share = f" ({after / before:.1%})" if before else ""
        return (
            f"{count(len(self.layers), 'layer')} changed (nodes: -{self.removed} +{self.added}), "
            f"parameters {human_count(before)} -> {human_count(after)}{share}"
        )

    def code(self) -> str:
        """The unified diff of the generated forwards, empty if they are the same."""
        parts: list[str] = []
        for region, (before, after) in zip(self.regions, self.codes, strict=True):
            old, new = before.strip().splitlines(), after.strip().splitlines()
            name = region.name and f" {region.name}"
            parts += difflib.unified_diff(old, new, f"before{name}", f"after{name}", lineterm="")
        return "\n".join(line.rstrip() for line in parts)

    def to_dict(self) -> dict[str, Any]:
        """Plain data, ready for JSON.

        Keys: `parameters` and `bytes` (each with `before` and `after`), `removed` and `added`
        (numbers of nodes), `layers` (a list of `name` and `lines`; a line has `mark`, `op`,
        `name`, `target`, `args`), `unseen` (tensor names).
        """
        return {
            "parameters": dict(zip(("before", "after"), self.parameters, strict=True)),
            "bytes": dict(zip(("before", "after"), self.bytes, strict=True)),
            "removed": self.removed,
            "added": self.added,
            "layers": [asdict(layer) for layer in self.layers],
            "unseen": list(self.unseen),
        }

    def __str__(self) -> str:
        return diff_text(self)


def diff(before: nn.Module, after: nn.Module) -> GraphDiff:
    """What changed from one module to another.

    Nodes are matched by where they come from (layer, then what they do), so a node that is
    inserted does not shift the rest, and one that has but another name is no change.

    Args:
        before: the model before: plain, tied or a GraphModule.
        after: the model after: the result of `transform`, or any GraphModule. Of a model with
            one graph for training and one for evaluation, that of the current mode is compared.

    Raises:
        FxtieError: if there is no graph to compare: `after` is neither tied nor a GraphModule, or
            `before` is a module that can't be traced.

    Example:
        >>> import fxtie, torch
        >>> net = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))
        >>> tied = fxtie.transform(net, fxtie.Rule("2", "0", torch.square))
        >>> print(fxtie.diff(net, tied).summary())
        1 layer changed (nodes: -1 +4), parameters 40 -> 20 (50.0%)
    """
    before, after = (_uncompiled(module) for module in (before, after))
    pairs = [] if before is after else list(_graph_pairs(before, after))
    regions = []
    for name, old, new in pairs:
        regions.append(_region(name, (old, _within(before, name)), (new, _within(after, name))))
    return GraphDiff(
        tuple(regions),
        (_parameters(before), _parameters(after)),
        (_bytes(before), _bytes(after)),
        tuple((_code(old), _code(new)) for _, old, new in pairs),
        _unseen(after) if pairs else (),
    )


def diff_graphs(before: fx.GraphModule | fx.Graph, after: fx.GraphModule | fx.Graph) -> GraphDiff:
    """What changed from one graph to another.

    Args:
        before: a graph. Parameters are counted where it belongs to a module.
        after: another.
    """
    old, new = (g.graph if isinstance(g, fx.GraphModule) else g for g in (before, after))
    owners = old.owning_module, new.owning_module
    return GraphDiff(
        (_region("", (old, owners[0]), (new, owners[1])),),
        (_parameters(owners[0]), _parameters(owners[1])),
        (_bytes(owners[0]), _bytes(owners[1])),
        ((_code(old), _code(new)),),
    )


# -- which graphs ---------------------------------------------------------------------------------

Side = tuple[fx.Graph, "nn.Module | None"]


def _uncompiled(module: nn.Module) -> nn.Module:
    inner = getattr(module, "_orig_mod", module)
    if not isinstance(inner, nn.Module):
        raise FxtieError(f"diff compares modules, not {type(module).__name__}.")
    return inner


def _graph_pairs(before: nn.Module, after: nn.Module) -> Iterator[tuple[str, fx.Graph, fx.Graph]]:
    """The modules of which both have a graph, with the two graphs."""
    old, new = _graphs(before), _graphs(after)
    if old.keys() & new.keys():
        yield from ((name, old[name], new[name]) for name in old if name in new)
    elif isinstance(vars(after).get("_fxtie_report"), Report):
        yield from untied_graphs(before, after)
    elif isinstance(after, fx.GraphModule):
        yield "", _traced(before, after.graph), after.graph
    else:
        raise FxtieError(
            f"There is no graph to compare: {type(after).__name__} is neither a tied model nor a "
            f"torch.fx.GraphModule. Pass what fxtie.transform or torch.fx.symbolic_trace gives."
        )


def _graphs(module: nn.Module) -> dict[str, fx.Graph]:
    return {name: m.graph for name, m in module.named_modules() if isinstance(m, fx.GraphModule)}


def _traced(model: nn.Module, like: fx.Graph) -> fx.Graph:
    """A plain model's graph, with the modules opened that `like` has opened."""
    layers = {str(n.target) for n in like.nodes if n.op == "call_module"}
    for node in like.nodes:
        layers |= {str(path) for path, _ in node.meta.get("nn_module_stack", {}).values()}

    class Tracer(fx.Tracer):
        def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
            inside = module_qualified_name + "."
            return not any(layer.startswith(inside) for layer in layers)

    try:
        return Tracer().trace(model)
    except Exception as error:  # the user's forward runs on proxies, which no code has to bear
        raise FxtieError(
            f"{type(model).__name__} has no graph and can't be traced to compare it: {error}"
        ) from error


def _unseen(after: nn.Module) -> tuple[str, ...]:
    """Derived tensors of modules that were kept."""
    report = vars(after).get("_fxtie_report")
    if not isinstance(report, Report):
        return ()
    kept = {module.name for module in report.kept}
    return tuple(name for name in report.targets if name.rpartition(".")[0] in kept)


# -- comparing ------------------------------------------------------------------------------------


def _region(name: str, before: Side, after: Side) -> RegionDiff:
    (old, old_owner), (new, new_owner) = before, after
    matching = match_graphs(old, new, name)
    changed = frozenset(
        b.name
        for a, b in matching.pairs.items()
        if not matching.same_arguments(a, b) or not _same_module(a, old_owner, b, new_owner)
    )
    matched = {a.name: b.name for a, b in matching.pairs.items()}
    return RegionDiff(
        name,
        _infos(old, old_owner, matching),
        _infos(new, new_owner, matching),
        matched,
        changed,
    )


def _infos(graph: fx.Graph, owner: nn.Module | None, matching: Matching) -> tuple[NodeInfo, ...]:
    return tuple(node_info(node, owner, matching.layers[node]) for node in graph.nodes)


def _same_module(a: fx.Node, before: Any, b: fx.Node, after: Any) -> bool:
    if a.op != "call_module" or before is None or after is None:
        return True
    return module_text(before, str(a.target)) == module_text(after, str(b.target))


def _within(module: nn.Module, name: str) -> nn.Module | None:
    try:
        return module.get_submodule(name)
    except AttributeError:
        return None


def _parameters(module: nn.Module | None) -> int:
    return sum(p.numel() for p in module.parameters()) if module is not None else 0


def _bytes(module: nn.Module | None) -> int:
    return sum(p.nbytes for p in module.parameters()) if module is not None else 0


def _code(graph: fx.Graph) -> str:
    return graph.python_code("self").src


def _by_layer(nodes: tuple[NodeInfo, ...]) -> dict[str, list[NodeInfo]]:
    layers: dict[str, list[NodeInfo]] = {}
    for node in nodes:
        layers.setdefault(node.layer, []).append(node)
    return layers


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
