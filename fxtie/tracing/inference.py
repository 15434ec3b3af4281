"""What is sure about traced values: which are tensors, and which may be views of others."""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Iterator

from torch import fx, nn

from fxtie._torch import schemas_of
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

_ARITHMETIC = frozenset(
    {operator.add, operator.sub, operator.mul, operator.truediv, operator.pow, operator.matmul}
    | {operator.neg, operator.iadd, operator.isub, operator.imul, operator.itruediv}
)


def is_tensor(
    node: fx.Node, layer: Callable[[str], nn.Module], assume: Callable[[fx.Node], bool]
) -> bool:
    """Whether the value of `node` is surely one tensor, whatever the inputs are.

    Args:
        layer: gives the module of a name.
        assume: says of an argument of the graph whether to take it for a tensor.
    """

    def known(value: object) -> bool:
        return isinstance(value, fx.Node) and is_tensor(value, layer, assume)

    if node.op == "placeholder":
        return not str(node.target).startswith("*") and assume(node)
    if node.op == "call_module":
        module = layer(str(node.target))
        while type(module) is nn.Sequential and len(module):
            module = module[-1]
        if type(module) is nn.Identity:
            return known(node.args[0])
        return user_class(module) in LAYERS
    if node.op == "call_method":
        return known(node.args[0]) and _op_gives_tensor(str(node.target))
    if node.op == "call_function":
        if node.target in _ARITHMETIC:
            # `x += y` gives x, whatever y is.
            is_augmented = getattr(node.target, "__name__", "").startswith("i")
            return any(map(known, node.args[:1] if is_augmented else node.all_input_nodes))
        is_of_torch = str(getattr(node.target, "__module__", "torch")).startswith("torch")
        return is_of_torch and _op_gives_tensor(getattr(node.target, "__name__", ""))
    return node.op == "get_attr"


@functools.lru_cache(maxsize=1024)
def _op_gives_tensor(name: str) -> bool:
    """Whether every overload of an aten operator returns one tensor."""
    schemas = schemas_of(name)
    return bool(schemas) and all(
        len(schema.returns) == 1 and str(schema.returns[0].type) == "Tensor" for schema in schemas
    )


@functools.lru_cache(maxsize=1024)
def _op_gives_new_tensor(name: str) -> bool:
    """Whether no overload of an aten operator returns one of its arguments, or a view of one."""
    schemas = schemas_of(name)
    returns = [
        value
        for schema in schemas
        if not any(argument.is_out for argument in schema.arguments)
        for value in schema.returns
    ]
    return bool(returns) and all(value.alias_info is None for value in returns)


def aliases(node: fx.Node) -> Iterator[fx.Node]:
    """The nodes whose storage the value of `node` may share: inputs, stored and derived tensors."""
    pending, seen = [node], set()
    while pending:
        node = pending.pop()
        if node in seen:
            continue
        seen.add(node)
        name = str(
            node.target if node.op == "call_method" else getattr(node.target, "__name__", "")
        )
        if "tie" in node.meta or node.op in ("placeholder", "get_attr"):
            yield node
        elif node.op == "call_module" or not _op_gives_new_tensor(name):
            pending += node.all_input_nodes
