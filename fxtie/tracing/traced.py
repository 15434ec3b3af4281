"""Values that are known only when the graph runs.

They answer nothing: whatever asks one for more than its place in the graph stops the trace.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NoReturn

import torch
from torch import fx

from fxtie.tracing.stops import Stop


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

    def __repr__(self) -> str:
        raise Stop(f"prints a traced value ({self.node.name})")


def _refusing(question: str) -> Any:
    def refuse(self: Traced, *_: Any) -> NoReturn:
        raise Stop(f"{question} ({self.node.name})")

    return refuse


# The evaluator records what a graph can hold. This is for what reaches Python itself.
for _name, _question in {
    "bool": "branches on a traced value",
    "len": "asks for the length of a traced value",
    "iter": "iterates over a traced value",
    "contains": "looks into a traced value",
    "getitem": "looks into a traced value",
    "int": "makes a number of a traced value",
    "float": "makes a number of a traced value",
    "complex": "makes a number of a traced value",
    "index": "uses a traced value as an index",
    "round": "rounds a traced value",
    "str": "prints a traced value",
    "format": "prints a traced value",
    "bytes": "prints a traced value",
    "hash": "looks a traced value up",
    "eq": "compares a traced value",
    "ne": "compares a traced value",
    "lt": "compares a traced value",
    "gt": "compares a traced value",
    "le": "compares a traced value",
    "ge": "compares a traced value",
}.items():
    setattr(Traced, f"__{_name}__", _refusing(_question))


class Method:
    """A method of a traced value, about to be called."""

    __slots__ = ("name", "receiver")

    def __init__(self, receiver: Traced, name: str) -> None:
        self.receiver, self.name = receiver, name


def traced_in(*values: Any) -> Iterator[Traced]:
    """The traced values in nested plain containers."""
    for value in values:
        if type(value) is Traced:
            yield value
        elif isinstance(value, list | tuple | set | frozenset):
            yield from traced_in(*value)
        elif isinstance(value, dict):
            yield from traced_in(*value.values())
        elif type(value) is slice:
            yield from traced_in(value.start, value.stop, value.step)


def is_traced(*values: Any) -> bool:
    """Whether there is a traced value among these, or in containers among these."""
    return any(True for _ in traced_in(*values))
