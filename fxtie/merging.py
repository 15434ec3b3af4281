"""Convolutions of one input, done by one, on request.

In: the graph of a region. Out: the same, with one convolution for several. Called by `capture.py`.

It isn't always faster (docs/speed.md), so that it isn't done unless it is asked for. What is moved
must give the same where it then stands: an op that isn't known to be harmless may change anything.
"""

from __future__ import annotations

import operator
from collections.abc import Container, Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn

from fxtie.graphs import changed_in_place, repeats
from fxtie.names import has_hooks
from fxtie.runtime.copied import user_class
from fxtie.tracing.inference import LAYERS

_CONVOLUTIONS = {F.conv1d: 1, F.conv2d: 2, F.conv3d: 3}  # with their numbers of dimensions
_ARGUMENTS = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")


def merge_convs(graph: fx.Graph, root: nn.Module) -> int:
    """Do several convolutions of one input by one, if some of their filters are derived.

    What they gave are slices of its result then: equal up to rounding, and not contiguous.

    Args:
        graph: of a region.
        root: the module whose attributes it reads.

    Returns:
        How many were put together with others.
    """
    movable = _movable(graph)
    groups: list[list[fx.Node]] = []
    ready: dict[Any, list[fx.Node]] = {}  # to be joined
    for node in graph.nodes:
        kind = _kind(node, movable)
        if kind is not None and all(_only_reads(user, root) for user in node.users):
            if kind not in ready:
                groups.append([])
                ready[kind] = groups[-1]
            ready[kind].append(node)
        elif not _only_reads(node, root):
            changed = _surely_changed(node)
            is_apart = (
                changed is not None
                and changed.op != "placeholder"  # which may be a view of another one
                and changed not in movable
                and _has_own_memory(changed, root)
            )
            ready = {
                kind: nodes
                for kind, nodes in ready.items()
                if is_apart
                and (input := _operands(nodes[0])[0]) is not changed
                and _has_own_memory(input, root)
            }
    merged = [
        nodes
        for nodes in groups
        if len(nodes) > 1 and any("derived" in _operands(node)[1].meta for node in nodes)
    ]
    for nodes in merged:
        _merge(graph, nodes)
    return sum(map(len, merged))


def _operands(node: fx.Node) -> tuple[fx.Node, fx.Node, fx.Node | None]:
    """The input, the weight and the bias of a convolution."""
    arguments: dict[str, Any] = {**dict(zip(_ARGUMENTS, node.args)), **node.kwargs}  # noqa: B905
    return arguments["input"], arguments["weight"], arguments.get("bias")


def _kind(node: fx.Node, movable: Container[Any]) -> Any:
    """Equal for convolutions that one can do; None for what can't be merged."""
    if node.op != "call_function" or node.target not in _CONVOLUTIONS:
        return None
    input, weight, bias = _operands(node)
    if weight not in movable or not (bias is None or bias in movable):
        return None
    rest = {**dict(zip(_ARGUMENTS[3:], node.args[3:])), **node.kwargs}  # noqa: B905
    geometry = {name: rest[name] for name in _ARGUMENTS[3:] if name in rest}
    if geometry.pop("groups", 1) != 1:
        return None
    return node.target, input, weight.meta["shape"][1:], bias is None, str(geometry)


def _merge(graph: fx.Graph, nodes: list[fx.Node]) -> None:
    first = nodes[0]
    input, _, bias = _operands(first)
    filters = [_operands(node)[1] for node in nodes]
    biases = [b for node in nodes if (b := _operands(node)[2]) is not None]
    needed, behind = _with_inputs([*filters, *biases]), False
    for node in list(graph.nodes):
        behind = behind or node is first
        if behind and node in needed:
            first.prepend(node)
    with graph.inserting_before(first):
        weight = graph.call_function(torch.cat, (filters,))
        bias = graph.call_function(torch.cat, (biases,)) if biases else None
        rest = {k: v for k, v in first.kwargs.items() if k not in _ARGUMENTS[:3]}
        arguments = (input, weight, bias, *first.args[3:])
        together = graph.call_function(first.target, arguments, rest)  # type: ignore[arg-type]
    for node in (weight, bias, together):
        if node is not None:
            node.meta = _provenance(first)
    channels, start, parts = -1 - _CONVOLUTIONS[first.target], 0, []  # type: ignore[index]
    for filter in filters:
        length = filter.meta["shape"][0]
        parts.append((channels, start, length))
        start += length
    last = together
    for node, arguments in zip(nodes, parts, strict=True):
        node.target, node.args, node.kwargs = torch.narrow, (together, *arguments), {}
        last.append(node)
        last = node


# --- What may be moved ------------------------------------------------------------------------

_PURE = frozenset(
    {*_CONVOLUTIONS, F.linear, F.batch_norm, F.layer_norm, F.group_norm, torch.cat, torch.flatten}
    | {F.relu, F.relu6, F.gelu, F.silu, F.hardswish, F.leaky_relu, F.softmax, torch.sigmoid}
    | {F.max_pool2d, F.avg_pool2d, F.adaptive_avg_pool2d, torch.relu, torch.tanh, torch.stack}
    | {operator.add, operator.sub, operator.mul, operator.truediv, operator.getitem}
)
_OF_LAYOUT = frozenset(
    {"view", "view_as", "as_strided", "stride", "storage_offset", "is_contiguous", "data_ptr"}
    | {"storage", "untyped_storage", "set_"}
)
_ALLOCATING = frozenset({*_CONVOLUTIONS, F.linear, F.batch_norm, torch.cat})
_ALLOCATING_LAYERS = frozenset(
    {nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear, nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d}
)


def _movable(graph: fx.Graph) -> set[fx.Node]:
    """Parameters, and what is derived from them, if they give the same wherever they are read."""
    changing = {node.meta.get("tie") for node in graph.nodes if changed_in_place(node)}
    movable: set[fx.Node] = set()
    for node in graph.nodes:
        tie = node.meta.get("tie")
        if node.op == "get_attr" and "shape" in node.meta:
            if all("tie" in user.meta or user.target in _CONVOLUTIONS for user in node.users):
                movable.add(node)
        elif tie is not None and tie not in changing and movable.issuperset(node.all_input_nodes):
            is_changed = any(node in changed_in_place(user) for user in node.users)
            if repeats(node) and not is_changed:
                movable.add(node)
    return movable


def _only_reads(node: fx.Node, root: nn.Module) -> bool:
    """Whether an op surely changes nothing but buffers of its own, and takes any memory layout."""
    if node.op in ("placeholder", "get_attr", "output"):
        return True
    if node.op == "call_module":
        return "tie" not in node.meta and _is_of_torch(root.get_submodule(str(node.target)))
    if changed_in_place(node):
        return False
    if "tie" in node.meta:
        return repeats(node)
    if node.op == "call_method":
        return hasattr(torch.Tensor, str(node.target)) and node.target not in _OF_LAYOUT
    return node.target in _PURE


def _is_of_torch(layer: nn.Module) -> bool:
    """Whether a layer is one of torch's own, as torch made it, that doesn't work in place."""
    return (
        user_class(layer) in LAYERS
        and not (has_hooks(layer) or "forward" in layer.__dict__)
        and not (getattr(layer, "inplace", False) or getattr(layer, "max_norm", None))
    )


def _surely_changed(node: fx.Node) -> fx.Node | None:
    """The one node whose value an op changes; None if it may change others."""
    changed = changed_in_place(node)
    is_known = node.op == "call_method" or node.target in _PURE
    return changed[0] if is_known and len(changed) == 1 else None


def _has_own_memory(node: fx.Node, root: nn.Module) -> bool:
    """Whether a value is surely no view of another one of the graph."""
    if node.op == "call_module":
        layer = root.get_submodule(str(node.target))
        return user_class(layer) in _ALLOCATING_LAYERS and _is_of_torch(layer)
    if node.op == "call_function":
        return node.target in _ALLOCATING
    return node.op in ("get_attr", "placeholder")


# --- Graphs -----------------------------------------------------------------------------------


def _with_inputs(nodes: Iterable[fx.Node]) -> set[fx.Node]:
    """Nodes with all that they are computed from."""
    found: set[fx.Node] = set()
    pending = [*nodes]
    while pending:
        node = pending.pop()
        if node not in found:
            found.add(node)
            pending += node.all_input_nodes
    return found


def _provenance(node: fx.Node) -> dict[str, Any]:
    """What a node that stands for several has of one of them."""
    return {key: node.meta[key] for key in _PROVENANCE if key in node.meta}


_PROVENANCE = ("tie", "nn_module_stack", "stack_trace")
