"""What is sure about traced values: which are tensors, and which may be views of others."""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Iterator
from typing import Any

from torch import fx, nn

from fxtie._torch import OpOverload
from fxtie.tracing.graphs import overloads_of
from fxtie.tracing.operators import BINARY, IN_PLACE, UNARY
from fxtie.tracing.source_code import package_of
from fxtie.tracing.user_class import user_class

# Layers that give one tensor for whatever they accept. Their subclasses may not.
LAYERS = frozenset(
    layer
    for module in (
        *(nn.modules.activation, nn.modules.batchnorm, nn.modules.conv, nn.modules.dropout),
        *(nn.modules.flatten, nn.modules.instancenorm, nn.modules.linear, nn.modules.normalization),
        *(nn.modules.padding, nn.modules.pixelshuffle, nn.modules.sparse, nn.modules.upsampling),
    )
    for layer in vars(module).values()
    if isinstance(layer, type) and issubclass(layer, nn.Module)
) - {nn.MultiheadAttention, nn.Identity}

_AUGMENTED = frozenset(IN_PLACE.values())
_ARITHMETIC = _AUGMENTED.union(BINARY.values(), UNARY.values()) - {operator.mod}  # `text % x`


def is_tensor(
    node: fx.Node, layer: Callable[[str], nn.Module], assume: Callable[[fx.Node], bool]
) -> bool:
    """Whether the value of `node` is surely one tensor, whatever the inputs are.

    Args:
        node: of a graph.
        layer: gives the module of a name.
        assume: says of an argument of the graph, or of what it reads, whether to take it for a
            tensor.
    """

    def known(value: object) -> bool:
        return isinstance(value, fx.Node) and is_tensor(value, layer, assume)

    if node.op in ("placeholder", "get_attr"):
        return not str(node.target).startswith("*") and assume(node)
    if node.op == "call_module":
        name = str(node.target)
        module = layer(name)
        while type(module) is nn.Sequential and len(module):
            name = f"{name}.{next(reversed(module._modules))}"
            module = layer(name)
        if type(module) is nn.Identity:
            return known(node.args[0])
        return user_class(module) in LAYERS
    if node.op == "call_method":
        return known(node.args[0]) and _gives_tensor(overloads_of(node))
    if node.op == "call_function":
        if node.target in _ARITHMETIC:
            # `x += y` gives x, whatever y is.
            return any(map(known, node.args[: 1 if node.target in _AUGMENTED else None]))
        is_of_torch = package_of(node.target) in ("torch", "")
        return is_of_torch and _gives_tensor(overloads_of(node))
    return False


@functools.lru_cache(maxsize=1024)
def _gives_tensor(ops: tuple[OpOverload[..., Any], ...]) -> bool:
    """Whether every overload of an operator returns one tensor."""
    returns = [op._schema.returns for op in ops]
    return bool(returns) and all([str(value.type) for value in r] == ["Tensor"] for r in returns)


@functools.lru_cache(maxsize=1024)
def _gives_new_tensor(ops: tuple[OpOverload[..., Any], ...]) -> bool:
    """Whether no overload of an operator returns one of its arguments, or a view of one."""
    schemas = [op._schema for op in ops]
    schemas = [schema for schema in schemas if not any(a.is_out for a in schema.arguments)]
    returns = [value for schema in schemas for value in schema.returns]
    return bool(returns) and all(value.alias_info is None for value in returns)


def aliases(node: fx.Node) -> Iterator[fx.Node]:
    """The nodes whose storage the value of `node` may share: inputs, stored and derived tensors."""
    pending, seen = [node], set()
    while pending:
        node = pending.pop()
        if node in seen:
            continue
        seen.add(node)
        if "tie" in node.meta or node.op in ("placeholder", "get_attr"):
            yield node
        elif node.op == "call_module" or not _gives_new_tensor(overloads_of(node)):
            pending += node.all_input_nodes
