"""Transforms that move, repeat or select elements, and those of several sources."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from fxtie.transforms.arguments import integer, integers
from fxtie.transforms.protocol import Named, set_fields
from fxtie.transforms.registry import register

_ADJOINTS = (
    (nn.Conv1d, nn.ConvTranspose1d),
    (nn.Conv2d, nn.ConvTranspose2d),
    (nn.Conv3d, nn.ConvTranspose3d),
)


@register("transpose")
@dataclass(frozen=True, repr=False)
class transpose(Named):
    """Swaps two dimensions. By default shape `(a, b, ...)` gives `(b, a, ...)`.

    * Linear: `Linear(a, b)` and `Linear(b, a)` share one matrix, as in a tied autoencoder.
    * Conv to ConvTranspose, or back, in the *same* direction: `Conv2d(a, b)` has a weight of shape
      `(b, a, h, w)` and `ConvTranspose2d(a, b)` one of `(a, b, h, w)`.
    * The ConvTranspose that leads *back*, `ConvTranspose2d(b, a)`, has the very shape of the weight
      of `Conv2d(a, b)`: it is the adjoint with the same weight. Tie it with `same`, not with this.
      Planning refuses this transform there (see `fault_between`).
    * Conv to a Conv that leads back: `chain(transpose(), flip(-2, -1))` gives the adjoint's kernel.

    Groups: a weight is `(out, in / groups, ...)` for Conv and `(in, out / groups, ...)` for
    ConvTranspose, so swapping the two fits only where `groups=1`. `same` fits any number of groups.

    Args:
        dim0, dim1: the dimensions, as in `torch.transpose`; negative ones count from the last.

    >>> transpose()(torch.zeros(4, 8, 3, 3)).shape
    torch.Size([8, 4, 3, 3])
    >>> transpose(-2, -1)(torch.zeros(4, 8, 3, 5)).shape
    torch.Size([4, 8, 5, 3])
    """

    dim0: int = 0
    dim1: int = 1

    def __post_init__(self) -> None:
        for field in ("dim0", "dim1"):
            where = "transpose(dim0, dim1)"
            set_fields(self, **{field: integer(getattr(self, field), where)})

    def __call__(self, source: Tensor) -> Tensor:
        return source.transpose(self.dim0, self.dim1)

    def fault_between(self, source: nn.Module, target: nn.Module) -> str | None:
        """Why not, where the target is the ConvTranspose that leads back from a Conv, or reverse.

        With as many channels in as out the shapes alone can't tell.
        """
        for dims, (conv, back) in enumerate(_ADJOINTS, start=3):
            leads_back = (isinstance(source, conv) and isinstance(target, back)) or (
                isinstance(source, back) and isinstance(target, conv)
            )
            swaps_channels = {self.dim0 % dims, self.dim1 % dims} == {0, 1}
            if leads_back and swaps_channels and _is_reverse(source, target):
                names = type(target).__name__, type(source).__name__
                return (
                    f"a {names[0]} that leads back from a {names[1]} takes its weight as it is: "
                    f"that makes it the adjoint, the decoder of a tied autoencoder. Write "
                    f"weight=fxtie.same(). If the target is to do the same as the source instead, "
                    f"write weight=lambda w: w.transpose(0, 1)."
                )
        return None


def _is_reverse(source: Any, target: Any) -> bool:
    """Whether one convolution leads back to where the other comes from."""
    forth = source.in_channels, source.out_channels, source.groups
    back = target.out_channels, target.in_channels, target.groups
    return forth == back


@register("flip")
@dataclass(frozen=True, repr=False, init=False)
class flip(Named):
    """Reverses the order along each of `dims`. The shape stays.

    Args:
        dims: one or more dimensions, as one argument or several: `flip(2, 3)` is `flip((2, 3))`.
            Negative ones count from the last.

    >>> flip(-1)(torch.tensor([[1, 2], [3, 4]]))
    tensor([[2, 1],
            [4, 3]])
    """

    dims: tuple[int, ...]
    # Of the two spellings, files know this one.
    __signature__: ClassVar = inspect.Signature(
        [inspect.Parameter("dims", inspect.Parameter.POSITIONAL_OR_KEYWORD)]
    )

    def __init__(self, dims: int | tuple[int, ...] = (), *more: int) -> None:
        set_fields(self, dims=(*integers(dims, "flip(dims)"), *integers(more, "flip(dims)")))
        if not self.dims:
            raise ValueError("flip() needs the dimensions to flip: flip(-2, -1) turns a kernel.")

    def __call__(self, source: Tensor) -> Tensor:
        return source.flip(self.dims)

    def __repr__(self) -> str:
        return f"flip({', '.join(map(str, self.dims))})"


@register("rot90")
@dataclass(frozen=True, repr=False)
class rot90(Named):
    """Turns two dimensions, the last two by default, by `k` quarter turns: rotated filters.

    Shape `(..., h, w)` gives `(..., w, h)` for odd `k`, else the same.

    Args:
        k: number of quarter turns from the first of `dims` towards the second, as in
            `torch.rot90`. Seen as an image whose rows go down: counter-clockwise.
        dims: the plane. The last two dimensions, where `torch.rot90` takes the first two.

    >>> rot90(1)(torch.tensor([[1, 2], [3, 4]]))
    tensor([[2, 4],
            [1, 3]])
    >>> rot90(1, (0, 1)) == rot90(1, dims=[0, 1])
    True
    """

    k: int
    dims: tuple[int, int] = (-2, -1)

    def __post_init__(self) -> None:
        dims = integers(self.dims, "rot90(k, dims)")
        if len(dims) != 2 or dims[0] == dims[1]:
            raise ValueError(f"rot90(k, dims): dims are two dimensions, not {self.dims!r}.")
        set_fields(self, k=integer(self.k, "rot90(k)"), dims=dims)

    def __call__(self, source: Tensor) -> Tensor:
        return torch.rot90(source, self.k, self.dims)


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


@dataclass(frozen=True, repr=False)
class _Reduction(Named):
    """What `mean` and `sum` have in common: over the sources, and then over `dim`."""

    dim: int | tuple[int, ...] | None = None
    keepdim: bool = False

    def __post_init__(self) -> None:
        name = type(self).__name__
        if self.dim is not None:
            dims = integers(self.dim, f"{name}(dim)")
            set_fields(self, dim=dims[0] if len(dims) == 1 else dims)
            if not dims:
                raise ValueError(f"{name}(dim): dim names one dimension or more, or is None.")
        elif self.keepdim:
            raise ValueError(f"{name}(keepdim=True) needs a dim to keep: {name}(1, keepdim=True).")

    def _stack(self, sources: Sequence[Tensor]) -> Tensor:
        if not sources:
            raise ValueError(f"{self!r} takes one or more sources, not none.")
        return torch.stack(list(sources))


@register("mean")
@dataclass(frozen=True, repr=False)
class mean(_Reduction):
    """The mean of one or more sources of one shape. With learned weights: `Mix`.

    Args:
        dim: dimensions of the sources to take the mean over as well, as in `torch.mean`: the
            filters of RGB images become those of grey ones by `sum(1, keepdim=True)`.
        keepdim: keep these dimensions, with size 1.

    >>> mean()(torch.tensor([1.0, 2.0]), torch.tensor([3.0, 6.0]))
    tensor([2., 4.])
    >>> mean(dim=0)(torch.tensor([1.0, 2.0]))
    tensor(1.5000)
    """

    def __call__(self, *sources: Tensor) -> Tensor:
        result = self._stack(sources).mean(dim=0)
        return result if self.dim is None else result.mean(self.dim, self.keepdim)


@register("sum")
@dataclass(frozen=True, repr=False)
class sum(_Reduction):
    """The sum of one or more sources of one shape.

    Args:
        dim: dimensions of the sources to sum over as well, as in `torch.sum`.
        keepdim: keep these dimensions, with size 1.

    >>> sum()(torch.tensor([1.0, 2.0]), torch.tensor([3.0, 6.0]))
    tensor([4., 8.])
    >>> sum(1, keepdim=True)(torch.ones(8, 3, 5, 5)).shape
    torch.Size([8, 1, 5, 5])
    """

    def __call__(self, *sources: Tensor) -> Tensor:
        result = self._stack(sources).sum(dim=0)
        return result if self.dim is None else result.sum(self.dim, self.keepdim)
