"""Rewrites of a captured graph, on request, that do in one op what is done in several.

In: the graph of a region. Out: the same, with one `torch._foreach_*` op for derivations that are
alike, or with one convolution for several that read one input. Called by `capture.py`.

Neither is always faster (docs/speed.md), so that neither is done unless it is asked for.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd

from fxtie.graphs import changed_in_place, name_of_op, repeats
from fxtie.runtime.copied import user_class

# --- Derivations ------------------------------------------------------------------------------

# Ops on one tensor, and maybe numbers, of which torch has a variant for lists of tensors.
_POINTWISE = frozenset(
    {"abs", "add", "ceil", "cos", "cosh", "div", "erf", "erfc", "exp", "expm1", "floor", "lgamma"}
    | {"log", "log10", "log1p", "log2", "mul", "neg", "pow", "reciprocal", "round", "rsqrt"}
    | {"sigmoid", "sign", "sin", "sinh", "sqrt", "sub", "tan", "tanh", "trunc"}
)


def derive_together(graph: fx.Graph) -> int:
    """Compute derived tensors by one `torch._foreach_*` op where their transforms are alike.

    These derivations move to the start of the graph, so that their results live from there on.

    Returns:
        How many were put together with others.
    """
    depths = _depths(graph)
    alike: dict[Any, list[fx.Node]] = {}
    for node, depth in depths.items():
        if (op := _foreach_op(node)) is not None:
            function, numbers = op
            alike.setdefault((depth, function, repr(numbers)), []).append(node)
    groups = {kind: nodes for kind, nodes in alike.items() if len(nodes) > 1}
    needed = _with_inputs(node for nodes in groups.values() for node in nodes)
    start = next(n for n in graph.nodes if n.op != "placeholder" and n not in needed)
    for node in sorted(needed, key=depths.__getitem__):  # none reads another of its depth
        start.prepend(node)
    for nodes in groups.values():
        op = _foreach_op(nodes[0])
        assert op is not None
        function, numbers = op
        with graph.inserting_after(nodes[-1]):
            together = graph.call_function(function, ([node.args[0] for node in nodes], *numbers))
        together.meta = _provenance(nodes[0])
        _replace(nodes, together, [(operator.getitem, i) for i in range(len(nodes))])
    return sum(map(len, groups.values()))


def _foreach_op(node: fx.Node) -> tuple[Callable[..., Any], tuple[Any, ...]] | None:
    """The op for lists that computes this node, and its arguments beside the list."""
    name, (first, *rest) = name_of_op(node), node.args or (None,)
    if name == "square":
        name, rest = "pow", [2]  # as torch computes it
    elif name == "truediv":
        name = "div"
    if name not in _POINTWISE or node.kwargs or not isinstance(first, fx.Node):
        return None
    if not all(type(argument) in (int, float) for argument in rest):
        return None
    return getattr(torch, f"_foreach_{name}"), tuple(rest)


# --- Convolutions -----------------------------------------------------------------------------

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
    depths = _depths(graph)
    groups: list[list[fx.Node]] = []
    ready: dict[Any, list[fx.Node]] = {}  # to be joined
    for node in graph.nodes:
        if (kind := _kind(node, depths)) is not None and _is_only_read(node, root):
            if kind not in ready:
                groups.append([])
                ready[kind] = groups[-1]
            ready[kind].append(node)
        for changed in _changed(node, root):
            ready = {
                kind: nodes
                for kind, nodes in ready.items()
                if changed not in depths and _is_apart(changed, _read(nodes[0])[0], root)
            }
    merged = [
        nodes
        for nodes in groups
        if len(nodes) > 1 and any("derived" in _read(node)[1].meta for node in nodes)
    ]
    for nodes in merged:
        _merge(graph, nodes)
    return sum(map(len, merged))


def _read(node: fx.Node) -> tuple[fx.Node, fx.Node, fx.Node | None]:
    """The input, the weight and the bias of a convolution."""
    arguments: dict[str, Any] = {**dict(zip(_ARGUMENTS, node.args)), **node.kwargs}  # noqa: B905
    return arguments["input"], arguments["weight"], arguments.get("bias")


def _kind(node: fx.Node, movable: Iterable[fx.Node]) -> Any:
    """Equal for convolutions that one can do; None for what can't be merged."""
    if node.op != "call_function" or node.target not in _CONVOLUTIONS:
        return None
    input, weight, bias = _read(node)
    if weight not in movable or not (bias is None or bias in movable):
        return None
    rest = {**dict(zip(_ARGUMENTS[3:], node.args[3:])), **node.kwargs}  # noqa: B905
    geometry = {name: rest[name] for name in _ARGUMENTS[3:] if name in rest}
    if geometry.pop("groups", 1) != 1:
        return None
    return node.target, input, weight.meta["shape"][1:], bias is None, str(geometry)


def _is_only_read(node: fx.Node, root: nn.Module) -> bool:
    """Whether a slice can take the place of a value.

    Autograd takes a change of one slice for a change of them all, and `view` wants no gaps.
    """
    return not any(
        name_of_op(user) in ("view", "view_as") or {node, user}.intersection(_changed(user, root))
        for user in node.users
    )


def _merge(graph: fx.Graph, nodes: list[fx.Node]) -> None:
    first = nodes[0]
    input, _, bias = _read(first)
    filters = [_read(node)[1] for node in nodes]
    biases = [b for node in nodes if (b := _read(node)[2]) is not None]
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
        parts.append((torch.narrow, channels, start, length))
        start += length
    _replace(nodes, together, parts)


# --- What may be moved ------------------------------------------------------------------------


def _depths(graph: fx.Graph) -> dict[fx.Node, int]:
    """Stored tensors and derived ones that give the same wherever they are read.

    By node, with the number of derivations behind it.
    """
    changing = {n.meta.get("tie") for n in graph.nodes if changed_in_place(n) is not None}
    depths: dict[fx.Node, int] = {}
    for node in graph.nodes:
        tie = node.meta.get("tie")
        if node.op == "get_attr" and "shape" in node.meta:
            if all("tie" in user.meta or user.target in _READERS for user in node.users):
                depths[node] = 0
        elif tie is not None and depths.keys() >= set(node.all_input_nodes):
            is_changed = any(changed_in_place(user) is node for user in node.users)
            if tie in changing or is_changed or not repeats(node):
                continue
            depths[node] = 1 + max(map(depths.__getitem__, node.all_input_nodes), default=0)
    return depths


_READERS = frozenset({*_CONVOLUTIONS, F.linear})


def _changed(node: fx.Node, root: nn.Module) -> Sequence[Any]:
    """The nodes whose values an op may change; the op itself, if these are unknown."""
    if "tie" in node.meta:
        return ()
    if node.op == "call_module":
        layers = [*root.get_submodule(str(node.target)).modules()]
        if not all(user_class(layer).__module__.startswith("torch.nn.") for layer in layers):
            return (node,)
        return node.args if any(getattr(layer, "inplace", False) for layer in layers) else ()
    if node.op == "call_function":
        package = (getattr(node.target, "__module__", None) or "torch").partition(".")[0]
        if package not in ("torch", "_operator", "builtins", "math"):
            return (node,)
    changed = changed_in_place(node)
    return () if changed is None else (changed,)


def _is_apart(changed: fx.Node, other: fx.Node, root: nn.Module) -> bool:
    """Whether a change of one value surely leaves another as it is."""
    if changed is other or changed.op == other.op == "placeholder":
        return False
    return _has_own_memory(changed, root) and _has_own_memory(other, root)


def _has_own_memory(node: fx.Node, root: nn.Module) -> bool:
    """Whether a value is surely no view of another one of the graph."""
    if node.op == "call_module":
        return isinstance(root.get_submodule(str(node.target)), _ConvNd | _NormBase | nn.Linear)
    if node.op == "call_function":
        return node.target in _ALLOCATING
    return node.op in ("placeholder", "get_attr") and "derived" not in node.meta


_ALLOCATING = frozenset({*_READERS, F.batch_norm, torch.cat, operator.add, operator.mul})


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


def _replace(nodes: list[fx.Node], together: fx.Node, parts: Sequence[tuple[Any, ...]]) -> None:
    """Let several nodes read their parts of one value instead of computing them."""
    last = together
    for node, (op, *arguments) in zip(nodes, parts, strict=True):
        node.op, node.target = "call_function", op
        node.args, node.kwargs = (together, *arguments), {}
        last.append(node)
        last = node
