"""Two graphs -> what changed, layer by layer.

In: two modules with graphs, or a plain module and its tied form. Out: `GraphDiff`, which is data;
`show/text.py` prints it. Called by users as `fxtie.diff(before, after)`.

Nodes are matched by where they come from, not by where they stand: first by layer, then by what
they do within it. A node that is inserted does not shift the rest, and a node that is renamed is
no change.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import fx, nn

from fxtie.capture import untied_graphs
from fxtie.errors import FxtieError
from fxtie.show.text import diff_text, human_count

_MODULE_STACK = "nn_module_stack"


@dataclass(frozen=True)
class Line:
    """One node in a diff.

    Attributes:
        mark: `-` removed, `+` added, a blank for context.
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
    """What changed in one layer: its nodes, in order, with marks."""

    name: str
    lines: tuple[Line, ...]

    @property
    def changed(self) -> bool:
        return any(line.mark.strip() for line in self.lines)


@dataclass(frozen=True)
class GraphDiff:
    """What changed between two graphs. `print` shows a table per touched layer.

    Attributes:
        layers: the layers that changed, in the order of the forward.
        parameters: number of parameters before and after.
        codes: the generated forwards, before and after, one pair per region.
    """

    layers: tuple[LayerDiff, ...]
    parameters: tuple[int, int]
    codes: tuple[tuple[str, str], ...] = field(repr=False, default=())

    @property
    def removed(self) -> int:
        """Number of nodes that are gone."""
        return sum(line.mark == "-" for layer in self.layers for line in layer.lines)

    @property
    def added(self) -> int:
        """Number of nodes that are new."""
        return sum(line.mark == "+" for layer in self.layers for line in layer.lines)

    def __bool__(self) -> bool:
        return bool(self.layers) or self.parameters[0] != self.parameters[1]

    def summary(self) -> str:
        """The whole change, as one line."""
        before, after = self.parameters
        share = f" ({after / before:.1%})" if before else ""
        layers = f"{len(self.layers)} layer{'' if len(self.layers) == 1 else 's'} changed"
        change = f"parameters {human_count(before)} -> {human_count(after)}{share}"
        return f"{layers} (nodes: -{self.removed} +{self.added}), {change}"

    def code(self) -> str:
        """The unified diff of the generated forwards."""
        parts = []
        for before, after in self.codes:
            lines = difflib.unified_diff(
                before.strip().splitlines(),
                after.strip().splitlines(),
                "before",
                "after",
                lineterm="",
            )
            parts.append("\n".join(lines))
        return "\n".join(filter(None, parts))

    def to_dict(self) -> dict[str, Any]:
        """Plain data, ready for JSON."""
        return {
            "parameters": {"before": self.parameters[0], "after": self.parameters[1]},
            "removed": self.removed,
            "added": self.added,
            "layers": [asdict(layer) for layer in self.layers],
        }

    def __str__(self) -> str:
        return diff_text(self)


def diff(before: nn.Module, after: nn.Module) -> GraphDiff:
    """What changed from one module to another.

    Args:
        before: the model before, plain or a GraphModule.
        after: the model after: the result of `transform`, or any GraphModule.

    Raises:
        FxtieError: if there is no graph to compare: `after` is neither tied nor a GraphModule.

    Example:
        >>> import fxtie, torch
        >>> net = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))
        >>> tied = fxtie.transform(net, fxtie.Rule("2", "0", torch.square))
        >>> print(fxtie.diff(net, tied).summary())
        1 layer changed (nodes: -1 +4), parameters 40 -> 20 (50.0%)
    """
    before, after = (getattr(module, "_orig_mod", module) for module in (before, after))
    pairs = list(_graph_pairs(before, after))
    layers: list[LayerDiff] = []
    for region, old, new in pairs:
        layers += diff_graphs(old, new, region)
    codes = tuple((_code(old), _code(new)) for _, old, new in pairs)
    return GraphDiff(tuple(layers), (_parameters(before), _parameters(after)), codes)


def _graph_pairs(before: nn.Module, after: nn.Module) -> Iterator[tuple[str, fx.Graph, fx.Graph]]:
    """Regions that both have, with their graphs."""
    if isinstance(before, fx.GraphModule) and isinstance(after, fx.GraphModule):
        yield "", before.graph, after.graph
        return
    if "_fxtie_report" in vars(after):
        yield from untied_graphs(before, after)
        return
    if not isinstance(after, fx.GraphModule):
        raise FxtieError(
            f"There is no graph to compare: {type(after).__name__} is neither a tied model nor a "
            f"torch.fx.GraphModule."
        )
    yield "", fx.symbolic_trace(before).graph, after.graph


def _parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def _code(graph: fx.Graph) -> str:
    return graph.python_code("self").src


def diff_graphs(before: fx.Graph, after: fx.Graph, region: str = "") -> list[LayerDiff]:
    """The layers in which two graphs differ.

    Args:
        region: the dotted name of the module that both graphs are of.
    """
    old, new = _by_layer(before), _by_layer(after)
    layers = []
    for name in _merged_order(list(old), list(new)):
        lines = _match(name, old.get(name, []), new.get(name, []))
        layer = LayerDiff(".".join(filter(None, (region, name))), tuple(lines))
        if layer.changed:
            layers.append(layer)
    return layers


def layer_of(node: fx.Node) -> str:
    """The dotted name of the layer that a node belongs to; empty for the root."""
    if node.op == "call_module":
        return str(node.target)
    stack = node.meta.get(_MODULE_STACK)
    if stack:
        path, _ = list(stack.values())[-1]
        return str(path)
    return ""


def _by_layer(graph: fx.Graph) -> dict[str, list[fx.Node]]:
    layers: dict[str, list[fx.Node]] = {}
    for node in graph.nodes:
        layers.setdefault(layer_of(node), []).append(node)
    return layers


def _merged_order(old: list[str], new: list[str]) -> Iterator[str]:
    """The layers of both, each once, in an order that fits both."""
    position = {name: i for i, name in enumerate(new)}
    pending = list(new)
    for name in old:
        if name in position:
            while pending and position[pending[0]] <= position[name]:
                yield pending.pop(0)
        else:
            yield name
    yield from pending


def _match(layer: str, old: list[fx.Node], new: list[fx.Node]) -> Iterator[Line]:
    """The nodes of one layer, matched by what they do."""
    matcher = difflib.SequenceMatcher(
        None, [_key(n, layer) for n in old], [_key(n, layer) for n in new], autojunk=False
    )
    for tag, i, i_end, j, j_end in matcher.get_opcodes():
        if tag == "equal":
            yield from (_line(" ", node) for node in new[j:j_end])
        else:
            yield from (_line("-", node) for node in old[i:i_end])
            yield from (_line("+", node) for node in new[j:j_end])


def _key(node: fx.Node, layer: str) -> str:
    """What a node does, with its inputs called by layer or by deed instead of by name."""

    def call(value: fx.Node) -> str:
        other = layer_of(value)
        return f"<{other}>" if other != layer else f"<{value.op} {target_text(value)}>"

    args = _text(node.args, call), _text(node.kwargs, call)
    return f"{node.op} {target_text(node)} {args}"


def _text(value: Any, name: Any) -> str:
    """Arguments as text, with nodes named by `name`."""
    if isinstance(value, fx.Node):
        return str(name(value))
    if isinstance(value, dict):
        return ", ".join(f"{key}={_text(item, name)}" for key, item in value.items())
    if isinstance(value, list | tuple):
        inner = ", ".join(_text(item, name) for item in value)
        if isinstance(value, list):
            return f"[{inner}]"
        return f"({inner},)" if len(value) == 1 else f"({inner})"
    if isinstance(value, slice):
        return ":".join(_text(v, name) for v in (value.start, value.stop, value.step))
    return repr(value)


def target_text(node: fx.Node) -> str:
    """A node's target as one would write it: `torch.square`, `conv_1.weight`."""
    if isinstance(node.target, str):
        return node.target
    name = getattr(node.target, "__name__", repr(node.target))
    if getattr(torch.nn.functional, name, None) is node.target:
        return f"F.{name}"
    if getattr(torch, name, None) is node.target:
        return f"torch.{name}"
    return str(name)


def _line(mark: str, node: fx.Node) -> Line:
    args = [_text(arg, str) for arg in node.args]
    args += [f"{key}={_text(value, str)}" for key, value in node.kwargs.items()]
    return Line(mark, node.op, node.name, target_text(node), ", ".join(args))
