"""Transforms that bring a source to the shape of their target."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from fxtie.transforms.arguments import integers, number
from fxtie.transforms.protocol import Named, Shape, set_fields
from fxtie.transforms.registry import register

_Self = TypeVar("_Self", bound="Shaped")


@dataclass(frozen=True, repr=False)
class Shaped(Named):
    """Base of the transforms that bring a source to the target's shape."""

    shape: Shape | None = dataclasses.field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        if self.shape is not None:
            set_fields(self, shape=integers(self.shape, f"{type(self).__name__}(shape=...)"))

    @property
    def is_open(self) -> bool:
        """Whether it takes the shape of its target."""
        return self.shape is None

    def for_target(self: _Self, target: Tensor) -> _Self:
        """The same transform with `shape` set, unless it was set by hand."""
        return dataclasses.replace(self, shape=tuple(target.shape)) if self.is_open else self

    def __call__(self, source: Tensor) -> Tensor:
        return self._to_shape(source)

    def _to_shape(self, source: Tensor) -> Tensor:
        if self.shape is None:
            raise ValueError(
                f"{self!r} does not know its target's shape yet: call for_target(target) first "
                f"(planning does), or give it the shape: {type(self).__name__}(shape=...)."
            )
        if len(source.shape) != len(self.shape):
            raise ValueError(
                f"{self._from(source)}: the numbers of dimensions differ. Write a function "
                f"that reshapes the source and put it first: chain(f, {type(self).__name__}())."
            )
        return self._fit(source, self.shape)

    def _fit(self, source: Tensor, shape: Shape) -> Tensor:
        raise NotImplementedError

    def _from(self, source: Tensor) -> str:
        """How error messages start."""
        name = type(self).__name__
        return f"{name}() can't bring a source of shape {tuple(source.shape)} to {self.shape}"


@dataclass(frozen=True, repr=False)
class _Counted(Shaped):
    """Base of those that take amounts, as torch's function does, in place of a shape."""

    amounts: ClassVar[str]
    example: ClassVar[str]

    def __post_init__(self) -> None:
        super().__post_init__()
        value = getattr(self, self.amounts)
        if value is None:
            return
        where = f"{type(self).__name__}({self.amounts})"
        if isinstance(value, str) or not isinstance(value, Sequence):
            raise ValueError(f"{where} takes a tuple, not {value!r}: {self.example}.")
        if self.shape is not None:
            raise ValueError(f"{where}: give either {self.amounts} or shape.")
        set_fields(self, **{self.amounts: integers(value, where)})
        if min(value, default=-1) < 0:
            raise ValueError(f"{where} takes one amount or more, none below 0, not {value!r}.")

    @property
    def is_open(self) -> bool:
        """Whether it takes the shape of its target."""
        return self.shape is None and getattr(self, self.amounts) is None


@register("tile")
@dataclass(frozen=True, repr=False)
class tile(_Counted):
    """Repeats the source along every dimension until it covers the target, and cuts off the rest.

    Element `[i, j, ...]` is the source's `[i % a, j % b, ...]`. The numbers of dimensions must
    agree. An empty source covers only an empty target.

    Args:
        dims: how often to repeat along each dimension, as in `torch.tile`, in place of a shape.
        shape: the shape to give; the target's by default.

    >>> tile(shape=(5,))(torch.tensor([1, 2]))
    tensor([1, 2, 1, 2, 1])
    >>> tile((2,))(torch.tensor([1, 2]))
    tensor([1, 2, 1, 2])
    """

    dims: tuple[int, ...] | None = None
    amounts = "dims"
    example = "tile((2, 1))"

    def __call__(self, source: Tensor) -> Tensor:
        return self._to_shape(source) if self.dims is None else torch.tile(source, self.dims)

    def _fit(self, source: Tensor, shape: Shape) -> Tensor:
        source_shape = tuple(source.shape)
        sizes = tuple(zip(source_shape, shape, strict=True))
        if any(have == 0 and want > 0 for have, want in sizes):
            raise ValueError(f"{self._from(source)}: the source is empty. Use pad().")
        repeats = tuple(-(-want // have) if have else 1 for have, want in sizes)
        if any(repeat != 1 for repeat in repeats):
            source = torch.tile(source, repeats)
        tiled = tuple(n * repeat for n, repeat in zip(source_shape, repeats, strict=True))
        return _narrow(source, tiled, (0,) * len(shape), shape)


@register("crop")
@dataclass(frozen=True, repr=False)
class crop(Shaped):
    """The part of the source that the target has room for. No dimension may have to grow.

    Args:
        center: take the middle of every dimension instead of its beginning. Where an odd number
            of elements is cut, the end loses one more.
        shape: the shape to give; the target's by default.

    >>> crop(shape=(2,))(torch.tensor([1, 2, 3, 4]))
    tensor([1, 2])
    >>> crop(center=True, shape=(2,))(torch.tensor([1, 2, 3, 4]))
    tensor([2, 3])
    """

    center: bool = False

    def _fit(self, source: Tensor, shape: Shape) -> Tensor:
        source_shape = tuple(source.shape)
        extra = tuple(have - want for have, want in zip(source_shape, shape, strict=True))
        if min(extra, default=0) < 0:
            raise ValueError(
                f"{self._from(source)}, which is larger. Use pad(), tile() or resize()."
            )
        starts = tuple(n // 2 if self.center else 0 for n in extra)
        return _narrow(source, source_shape, starts, shape)


@register("pad")
@dataclass(frozen=True, repr=False)
class pad(_Counted):
    """The source with a constant added at the end of every dimension. None may have to shrink.

    Args:
        pad: how much to add, as in `F.pad`, in place of a shape: before and after the last
            dimension, then before and after the one before it, and so on.
        value: the constant.
        shape: the shape to give; the target's by default.

    >>> pad(shape=(4,))(torch.tensor([1.0, 2.0]))
    tensor([1., 2., 0., 0.])
    >>> pad((1, 1), value=9)(torch.tensor([1.0, 2.0]))
    tensor([9., 1., 2., 9.])
    """

    pad: tuple[int, ...] | None = None
    value: float = 0.0
    amounts = "pad"
    example = "pad((1, 1)). The constant is pad(value=0.5)"

    def __post_init__(self) -> None:
        super().__post_init__()
        set_fields(self, value=number(self.value, "pad(value)"))
        if self.pad is not None and len(self.pad) % 2:
            raise ValueError(f"pad(pad): amounts come in pairs, before and after: {self.pad}.")

    def __call__(self, source: Tensor) -> Tensor:
        if self.pad is None:
            return self._to_shape(source)
        if len(self.pad) > 2 * len(source.shape):
            raise ValueError(f"{self!r} is for more dimensions than {tuple(source.shape)} has.")
        return F.pad(source, self.pad, value=self.value)

    def _fit(self, source: Tensor, shape: Shape) -> Tensor:
        missing = [want - have for have, want in zip(source.shape, shape, strict=True)]
        if min(missing, default=0) < 0:
            raise ValueError(f"{self._from(source)}, which is smaller. Use crop() or resize().")
        if not any(missing):
            return source
        if 0 in shape:  # no elements to pad, which F.pad of torch 2.9 refuses
            return source.reshape(shape)
        # F.pad counts from the last dimension: (before, after) of each.
        return F.pad(source, [n for last in reversed(missing) for n in (0, last)], value=self.value)


_MODES = ("nearest", "nearest-exact", "area", "linear", "cubic")
_LINEAR = ("linear", "bilinear", "trilinear")  # over one, two, three dimensions
_FAMILIES = {"bilinear": "linear", "trilinear": "linear", "bicubic": "cubic"}


@register("resize")
@dataclass(frozen=True, repr=False)
class resize(Shaped):
    """Interpolates the source to the target's shape, by `F.interpolate`.

    A weight `(out, in, ...)` is resized in two steps, and only where sizes differ: the kernel (all
    from dimension 2 on, up to three), then the channels `(out, in)`, as if they were an image. A
    vector is resized along its only dimension. Sums are not kept: a kernel of 3x3 ones gives one of
    5x5 ones; `chain(resize('linear'), scale(9 / 25))` keeps the response to a constant.

    Args:
        mode: "nearest", "nearest-exact", "area", "linear" or "cubic". "linear" becomes linear,
            bilinear or trilinear by the number of dimensions (and may be written so); "cubic", or
            "bicubic", works on two dimensions only.
        shape: the shape to give; the target's by default.

    >>> resize("linear", shape=(4,))(torch.tensor([0.0, 1.0]))
    tensor([0.0000, 0.2500, 0.7500, 1.0000])
    """

    mode: str

    def __post_init__(self) -> None:
        super().__post_init__()
        set_fields(self, mode=_FAMILIES.get(self.mode, self.mode))
        if self.mode not in _MODES:
            raise ValueError(
                f"resize(mode): mode is one of {', '.join(_MODES)}, not {self.mode!r}."
            )

    def _fit(self, source: Tensor, shape: Shape) -> Tensor:
        have = tuple(source.shape)
        if have == shape:
            return source
        if 0 in have or 0 in shape:
            raise ValueError(f"{self._from(source)}: there is nothing to interpolate between.")
        channels = shape[:2] if have[:2] != shape[:2] else None
        kernel = shape[2:] if have[2:] != shape[2:] else None
        for size in (channels, kernel):
            if size and (len(size) > 3 or (self.mode == "cubic" and len(size) != 2)):
                takes = "2 dimensions" if self.mode == "cubic" else "1 to 3 dimensions"
                remedy = "tile()" if len(size) > 3 else "resize('linear')"
                raise ValueError(
                    f"{self._from(source)}: {self.mode!r} interpolates over {takes} at once, not "
                    f"over {len(size)}. Use {remedy}."
                )
        if kernel:
            source = self._interpolate(source, kernel)
        if channels and len(shape) == 1:
            source = self._interpolate(source[None, None], channels)[0, 0]
        elif channels:
            image = source.reshape(1, *have[:2], -1).movedim(-1, 1)
            source = self._interpolate(image, channels).movedim(1, -1).reshape(shape)
        return source

    def _interpolate(self, source: Tensor, size: Shape) -> Tensor:
        mode = self.mode
        if mode == "linear":
            mode = _LINEAR[len(size) - 1]
        elif mode == "cubic":
            mode = "bicubic"
        return F.interpolate(source, size=size, mode=mode)


def _narrow(source: Tensor, have: Shape, starts: Shape, want: Shape) -> Tensor:
    """The part of `source` (of shape `have`) that begins at `starts` and has shape `want`."""
    for dim, (size, start, length) in enumerate(zip(have, starts, want, strict=True)):
        if size != length:
            source = source.narrow(dim, start, length)
    return source
