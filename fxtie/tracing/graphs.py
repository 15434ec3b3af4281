"""Small tools on `torch.fx.Graph`: as records for pickling and copying, comparing, in-place ops.

In: graphs. Out: graphs or plain data.
"""

from __future__ import annotations

import functools
import importlib
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import BuiltinFunctionType, CodeType, FunctionType, MethodDescriptorType
from typing import Any

import torch
from torch import fx

from fxtie._torch import TENSOR_METHODS, OpOverload, OpOverloadPacket
from fxtie.tracing.guards import ATOMS
from fxtie.tracing.operators import IN_PLACE
from fxtie.tracing.source_code import names_in

# The declared types of these two know only nodes and constants.
map_arg: Any = fx.node.map_arg
map_aggregate: Any = fx.node.map_aggregate


@dataclass(frozen=True)
class _Ref:
    """Stands for a node among a record's arguments."""

    name: str


Record = tuple[str, str, Any, Any, Any, Any, dict[str, Any]]


def graph_to_records(graph: fx.Graph) -> list[Record]:
    """One plain tuple per node, in order: what pickle and deepcopy can take.

    A `GraphModule` pickles as code that is traced again, which loses `node.meta` and turns
    recorded factory calls into constants; records keep both.
    """

    def refer(value: Any) -> Any:
        return map_arg(value, lambda node: _Ref(node.name))

    return [
        (
            n.name,
            n.op,
            _by_reference(n.target),
            refer(n.args),
            refer(n.kwargs),
            n.type,
            dict(n.meta),
        )
        for n in graph.nodes
    ]


def graph_from_records(records: Sequence[Record]) -> fx.Graph:
    """The graph that `graph_to_records` was given."""
    graph = fx.Graph()
    nodes: dict[str, fx.Node] = {}

    def resolve(value: Any) -> Any:
        return map_aggregate(value, lambda v: nodes[v.name] if type(v) is _Ref else v)

    for name, op, target, args, kwargs, type_expr, meta in records:
        if isinstance(target, _Function):
            target = target.function
        node = graph.create_node(op, target, resolve(args), resolve(kwargs), name, type_expr)
        node.meta = dict(meta)
        nodes[name] = node
    return graph


class _Function:
    """A function by reference: copied as it is, pickled by the name under which its module has it.

    By itself, pickle does not find functions that another one has made, such as `F.max_pool2d`.
    """

    def __init__(self, function: Any) -> None:
        self.function = function

    def __deepcopy__(self, memo: dict[int, Any]) -> _Function:
        return self

    def __reduce__(self) -> Any:
        module, name = self.function.__module__, self.function.__name__
        if getattr(sys.modules.get(module), name, None) is self.function:
            return _function_named, (module, name)
        return _Function, (self.function,)  # by pickle's own means


def _function_named(module: str, name: str) -> _Function:
    return _Function(getattr(importlib.import_module(module), name))


def _by_reference(target: Any) -> Any:
    return _Function(target) if isinstance(target, FunctionType) else target


def same_graph(a: fx.Graph, b: fx.Graph) -> bool:
    """Whether two graphs compute the same, node by node."""
    if len(a.nodes) != len(b.nodes):
        return False
    paired = dict(zip(a.nodes, b.nodes, strict=True))
    return all(
        (x.op, x.target) == (y.op, y.target)
        and same_arguments((x.args, x.kwargs), (y.args, y.kwargs), lambda m, n: paired[m] is n)
        for x, y in paired.items()
    )


def same_arguments(a: Any, b: Any, same_node: Callable[[fx.Node, fx.Node], bool]) -> bool:
    """Whether arguments of two nodes are equal, up to nodes that correspond by `same_node`."""

    def same(a: Any, b: Any) -> bool:
        if a is b and type(a) in ATOMS:  # most are
            return True
        if isinstance(a, fx.Node) or isinstance(b, fx.Node):
            return isinstance(a, fx.Node) and isinstance(b, fx.Node) and same_node(a, b)
        if isinstance(a, list | tuple) and isinstance(b, list | tuple):  # fx has its own lists
            return len(a) == len(b) and all(map(same, a, b))
        if isinstance(a, dict) and isinstance(b, dict):
            return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
        if isinstance(a, slice) and isinstance(b, slice):
            return same((a.start, a.stop, a.step), (b.start, b.stop, b.step))
        # By text: `1 == True == 1.0` and `0.0 == -0.0` in Python, but not as arguments.
        return type(a) is type(b) and repr(a) == repr(b)

    return same(a, b)


def name_of_op(node: fx.Node) -> str:
    """The name of the method or function that a node calls."""
    return str(node.target if node.op == "call_method" else getattr(node.target, "__name__", ""))


def changed_in_place(node: fx.Node) -> list[fx.Node]:
    """The arguments that an op of torch's or Python's changes in place: none for most ops."""
    if node.op not in ("call_function", "call_method"):
        return []
    target = node.target
    name = name_of_op(node)
    code = getattr(target, "__code__", None)
    if code is None and name.partition(".")[0].endswith(("batch_norm", "instance_norm")):
        return _nodes(_running(*node.args, **node.kwargs))  # of which no schema tells
    if isinstance(target, OpOverload | OpOverloadPacket):
        return _nodes([value for op in overloads_of(node) for value in _written(op, node)])
    is_of_torch = getattr(target, "__module__", None) != "_operator"  # and_, or_, not_
    may_be_told_to = code is not None and "inplace" in code.co_varnames
    if (
        name in _IN_PLACE
        or (is_of_torch and name.endswith("_") and not name.endswith("__"))
        or node.kwargs.get("inplace")
        or (may_be_told_to and any(flag is True for flag in node.args[1:]))
    ):
        return _nodes([*node.args, *node.kwargs.values()][:1])
    if name in _UPDATING and isinstance(code, CodeType):
        return _nodes(_UPDATING[name](*node.args, **node.kwargs))
    return _nodes(node.kwargs.get("out"))


def changes_shape(node: fx.Node) -> bool:
    """Whether an op gives a tensor another shape, or another storage, in place."""
    return _changes_shape(_operator_of(node))


@functools.cache
def _changes_shape(operator: Any) -> bool:
    return any(torch.Tag.inplace_view in op.tags for op in overloads(operator))


def _written(op: OpOverload[..., Any], node: fx.Node) -> list[Any]:
    """The arguments of a call of an operator that it says to change."""
    arguments = op._schema.arguments
    given = {**dict(zip([a.name for a in arguments], node.args)), **node.kwargs}  # noqa: B905
    changed = [a.name for a in arguments if a.alias_info is not None and a.alias_info.is_write]
    return [given.get(name) for name in changed]


def _statistics(
    input: Any, running_mean: Any = None, running_var: Any = None, *_: Any, **__: Any
) -> Any:
    return [running_mean, running_var]


def _running(
    input: Any,
    weight: Any = None,
    bias: Any = None,
    running_mean: Any = None,
    running_var: Any = None,
    training: Any = True,
    *_: Any,
    **__: Any,
) -> Any:
    """The statistics that a norm of torch's in C updates, unless it is told to use them."""
    return None if training is False else [running_mean, running_var]


def _renormalized(
    input: Any, weight: Any, _: Any = None, max_norm: Any = None, *__: Any, **___: Any
) -> Any:
    return None if max_norm is None else weight


_UPDATING: dict[str, Callable[..., Any]] = {
    "batch_norm": _statistics,
    "instance_norm": _statistics,
    "embedding": _renormalized,
    "embedding_bag": _renormalized,
}
"""Functions of `torch.nn.functional` that change arguments without saying so, and which."""


def _nodes(value: Any) -> list[fx.Node]:
    found: list[fx.Node] = []
    map_arg(value, found.append)
    return found


_AUGMENTED = {"setitem", "iconcat", *(function.__name__ for function in IN_PLACE.values())}
_IN_PLACE = frozenset(_AUGMENTED | {f"__{name}__" for name in _AUGMENTED})


# -- randomness ----------------------------------------------------------------------------------


def repeats(node: fx.Node) -> bool:
    """Whether an op is known to give the same when it runs again. Modules are not: dropout, say."""
    if node.op == "call_method":
        name = str(node.target)
        # Casts (`w.float()`) and operators (`__add__`) have no aten op of their name.
        is_cast = isinstance(getattr(torch, name, None), torch.dtype)
        is_operator = name.startswith("__") and name.endswith("__")
        return is_cast or is_operator or _is_repeatable(getattr(torch.Tensor, name, None))
    return (
        node.op == "call_function"
        and isinstance(node.target, _HASHABLE)
        and _is_repeatable(node.target)
    )


@functools.cache
def _is_repeatable(function: Any) -> bool:
    if isinstance(function, OpOverload):
        function = function.overloadpacket
    if isinstance(function, OpOverloadPacket):
        is_aten = function._qualified_op_name.startswith("aten::")
        return is_aten and not _is_random(function.__name__)
    module = getattr(function, "__module__", None) or ""
    if module.partition(".")[0] in _PURE or function in _FACTS:
        return True
    if isinstance(function, FunctionType):
        return module in _FUNCTIONAL and not _uses_random(function)
    owner = getattr(function, "__objclass__", None)
    is_of_torch = owner is TENSOR_METHODS or module.partition(".")[0] == "torch"
    name = getattr(function, "__name__", "")
    return is_of_torch and bool(overloads(name)) and not _is_random(name)


def overloads_of(node: fx.Node) -> tuple[OpOverload[..., Any], ...]:
    """The ops of which a node may call one; none where torch has none."""
    return overloads(_operator_of(node))


def _operator_of(node: fx.Node) -> Any:
    """The op or the packet of ops that a node calls, else the name of what it calls."""
    is_op = isinstance(node.target, OpOverload | OpOverloadPacket)
    return node.target if is_op else name_of_op(node)


@functools.cache
def overloads(name: Any) -> tuple[OpOverload[..., Any], ...]:
    """The ops of a packet, or the aten ops of a name; none where torch has none."""
    if isinstance(name, OpOverload):
        return (name,)
    packet = name if isinstance(name, OpOverloadPacket) else getattr(torch.ops.aten, name, None)
    if not isinstance(packet, OpOverloadPacket):
        return ()
    names = packet.overloads()  # type: ignore[no-untyped-call]
    return tuple(getattr(packet, overload) for overload in names)


def _is_random(name: str) -> bool:
    return any(torch.Tag.nondeterministic_seeded in op.tags for op in overloads(name))


def _uses_random(function: FunctionType) -> bool:
    """Whether a Python function of torch, or one that it may call, names a random op."""
    seen: set[FunctionType] = set()
    pending = [function]
    while pending:
        function = pending.pop()
        if function in seen:
            continue
        seen.add(function)
        names = names_in(function.__code__)
        if any(map(_is_random, names)):
            return True
        spaces = (function.__globals__, *map(vars, (torch, torch.nn.functional, torch.Tensor)))
        found = [space.get(name) for space in spaces for name in names]
        found += [cell.cell_contents for cell in function.__closure__ or ()]
        pending += [
            value
            for value in found
            if isinstance(value, FunctionType) and (value.__module__ or "").startswith("torch.")
        ]
    return False


_HASHABLE = (
    FunctionType,
    BuiltinFunctionType,
    MethodDescriptorType,
    type,
    OpOverload,
    OpOverloadPacket,
)
# Not the rest of torch: `torch.distributed` has functions that wait for other processes.
_FUNCTIONAL = frozenset({"torch.functional", "torch.nn.functional", "torch._tensor", "torch"})
_PURE = frozenset({"_operator", "builtins", "math", "einops"})
_FACTS = frozenset({torch.Size, torch.device, torch.finfo, torch.iinfo})
