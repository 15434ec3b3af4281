"""Python's operators, and what unpacking does, as functions that a graph can call."""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable
from typing import Any

BINARY: dict[type[ast.operator], Callable[..., Any]] = {
    ast.Add: operator.add,
    ast.BitAnd: operator.and_,
    ast.BitOr: operator.or_,
    ast.BitXor: operator.xor,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.LShift: operator.lshift,
    ast.MatMult: operator.matmul,
    ast.Mod: operator.mod,
    ast.Mult: operator.mul,
    ast.Pow: operator.pow,
    ast.RShift: operator.rshift,
    ast.Sub: operator.sub,
}

IN_PLACE: dict[type[ast.operator], Callable[..., Any]] = {
    kind: getattr(operator, f"i{function.__name__.strip('_')}") for kind, function in BINARY.items()
}

UNARY: dict[type[ast.unaryop], Callable[..., Any]] = {
    ast.Invert: operator.invert,
    ast.UAdd: operator.pos,
    ast.USub: operator.neg,
}

COMPARISONS: dict[type[ast.cmpop], Callable[..., Any]] = {
    ast.Eq: operator.eq,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.NotEq: operator.ne,
}


def unpack(value: Any, count: int, star: int | None = None) -> tuple[Any, ...]:
    """The items of a value that code unpacks into `count` names, of which one may be starred."""
    items = tuple(value)
    if star is not None and len(items) >= count - 1:
        end = len(items) - (count - star - 1)
        items = (*items[:star], [*items[star:end]], *items[end:])
    if len(items) != count:
        raise ValueError(f"expected {count} values to unpack, got {len(items)}")
    return items
