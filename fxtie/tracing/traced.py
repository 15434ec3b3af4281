"""Values that are known only when the graph runs.

They answer no question: asking one for its truth, length or text stops the trace.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NoReturn

import torch
from torch import fx

from fxtie.tracing.stops import UNKNOWN, Stop


class Traced:
    """The value of a node.

    Attributes:
        node: the node.
        shape_known: the shape, of stored and derived tensors, and of all values in a transform.
    """

    __slots__ = ("__weakref__", "node", "shape_known")

    def __init__(self, node: fx.Node, shape: torch.Size | None = None) -> None:
        self.node = node
        self.shape_known = shape


def _refuse(value: Traced, *_: Any) -> NoReturn:
    raise Stop(f"needs the number or the text of {UNKNOWN}")


# The gate records operations that a graph can hold. Python itself runs into these.
for _name in (
    *("bool", "len", "iter", "contains", "getitem", "hash", "repr", "str", "format", "bytes"),
    *("int", "float", "complex", "index", "round", "eq", "ne", "lt", "gt", "le", "ge"),
):
    setattr(Traced, f"__{_name}__", _refuse)


class Method:
    """A method of a traced value, about to be called."""

    __slots__ = ("name", "receiver")

    def __init__(self, receiver: Traced, name: str) -> None:
        self.receiver, self.name = receiver, name


def is_traced(*values: Any) -> bool:
    """Whether there is a traced value among these, or in containers among these."""
    return any(type(value) is Traced or is_traced(*_parts(value)) for value in values)


def _parts(value: Any) -> Iterable[Any]:
    if isinstance(value, dict):
        return value.values()
    if isinstance(value, list | tuple | set | frozenset):
        return value
    return (value.start, value.stop, value.step) if type(value) is slice else ()
