"""Small tools on `torch.fx.Graph`: as records for pickling and copying, comparing, in-place ops.

In: graphs. Out: graphs or plain data. Called by `capture.py`, `lowering.py`, `merging.py`,
`runtime/`, `export/`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

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
        (n.name, n.op, n.target, refer(n.args), refer(n.kwargs), n.type, dict(n.meta))
        for n in graph.nodes
    ]


def graph_from_records(records: Sequence[Record]) -> fx.Graph:
    """The graph that `graph_to_records` was given."""
    graph = fx.Graph()
    nodes: dict[str, fx.Node] = {}

    def resolve(value: Any) -> Any:
        return map_aggregate(value, lambda v: nodes[v.name] if type(v) is _Ref else v)

    for name, op, target, args, kwargs, type_expr, meta in records:
        node = graph.create_node(op, target, resolve(args), resolve(kwargs), name, type_expr)
        node.meta = dict(meta)
        nodes[name] = node
    return graph


def same_graph(a: fx.Graph, b: fx.Graph) -> bool:
    """Whether two graphs compute the same, node by node."""
    if len(a.nodes) != len(b.nodes):
        return False
    paired: Mapping[fx.Node, fx.Node] = dict(zip(a.nodes, b.nodes, strict=True))

    def translate(value: Any) -> Any:
        return map_arg(value, paired.__getitem__)

    return all(
        (x.op, x.target) == (y.op, y.target)
        and _equal(translate(x.args), y.args)
        and _equal(translate(x.kwargs), y.kwargs)
        for x, y in paired.items()
    )


def _equal(a: Any, b: Any) -> bool:
    # `1 == True == 1.0` in Python, but not as arguments.
    if isinstance(a, list | tuple):
        return isinstance(b, list | tuple) and len(a) == len(b) and all(map(_equal, a, b))
    if isinstance(a, dict):
        return isinstance(b, dict) and a.keys() == b.keys() and all(_equal(a[k], b[k]) for k in a)
    return type(a) is type(b) and bool(a == b)


def name_of_op(node: fx.Node) -> str:
    """The name of the method or function that a node calls."""
    return str(node.target if node.op == "call_method" else getattr(node.target, "__name__", ""))


def changed_in_place(node: fx.Node) -> list[fx.Node]:
    """The arguments that an op of torch's or Python's changes in place: none for most ops."""
    if node.op not in ("call_function", "call_method"):
        return []
    target = node.target
    if isinstance(target, torch._ops.OpOverload):
        arguments = target._schema.arguments
        written = [a.name for a in arguments if a.alias_info is not None and a.alias_info.is_write]
        given = {**dict(zip([a.name for a in arguments], node.args)), **node.kwargs}  # noqa: B905
        return _nodes([given.get(name) for name in written])
    name = name_of_op(node)
    is_of_torch = getattr(target, "__module__", None) != "_operator"  # and_, or_, not_
    code = getattr(target, "__code__", None)
    may_be_told_to = code is not None and "inplace" in code.co_varnames
    if (
        name in _IN_PLACE
        or (is_of_torch and name.endswith("_") and not name.endswith("__"))
        or node.kwargs.get("inplace")
        or (may_be_told_to and any(flag is True for flag in node.args[1:]))
    ):
        return _nodes([*node.args, *node.kwargs.values()][:1])
    return _nodes(node.kwargs.get("out"))


def _nodes(value: Any) -> list[fx.Node]:
    found: list[fx.Node] = []
    map_arg(value, found.append)
    return found


_AUGMENTED = frozenset(
    {"add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "matmul", "concat"}
    | {"and", "or", "xor", "lshift", "rshift"}
)
_IN_PLACE = frozenset(
    {"setitem", "__setitem__"}
    | {f"i{name}" for name in _AUGMENTED}
    | {f"__i{name}__" for name in _AUGMENTED}
)


def repeats(node: fx.Node) -> bool:
    """Whether an op gives the same when it runs again. Modules may not: of dropout, say."""
    if node.op == "call_method":
        return not _RANDOM.search(str(node.target))
    module = (getattr(node.target, "__module__", None) or "torch").partition(".")[0]
    is_known = node.op == "call_function" and module in ("torch", "_operator", "builtins", "math")
    return is_known and not _RANDOM.search(name_of_op(node))


_RANDOM = re.compile(
    r"rand|drop|(^|_)normal(_|$)|uniform_|bernoulli|binomial|poisson|multinomial|rrelu|gumbel"
    r"|standard_gamma|dirichlet|fractional"
)
