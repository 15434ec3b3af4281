"""What is sure about traced values: which are tensors, and which may be views of others."""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import fx, nn

from fxtie._torch import OpOverload, OpOverloadPacket
from fxtie.tracing.graphs import name_of_op, overloads_of
from fxtie.tracing.guards import has_hooks
from fxtie.tracing.operators import BINARY, IN_PLACE, UNARY
from fxtie.tracing.source_code import package_of
from fxtie.tracing.user_class import user_class


def _layers_of(*modules: Any) -> frozenset[type]:
    """The layers that some Python modules of torch define."""
    found = (value for module in modules for value in vars(module).values())
    layers = {v for v in found if isinstance(v, type) and issubclass(v, nn.Module)}
    return frozenset(layers - {nn.MultiheadAttention, nn.Identity})


_MAKING = _layers_of(
    *(nn.modules.batchnorm, nn.modules.conv, nn.modules.instancenorm, nn.modules.linear),
    *(nn.modules.normalization, nn.modules.sparse),
)
"""Layers that make a new tensor, which is no view of their input."""

# Layers that give one tensor for whatever they accept. Their subclasses may not.
LAYERS = _MAKING | _layers_of(
    *(nn.modules.activation, nn.modules.dropout, nn.modules.flatten, nn.modules.padding),
    nn.modules.pooling,
    *(nn.modules.pixelshuffle, nn.modules.upsampling),
)

_AUGMENTED = frozenset(IN_PLACE.values())
_ARITHMETIC = _AUGMENTED.union(BINARY.values(), UNARY.values()) - {operator.mod}  # `text % x`


def is_tensor(
    node: fx.Node,
    layer: Callable[[str], nn.Module],
    assume: Callable[[fx.Node], bool],
    look: Callable[[fx.Node], bool] = lambda node: False,
) -> bool:
    """Whether the value of `node` is surely one tensor, whatever the inputs are.

    Args:
        node: of a graph.
        layer: gives the module of a name.
        assume: says of an argument of the graph, or of what it reads, whether to take it for a
            tensor.
        look: says of a call of a module of the user's whether that gives a tensor.
    """

    def known(value: object) -> bool:
        return isinstance(value, fx.Node) and is_tensor(value, layer, assume, look)

    if node.op in ("placeholder", "get_attr"):
        return not str(node.target).startswith("*") and assume(node)
    if node.op == "call_module":
        name = str(node.target)
        module = layer(name)
        while user_class(module) is nn.Sequential and module._modules:
            name = f"{name}.{next(reversed(module._modules))}"
            module = layer(name)
        if user_class(module) is nn.Identity:
            return known(node.args[0])
        gives_more = getattr(module, "return_indices", False)
        return (user_class(module) in LAYERS and not gives_more) or look(node)
    if node.op == "call_method":
        # `x.float()` is no operator of its own.
        is_cast = isinstance(getattr(torch, str(node.target), None), torch.dtype)
        return (is_cast or _gives_tensor(overloads_of(node))) and known(node.args[0])
    if node.op == "call_function":
        if node.target in _ARITHMETIC:
            # `x += y` gives x, whatever y is.
            return any(map(known, node.args[: 1 if node.target in _AUGMENTED else None]))
        if package_of(node.target) == "einops":  # what it gives is of the type of what it gets
            return name_of_op(node) in _OF_EINOPS and known(node.args[0])
        ops = overloads_of(node)
        if isinstance(node.target, OpOverloadPacket) and not all(map(takes_tensor, ops)):
            return False  # it can be called with numbers
        return package_of(node.target) in ("torch", "") and _gives_tensor(ops)
    return False


_OF_EINOPS = frozenset({"rearrange", "reduce", "repeat", "einsum"})
"""Those that give one tensor."""


def takes_tensor(op: OpOverload[..., Any]) -> bool:
    """Whether one of the arguments of an op is a tensor, or a list of some."""
    return any("Tensor" in str(argument.type) for argument in op._schema.arguments)


@functools.lru_cache(maxsize=1024)
def _gives_tensor(ops: tuple[OpOverload[..., Any], ...]) -> bool:
    """Whether every overload of an operator that takes a tensor returns one.

    Python's functions call no others: `aten::tanh.float` is TorchScript's.
    """
    returns = [op._schema.returns for op in ops if takes_tensor(op)]
    return bool(returns) and all([str(value.type) for value in r] == ["Tensor"] for r in returns)


@functools.lru_cache(maxsize=1024)
def _gives_new_tensor(ops: tuple[OpOverload[..., Any], ...]) -> bool:
    """Whether no overload of an operator returns one of its arguments, or a view of one."""
    schemas = [op._schema for op in ops]
    schemas = [schema for schema in schemas if not any(a.is_out for a in schema.arguments)]
    returns = [value for schema in schemas for value in schema.returns]
    return bool(returns) and all(value.alias_info is None for value in returns)


class Aliases:
    """Which nodes may share their storage with others: inputs, stored and derived tensors."""

    def __init__(self, root: nn.Module) -> None:
        self._root = root
        self._known: dict[fx.Node, frozenset[fx.Node]] = {}

    def of(self, nodes: Iterable[fx.Node]) -> frozenset[fx.Node]:
        """Those with which some nodes may share their storage."""
        return frozenset().union(*map(self._of, nodes))

    def _of(self, node: fx.Node) -> frozenset[fx.Node]:
        if node not in self._known:
            found: set[fx.Node] = set()
            pending, seen = [node], set()
            while pending:
                current = pending.pop()
                if current in self._known:
                    found |= self._known[current]
                elif "tie" in current.meta or current.op in ("placeholder", "get_attr"):
                    found.add(current)
                elif current not in seen and not self._is_new(current):
                    pending += current.all_input_nodes
                seen.add(current)
            self._known[node] = frozenset(found)
        return self._known[node]

    def _is_new(self, node: fx.Node) -> bool:
        """Whether a node gives a tensor that is no view of one that it is given."""
        if node.op == "call_module":
            layer = self._root.get_submodule(str(node.target))
            return user_class(layer) in _MAKING and not has_hooks(layer)
        if node.op == "call_function" and package_of(node.target) not in _OF_TORCH:
            return False  # it may only be named as an op of torch's
        if node.target in (operator.add, operator.mul) and not is_tensor(node, _unknown, _is_read):
            return False  # lists may be joined
        return _gives_new_tensor(overloads_of(node))


_OF_TORCH = ("torch", "", "_operator")


def _unknown(name: str) -> nn.Module:
    return nn.Module()


def _is_read(node: fx.Node) -> bool:
    return node.op == "get_attr"
