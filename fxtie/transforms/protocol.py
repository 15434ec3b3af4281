"""What a transform is, and what the ready-made ones have in common.

In: nothing. Out: types and a base class.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, Protocol, TypeAlias, runtime_checkable

from torch import Tensor

Transform: TypeAlias = Callable[..., Any]
"""Any differentiable callable `f(*sources) -> tensor`, or an `nn.Module`."""

Shape: TypeAlias = tuple[int, ...]


@runtime_checkable
class FitsTarget(Protocol):
    """The protocol of transforms that adapt to their target. Your own can implement it as well.

    Planning calls `for_target` once per target, outside of any tracing, with a tensor that has the
    target's shape, dtype and device but no data (a fake or meta tensor), and uses what it returns
    in place of the transform. What it returns is a callable on the sources that

    * gives a tensor of exactly the target's shape,
    * compares equal to another one that computes the same, if it may be shared, and
    * if it is learnable, is an `nn.Module` that already has its parameters.

    A transform that fits its target already returns itself, so fitting twice changes nothing.

    Example:
        >>> import torch
        >>> from dataclasses import dataclass
        >>> @dataclass(frozen=True)
        ... class Column:
        ...     '''A vector, repeated as the columns of the target.'''
        ...     def for_target(self, target):
        ...         shape = tuple(target.shape)
        ...         return lambda source: source.unsqueeze(1).expand(shape)
        >>> Column().for_target(torch.empty(2, 3))(torch.tensor([1.0, 2.0]))
        tensor([[1., 1., 1.],
                [2., 2., 2.]])
    """

    def for_target(self, target: Tensor) -> Transform:
        """The transform for this target. Raises ValueError if it can't fit."""
        ...


def transform_name(transform: Transform | None) -> str:
    """How a transform is shown in tables: its function name, or its repr."""
    if transform is None or isinstance(transform, Tensor):
        return repr(transform)
    name = getattr(transform, "__name__", None)
    return name if isinstance(name, str) else repr(transform)


class Named:
    """Base of the dataclasses here: a repr that reads as the call that makes it."""

    def __repr__(self) -> str:
        parts = []
        fields = dataclasses.fields(self)  # type: ignore[arg-type]
        for field in sorted(fields, key=lambda field: field.kw_only is True):
            value = getattr(self, field.name)
            if field.default is dataclasses.MISSING:
                parts.append(repr(value))
            elif value != field.default:
                parts.append(f"{field.name}={value!r}")
        return f"{type(self).__name__}({', '.join(parts)})"


def set_fields(frozen: object, **fields: Any) -> None:
    """Sets fields of a frozen dataclass while it is made."""
    for name, value in fields.items():
        object.__setattr__(frozen, name, value)
