"""Which traced values are surely tensors.

In: a node of a graph that is being traced. Out: whether its value can be nothing but one tensor,
whatever the inputs are. Called by `module_tracer.py`, to answer `isinstance` in traced code.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable

import torch
from torch import fx, nn

from fxtie.runtime.copied import user_class

# Layers that give one tensor for whatever they accept. Their subclasses may not.
LAYERS = frozenset(
    layer
    for module in (
        nn.modules.activation,
        nn.modules.batchnorm,
        nn.modules.conv,
        nn.modules.dropout,
        nn.modules.flatten,
        nn.modules.instancenorm,
        nn.modules.linear,
        nn.modules.normalization,
        nn.modules.padding,
        nn.modules.pixelshuffle,
        nn.modules.sparse,
        nn.modules.upsampling,
    )
    for layer in vars(module).values()
    if isinstance(layer, type) and issubclass(layer, nn.Module)
) - {nn.MultiheadAttention, nn.Identity}

_ARITHMETIC = frozenset(
    {operator.add, operator.sub, operator.mul, operator.truediv, operator.pow, operator.matmul}
    | {operator.neg, operator.iadd, operator.isub, operator.imul, operator.itruediv}
)


def is_tensor(node: fx.Node, root: nn.Module, assume: Callable[[fx.Node], bool]) -> bool:
    """Whether the value of `node`, in a graph of `root`, is surely a tensor.

    Args:
        assume: says of an argument of the graph whether to take it for a tensor.
    """
    if node.op == "placeholder":
        return assume(node)
    if node.op == "call_module":
        layer = _last(root.get_submodule(str(node.target)))
        if type(layer) is nn.Identity and isinstance(node.args[0], fx.Node):
            return is_tensor(node.args[0], root, assume)
        return user_class(layer) in LAYERS
    if node.op == "call_method":
        return _op_gives_tensor(str(node.target))
    if node.op == "call_function":
        if node.target in _ARITHMETIC:
            # `x += y` gives x, whatever y is.
            is_augmented = getattr(node.target, "__name__", "").startswith("i")
            inputs = node.args[:1] if is_augmented else node.all_input_nodes
            return any(isinstance(n, fx.Node) and is_tensor(n, root, assume) for n in inputs)
        name = getattr(node.target, "__name__", "")
        return getattr(node.target, "__module__", None) != "_operator" and _op_gives_tensor(name)
    return node.op == "get_attr"


def _last(layer: nn.Module) -> nn.Module:
    while type(layer) is nn.Sequential and len(layer):
        layer = layer[-1]
    return layer


@functools.lru_cache(maxsize=1024)
def _op_gives_tensor(name: str) -> bool:
    """Whether every overload of an aten operator returns one tensor."""
    schemas = torch._C._jit_get_schemas_for_operator(f"aten::{name}")
    return bool(schemas) and all(
        len(schema.returns) == 1 and str(schema.returns[0].type) == "Tensor" for schema in schemas
    )
