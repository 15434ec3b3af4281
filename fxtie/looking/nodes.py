"""A node of a graph as plain data: what a table or a picture says of it."""

from __future__ import annotations

import operator
import re
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn

from fxtie._torch import OpOverload
from fxtie.looking.matching import arguments_text


@dataclass(frozen=True)
class NodeInfo:
    """What there is to say of a node."""

    op: str
    name: str  # unique in its graph
    target: str  # what it calls or reads, as one would write it
    args: str
    layer: str  # the dotted name of the layer that it belongs to
    inputs: tuple[str, ...] = ()  # names of the nodes that it reads
    tie: str = ""  # the target tensor that it derives, if it is part of a tie
    shape: str = ""  # shape of its value, where known; empty otherwise
    dtype: str = ""  # dtype of its value, where known
    module: str = ""  # the module that it calls, as `print` shows it without what is inside
    parameters: int = 0  # number of parameters of the module that it calls, or tensor that it reads
    source: str = ""  # the user's line that it comes from, and the file


def node_info(node: fx.Node, owner: nn.Module, layer: str, value: Any = None) -> NodeInfo:
    """Describe a node of a graph of `owner`, in a layer that `matching.layer_of` tells.

    `value` is what it gives, or a fake tensor like that; otherwise its `meta` may tell.
    """
    args = [arguments_text(arg, str) for arg in node.args]
    args += [f"{key}={arguments_text(value, str)}" for key, value in node.kwargs.items()]
    if value is None:
        value = node.meta.get("val", node.meta.get("tensor_meta"))
    module, parameters = "", 0
    if node.op in ("call_module", "get_attr"):
        found = _resolve(owner, str(node.target))
        if isinstance(found, nn.Module):
            module = f"{type(found).__name__}({found.extra_repr()})"
            parameters = sum(p.numel() for p in found.parameters())
        elif isinstance(found, torch.Tensor):
            value = found
            parameters = found.numel() if isinstance(found, nn.Parameter) else 0
    shape, dtype = getattr(value, "shape", None), getattr(value, "dtype", None)
    return NodeInfo(
        node.op,
        node.name,
        target_text(node),
        ", ".join(args),
        layer,
        tuple(n.name for n in node.all_input_nodes),
        str(node.meta.get("tie", "")),
        "" if shape is None else f"({', '.join(map(str, shape))})",
        "" if dtype is None else str(dtype).removeprefix("torch."),
        module,
        parameters,
        source_line(node),
    )


def target_text(node: fx.Node) -> str:
    """A node's target as one would write it: `torch.square`, `F.conv2d`, `conv_1.weight`."""
    target: Any = node.meta.get("reads") or node.target
    if isinstance(target, str):
        return target
    if isinstance(target, OpOverload):
        return str(target)
    name = str(getattr(target, "__name__", type(target).__name__))
    for short, namespace in (("F", torch.nn.functional), ("torch", torch)):
        if getattr(namespace, name, None) is target:
            return f"{short}.{name}"
    module = getattr(target, "__module__", None) or ""
    return f"operator.{name}" if module == "_operator" else name


def source_line(node: fx.Node) -> str:
    """The user's innermost line that a node comes from: `out = self.conv2(out)  # resnet.py:96`."""
    frames = re.findall(
        r'File "(.*?)", line (\d+), in [^\n]*\n?([^\n]*)', node.meta.get("stack_trace") or ""
    )
    if not frames:
        return ""
    path, line, code = frames[-1]
    file = re.split(r"[\\/]", path)[-1]
    return f"{code.strip()}  # {file}:{line}".strip()


def _resolve(owner: nn.Module, path: str) -> Any:
    """What a dotted name refers to; None if it isn't there."""
    try:
        return operator.attrgetter(path)(owner)
    except AttributeError:
        return None
