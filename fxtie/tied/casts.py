"""Under autocast, a derived tensor is cast once, not once for each op that uses it.

Autocast has a cache of casts, but for Parameters only: a derived tensor is none. As with a
Parameter, the gradients of the uses then add up in the low precision.
"""

from __future__ import annotations

import operator

import torch
import torch.nn.functional as F
from torch import fx
from torch.overrides import handle_torch_function, has_torch_function_unary

from fxtie.tied.call_cache import current_call
from fxtie.tied.recompute import autocast_dtype


def cast_once(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor as autocast casts it for a matrix product; outside of autocast, the tensor itself.

    See https://docs.pytorch.org/docs/stable/amp.html#autocast-op-reference. A tensor of double
    precision stays as it is there, and so it does here.
    """
    if has_torch_function_unary(tensor):  # a torch.fx trace of the generated code records the call
        return handle_torch_function(cast_once, (tensor,), tensor)
    dtype = autocast_dtype(tensor.device)
    if dtype is None or not tensor.is_floating_point() or tensor.dtype is torch.float64:
        return tensor
    if tensor.is_leaf and tensor.requires_grad and not tensor._is_view():
        return tensor  # inside of derive_once: autocast remembers the cast of these by itself
    call = current_call()
    return tensor.to(dtype) if call is None else call.cast(tensor, dtype)


def share_casts(graph: fx.Graph, at_least: int = 2) -> None:
    """Let the low-precision uses of a derived tensor, if so many, have one cast in common."""
    for node in list(graph.nodes):
        if "derived" not in node.meta:
            continue
        users = {user for user in node.users if _runs_in_low_precision(user)}
        if len(users) >= at_least:
            with graph.inserting_after(node):
                cast = graph.create_node(
                    "call_function", cast_once, (node,), name=f"{node.name}_cast"
                )
            cast.meta = {key: value for key, value in node.meta.items() if key != "derived"}
            for user in users:
                user.replace_input_with(node, cast)


def without_casts(graph: fx.Graph) -> fx.Graph:
    """A graph to be shown, in which derived tensors go to their uses as they are."""
    if not graph.find_nodes(op="call_function", target=cast_once):
        return graph
    values: dict[fx.Node, fx.Node] = {}
    copied = fx.Graph()
    for node in graph.nodes:
        if node.target is cast_once:
            values[node] = values[node.args[0]]
        else:
            values[node] = copied.node_copy(node, values.__getitem__)
    return copied


def _runs_in_low_precision(node: fx.Node) -> bool:
    if node.op == "call_method":
        return node.target in _METHODS
    return node.op == "call_function" and node.target in _FUNCTIONS


_METHODS = frozenset({"matmul", "mm", "bmm", "addmm", "addbmm", "baddbmm", "__matmul__"})
_FUNCTIONS = frozenset(
    {
        F.linear,
        *(F.conv1d, F.conv2d, F.conv3d),
        *(F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d),
        *(torch.matmul, torch.mm, torch.bmm, torch.addmm, torch.addbmm, torch.baddbmm),
        operator.matmul,
    }
)
