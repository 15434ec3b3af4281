"""Ready-made transforms: named, composable callables on tensors.

In: source tensors. Out: the derived tensor. Called by `plan.py` (which fits them to their targets)
and by `capture.py` (which traces them); entered by name in `registry.py` for rule files.

A transform is any differentiable callable `f(*sources) -> tensor`. One that has to know the shape
of its target has a method `for_target` besides (see `FitsTarget`). Those without arguments are
plain functions (`same`, `square`); those with arguments are frozen dataclasses, so that equal ones
compare equal and the same derivation is computed once; learnable ones are `nn.Module`s.

Sources may be `torch.fx` proxies: no transform here looks at a value, and those that look at the
shape of a source need proxies whose `.shape` is known, as fxtie's are.
"""

from __future__ import annotations

import builtins
import dataclasses
import math
import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias, TypeVar, runtime_checkable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fxtie.arguments import integer, number
from fxtie.learned import ChannelScale as ChannelScale
from fxtie.learned import LowRank as LowRank
from fxtie.learned import Mix as Mix
from fxtie.registry import register

Transform: TypeAlias = Callable[..., Any]
"""Any differentiable callable `f(*sources) -> tensor`, or an `nn.Module`."""

_Shape: TypeAlias = tuple[int, ...]
_Self = TypeVar("_Self", bound="_Shaped")


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


class _Named:
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


# --- Element by element -----------------------------------------------------------------------


@register("same")
def same(source: Tensor) -> Tensor:
    """The source itself: ordinary weight sharing. Any shape, any dtype.

    Also ties the weight of a Conv to that of the ConvTranspose that is its adjoint (see
    `transpose`).

    >>> same(torch.tensor([1.0, -2.0]))
    tensor([ 1., -2.])
    """
    return source


@register("square", same_as=(torch.square, torch.Tensor.square))
def square(source: Tensor) -> Tensor:
    """`source ** 2`, element by element. Any shape. `torch.square` does the same.

    >>> square(torch.tensor([1.0, -2.0]))
    tensor([1., 4.])
    """
    return torch.square(source)


@register("abs", same_as=(torch.abs, torch.absolute, torch.Tensor.abs, builtins.abs, operator.abs))
def abs(source: Tensor) -> Tensor:
    """`|source|`, element by element. Any shape. `torch.abs` does the same.

    >>> abs(torch.tensor([1.0, -2.0]))
    tensor([1., 2.])
    """
    return torch.abs(source)


@register("neg", same_as=(torch.neg, torch.negative, torch.Tensor.neg, operator.neg))
def neg(source: Tensor) -> Tensor:
    """`-source`, element by element. Any shape. `torch.neg` does the same.

    >>> neg(torch.tensor([1.0, -2.0]))
    tensor([-1.,  2.])
    """
    return torch.neg(source)


@register("scale")
@dataclass(frozen=True, repr=False)
class scale(_Named):
    """`s * source`. Any shape.

    Args:
        s: a finite number. For a factor that is learned, see `ChannelScale`.

    >>> scale(0.5)(torch.tensor([1.0, -2.0]))
    tensor([ 0.5000, -1.0000])
    """

    s: float

    def __post_init__(self) -> None:
        _set(self, s=number(self.s, "scale(s)"))

    def __call__(self, source: Tensor) -> Tensor:
        return source * self.s


@register("stop_gradient")
@dataclass(frozen=True, repr=False)
class stop_gradient(_Named):
    """The source, cut from autograd: the target follows it but sends no gradient back.

    >>> weight = torch.ones(2, requires_grad=True)
    >>> stop_gradient()(weight).requires_grad
    False
    """

    def __call__(self, source: Tensor) -> Tensor:
        return source.detach()


@register("standardize")
@dataclass(frozen=True, repr=False)
class standardize(_Named):
    """Weight standardisation: every output channel gets mean 0 and variance 1.

    Qiao et al., "Micro-Batch Training with Batch-Channel Normalization and Weight Standardization",
    arXiv:1903.10520: `(w - mean) / sqrt(var + eps)` over all but dimension 0, with the biased
    variance (divided by the number of elements). Shape `(out, ...)`, kept; at least two elements
    per output channel, or the result would be 0.

    Args:
        eps: added to the variance, positive.

    >>> standardize()(torch.tensor([[1.0, 3.0], [10.0, 30.0]]))
    tensor([[-1.0000,  1.0000],
            [-1.0000,  1.0000]])
    """

    eps: float = 1e-5

    def __post_init__(self) -> None:
        _set(self, eps=number(self.eps, "standardize(eps)"))
        if self.eps <= 0:
            raise ValueError(f"standardize(eps): eps is positive, not {self.eps}.")

    def __call__(self, source: Tensor) -> Tensor:
        shape = tuple(source.shape)
        if math.prod(shape[1:]) < 2:
            raise ValueError(
                f"standardize() needs a source with two or more elements per output channel "
                f"(dimension 0), not one of shape {shape}. Exclude that target from the rule."
            )
        dims = tuple(range(1, len(shape)))
        var, mean = torch.var_mean(source, dim=dims, correction=0, keepdim=True)
        return (source - mean) * torch.rsqrt(var + self.eps)


# --- Moving elements --------------------------------------------------------------------------


@register("transpose")
@dataclass(frozen=True, repr=False)
class transpose(_Named):
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
class flip(_Named):
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
        _set(self, dims=tuple(integer(dim, "flip(*dims)") for dim in dims))

    def __call__(self, source: Tensor) -> Tensor:
        return source.flip(self.dims)

    def __repr__(self) -> str:
        return f"flip({', '.join(map(str, self.dims))})"


@register("rot90")
@dataclass(frozen=True, repr=False)
class rot90(_Named):
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
        _set(self, k=integer(self.k, "rot90(k)"))

    def __call__(self, source: Tensor) -> Tensor:
        return torch.rot90(source, self.k, (-2, -1))


@register("repeat_interleave")
@dataclass(frozen=True, repr=False)
class repeat_interleave(_Named):
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
        _set(self, repeats=repeats, dim=integer(self.dim, "repeat_interleave(repeats, dim)"))

    def __call__(self, source: Tensor) -> Tensor:
        return torch.repeat_interleave(source, self.repeats, self.dim)


@register("slice")
@dataclass(frozen=True, repr=False)
class slice(_Named):
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
            _set(self, **{field: integer(getattr(self, field), "slice(dim, start, stop)")})
        if not 0 <= self.start < self.stop:
            raise ValueError(f"{self!r}: 0 <= start < stop is needed.")

    def __call__(self, source: Tensor) -> Tensor:
        return source.narrow(self.dim, self.start, self.stop - self.start)


# --- Several sources --------------------------------------------------------------------------


@register("mean")
@dataclass(frozen=True, repr=False)
class mean(_Named):
    """The mean of one or more sources of one shape. With learned weights: `Mix`.

    >>> mean()(torch.tensor([1.0, 2.0]), torch.tensor([3.0, 6.0]))
    tensor([2., 4.])
    """

    def __call__(self, *sources: Tensor) -> Tensor:
        return _stack(self, sources).mean(dim=0)


@register("sum")
@dataclass(frozen=True, repr=False)
class sum(_Named):
    """The sum of one or more sources of one shape.

    >>> sum()(torch.tensor([1.0, 2.0]), torch.tensor([3.0, 6.0]))
    tensor([4., 8.])
    """

    def __call__(self, *sources: Tensor) -> Tensor:
        return _stack(self, sources).sum(dim=0)


# --- Fitted to the target ---------------------------------------------------------------------


@dataclass(frozen=True, repr=False)
class _Shaped(_Named):
    """Base of the transforms that bring a source to the target's shape."""

    shape: _Shape | None = dataclasses.field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        if self.shape is not None:
            where = f"{type(self).__name__}(shape=...)"
            _set(self, shape=tuple(integer(size, where) for size in self.shape))

    def for_target(self: _Self, target: Tensor) -> _Self:
        """The same transform with `shape` set, unless it was set by hand."""
        if self.shape is not None:
            return self
        return dataclasses.replace(self, shape=tuple(target.shape))

    def __call__(self, source: Tensor) -> Tensor:
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

    def _fit(self, source: Tensor, shape: _Shape) -> Tensor:
        raise NotImplementedError

    def _from(self, source: Tensor) -> str:
        """How error messages start."""
        name = type(self).__name__
        return f"{name}() can't bring a source of shape {tuple(source.shape)} to {self.shape}"


@register("tile")
@dataclass(frozen=True, repr=False)
class tile(_Shaped):
    """Repeats the source along every dimension until it covers the target, and cuts off the rest.

    Element `[i, j, ...]` is the source's `[i % a, j % b, ...]`. The numbers of dimensions must
    agree. An empty source covers only an empty target.

    Args:
        shape: the shape to give; the target's by default.

    >>> tile(shape=(5,))(torch.tensor([1, 2]))
    tensor([1, 2, 1, 2, 1])
    """

    def _fit(self, source: Tensor, shape: _Shape) -> Tensor:
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
class crop(_Shaped):
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

    def _fit(self, source: Tensor, shape: _Shape) -> Tensor:
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
class pad(_Shaped):
    """The source with a constant added at the end of every dimension. None may have to shrink.

    Args:
        value: the constant.
        shape: the shape to give; the target's by default.

    >>> pad(shape=(4,))(torch.tensor([1.0, 2.0]))
    tensor([1., 2., 0., 0.])
    """

    value: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        _set(self, value=number(self.value, "pad(value)"))

    def _fit(self, source: Tensor, shape: _Shape) -> Tensor:
        missing = [want - have for have, want in zip(source.shape, shape, strict=True)]
        if min(missing, default=0) < 0:
            raise ValueError(f"{self._from(source)}, which is smaller. Use crop() or resize().")
        if not any(missing):
            return source
        # F.pad counts from the last dimension: (before, after) of each.
        return F.pad(source, [n for last in reversed(missing) for n in (0, last)], value=self.value)


_MODES = ("nearest", "nearest-exact", "area", "linear", "cubic")
_LINEAR = {1: "linear", 2: "bilinear", 3: "trilinear"}
_FAMILIES = {"bilinear": "linear", "trilinear": "linear", "bicubic": "cubic"}


@register("resize")
@dataclass(frozen=True, repr=False)
class resize(_Shaped):
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
        _set(self, mode=_FAMILIES.get(self.mode, self.mode))
        if self.mode not in _MODES:
            raise ValueError(
                f"resize(mode): mode is one of {', '.join(_MODES)}, not {self.mode!r}."
            )

    def _fit(self, source: Tensor, shape: _Shape) -> Tensor:
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

    def _interpolate(self, source: Tensor, size: _Shape) -> Tensor:
        mode = {"linear": _LINEAR.get(len(size), ""), "cubic": "bicubic"}.get(self.mode, self.mode)
        return F.interpolate(source, size=size, mode=mode)


# --- One after the other ----------------------------------------------------------------------


class _Sequence:
    """What the two kinds of `chain` have in common."""

    transforms: tuple[Transform, ...]

    def for_target(self, target: Tensor) -> Transform:
        fitted = tuple(
            f.for_target(target) if isinstance(f, FitsTarget) else f for f in self.transforms
        )
        unchanged = all(new is old for new, old in zip(fitted, self.transforms, strict=True))
        return self if unchanged else chain(*fitted)  # type: ignore[return-value]

    def __repr__(self) -> str:
        return f"chain({', '.join(_name(f) for f in self.transforms)})"


@dataclass(frozen=True, repr=False)
class _Chain(_Sequence):
    """A chain of which nothing is learned."""

    transforms: tuple[Transform, ...]

    def __call__(self, *sources: Tensor) -> Tensor:
        return _run(self.transforms, sources)


class _LearnedChain(_Sequence, nn.Module):
    """A chain with modules in it: a module itself, so that their parameters are found."""

    def __init__(self, transforms: tuple[Transform, ...]) -> None:
        super().__init__()
        self.plain = {i: f for i, f in enumerate(transforms) if not isinstance(f, nn.Module)}
        for i, f in enumerate(transforms):
            if isinstance(f, nn.Module):
                self.add_module(str(i), f)

    @property
    def transforms(self) -> tuple[Transform, ...]:  # type: ignore[override]
        members: dict[int, Any] = self.plain | {int(i): f for i, f in self._modules.items()}
        return tuple(members[i] for i in range(len(members)))

    def forward(self, *sources: Tensor) -> Tensor:
        return _run(self.transforms, sources)


@register("chain", makes=(_Chain, _LearnedChain))
def chain(*transforms: Transform) -> Transform:
    """One transform after the other, the first one first: `chain(f, g)(x) == g(f(x))`.

    The first takes all sources, each later one what the one before it gave. Chains in chains are
    laid flat. Chains of equal transforms are equal; one that holds an `nn.Module` is one itself.

    Fitting: every member that adapts is given the target. So the members after it have to keep the
    shape: `chain(tile(), scale(0.5), ChannelScale())` is right, and planning refuses
    `chain(tile(), transpose())` unless the result happens to fit. Of `tile`, `crop`, `pad` and
    `resize` only one may take the target's shape (a second would have nothing left to do); give the
    others theirs: `chain(crop(shape=(8, 8)), tile())`.

    Args:
        *transforms: one or more callables.

    Returns:
        A callable on the first transform's sources, with `transforms` as an attribute.

    Raises:
        ValueError: for no transforms, something not callable, or two that would both take the
            target's shape.

    >>> chain(square, scale(0.5))(torch.tensor([2.0, 4.0]))
    tensor([2., 8.])
    >>> chain(torch.square, rot90(1), tile())
    chain(square, rot90(1), tile())
    """
    flat: list[Transform] = []
    for f in transforms:
        if not callable(f) or isinstance(f, type):
            raise ValueError(f"chain() takes callables on tensors, not {f!r}.")
        flat.extend(f.transforms if isinstance(f, _Sequence) else (f,))
    if not flat:
        raise ValueError("chain() needs one or more transforms. The one that does nothing is same.")
    open_ended = [f for f in flat if isinstance(f, _Shaped) and f.shape is None]
    if len(open_ended) > 1:
        first, last = open_ended[0], open_ended[-1]
        raise ValueError(
            f"In a chain only one transform can take the target's shape, but {first!r} and "
            f"{last!r} both would. Give the first its own: {type(first).__name__}(..., shape=...)."
        )
    if any(isinstance(f, nn.Module) for f in flat):
        return _LearnedChain(tuple(flat))
    return _Chain(tuple(flat))


# --- Helpers ----------------------------------------------------------------------------------


def _run(transforms: Sequence[Transform], sources: tuple[Tensor, ...]) -> Tensor:
    result = transforms[0](*sources)
    for f in transforms[1:]:
        result = f(result)
    return result  # type: ignore[no-any-return]


def _stack(transform: object, sources: Sequence[Tensor]) -> Tensor:
    if not sources:
        raise ValueError(f"{transform!r} takes one or more sources, not none.")
    return torch.stack(list(sources))


def _narrow(source: Tensor, have: _Shape, starts: _Shape, want: _Shape) -> Tensor:
    """The part of `source` (of shape `have`) that begins at `starts` and has shape `want`."""
    for dim, (size, start, length) in enumerate(zip(have, starts, want, strict=True)):
        if size != length:
            source = source.narrow(dim, start, length)
    return source


def _name(transform: Transform) -> str:
    name = getattr(transform, "__name__", None)
    return name if isinstance(name, str) else repr(transform)


def _set(frozen: object, **fields: Any) -> None:
    """Sets fields of a frozen dataclass while it is made."""
    for name, value in fields.items():
        object.__setattr__(frozen, name, value)
