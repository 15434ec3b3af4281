"""Transforms that move, repeat or select elements, and those of several sources.

In: sources. Out: a tensor whose shape follows from theirs. Offered to users in `fxtie.transforms`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fxtie.transforms.arguments import integer
from fxtie.transforms.protocol import Named, set_fields
from fxtie.transforms.registry import register


@register("transpose")
@dataclass(frozen=True, repr=False)
class transpose(Named):
    """Swaps dimensions 0 and 1. Shape `(a, b, ...)` gives `(b, a, ...)`.

    * Linear: `Linear(a, b)` and `Linear(b, a)` share one matrix, as in a tied autoencoder.
    * Conv to ConvTranspose, or back, in the *same* direction: `Conv2d(a, b)` has a weight of shape
      `(b, a, h, w)` and `ConvTranspose2d(a, b)` one of `(a, b, h, w)`.
    * The ConvTranspose that leads *back*, `ConvTranspose2d(b, a)`, has the very shape of the weight
      of `Conv2d(a, b)`: it is the adjoint with the same weight. Tie it with `same`, not with this.
    * Conv to a Conv that leads back: `chain(transpose(), flip(-2, -1))` gives the adjoint's kernel.

    Groups: a weight is `(out, in / groups, ...)` for Conv and `(in, out / groups, ...)` for
    ConvTranspose, so swapping the two fits only where `groups=1`. `same` fits any number of groups.

    >>> transpose()(torch.zeros(4, 8, 3, 3)).shape
    torch.Size([8, 4, 3, 3])
    """

    def __call__(self, source: Tensor) -> Tensor:
        return source.transpose(0, 1)


@register("flip")
@dataclass(frozen=True, repr=False, init=False)
class flip(Named):
    """Reverses the order along each of `dims`. The shape stays.

    Args:
        *dims: one or more dimensions; negative ones count from the last.

    >>> flip(-1)(torch.tensor([[1, 2], [3, 4]]))
    tensor([[2, 1],
            [4, 3]])
    """

    dims: tuple[int, ...]

    def __init__(self, *dims: int) -> None:
        if not dims:
            raise ValueError("flip() needs the dimensions to flip: flip(-2, -1) turns a kernel.")
        set_fields(self, dims=tuple(integer(dim, "flip(*dims)") for dim in dims))

    def __call__(self, source: Tensor) -> Tensor:
        return source.flip(self.dims)

    def __repr__(self) -> str:
        return f"flip({', '.join(map(str, self.dims))})"


@register("rot90")
@dataclass(frozen=True, repr=False)
class rot90(Named):
    """Turns the last two dimensions by `k` quarter turns: rotated copies of one filter bank.

    Shape `(..., h, w)` gives `(..., w, h)` for odd `k`, else the same.

    Args:
        k: number of quarter turns from the last but one dimension towards the last, as in
            `torch.rot90`. Seen as an image whose rows go down: counter-clockwise.

    >>> rot90(1)(torch.tensor([[1, 2], [3, 4]]))
    tensor([[2, 4],
            [1, 3]])
    """

    k: int

    def __post_init__(self) -> None:
        set_fields(self, k=integer(self.k, "rot90(k)"))

    def __call__(self, source: Tensor) -> Tensor:
        return torch.rot90(source, self.k, (-2, -1))


@register("repeat_interleave")
@dataclass(frozen=True, repr=False)
class repeat_interleave(Named):
    """Repeats every slice along `dim` `repeats` times, each next to its copies.

    The size of `dim` is multiplied by `repeats`: key heads for grouped queries, wider layers.

    Args:
        repeats: how often, at least 1.
        dim: which dimension; a negative one counts from the last.

    >>> repeat_interleave(2, 0)(torch.tensor([1, 2]))
    tensor([1, 1, 2, 2])
    """

    repeats: int
    dim: int

    def __post_init__(self) -> None:
        repeats = integer(self.repeats, "repeat_interleave(repeats, dim)")
        if repeats < 1:
            raise ValueError(
                f"repeat_interleave(repeats, dim): repeats is positive, not {repeats}."
            )
        set_fields(self, repeats=repeats, dim=integer(self.dim, "repeat_interleave(repeats, dim)"))

    def __call__(self, source: Tensor) -> Tensor:
        return torch.repeat_interleave(source, self.repeats, self.dim)


@register("slice")
@dataclass(frozen=True, repr=False)
class slice(Named):
    """The part from `start` up to, not including, `stop` along `dim`.

    Unlike Python's own slices it never shortens itself: a `stop` beyond the end is an error.

    Args:
        dim: which dimension; a negative one counts from the last.
        start, stop: `0 <= start < stop`.

    >>> slice(0, 1, 3)(torch.tensor([1, 2, 3, 4]))
    tensor([2, 3])
    """

    dim: int
    start: int
    stop: int

    def __post_init__(self) -> None:
        for field in ("dim", "start", "stop"):
            set_fields(self, **{field: integer(getattr(self, field), "slice(dim, start, stop)")})
        if not 0 <= self.start < self.stop:
            raise ValueError(f"{self!r}: 0 <= start < stop is needed.")

    def __call__(self, source: Tensor) -> Tensor:
        return source.narrow(self.dim, self.start, self.stop - self.start)


@register("mean")
@dataclass(frozen=True, repr=False)
class mean(Named):
    """The mean of one or more sources of one shape. With learned weights: `Mix`.

    >>> mean()(torch.tensor([1.0, 2.0]), torch.tensor([3.0, 6.0]))
    tensor([2., 4.])
    """

    def __call__(self, *sources: Tensor) -> Tensor:
        return _stack(self, sources).mean(dim=0)


@register("sum")
@dataclass(frozen=True, repr=False)
class sum(Named):
    """The sum of one or more sources of one shape.

    >>> sum()(torch.tensor([1.0, 2.0]), torch.tensor([3.0, 6.0]))
    tensor([4., 8.])
    """

    def __call__(self, *sources: Tensor) -> Tensor:
        return _stack(self, sources).sum(dim=0)


def _stack(transform: object, sources: Sequence[Tensor]) -> Tensor:
    if not sources:
        raise ValueError(f"{transform!r} takes one or more sources, not none.")
    return torch.stack(list(sources))
