"""Transforms that return several tensors, one for each of their targets."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from fxtie.transforms.protocol import Transform, transform_name


@dataclass(frozen=True)
class Part:
    """One of the tensors that a transform returns."""

    # The transform, which the parts of one tie share: it runs once for all of them.
    whole: Transform
    index: int  # which of its results
    of: tuple[str, ...]  # the names of the tie's targets

    def __call__(self, *sources: Any) -> Any:
        return self.whole(*sources)[self.index]

    def __repr__(self) -> str:
        return f"{transform_name(self.whole)}[{self.index}]"


def whole_of(transform: Transform) -> Transform:
    """A transform, or that of which it is a part."""
    return transform.whole if isinstance(transform, Part) else transform


def module_of(transform: Transform) -> nn.Module | None:
    """The learnable transform that this is, or is a part of, if it is one."""
    whole = whole_of(transform)
    return whole if isinstance(whole, nn.Module) else None
