"""Ready-made transforms, each with sources and with the same in numpy."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from hypothesis import strategies as st
from torch import Tensor, fx, nn

from fxtie.transforms import (
    ChannelScale,
    LowRank,
    Mix,
    abs,
    chain,
    crop,
    flip,
    mean,
    neg,
    pad,
    repeat_interleave,
    resize,
    rot90,
    same,
    scale,
    slice,
    square,
    standardize,
    sum,
    tile,
    transpose,
)

MODES = ("nearest", "nearest-exact", "area", "linear", "cubic")


def np_tile(x: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    return np.array(
        [x[tuple(i % n for i, n in zip(at, x.shape, strict=True))] for at in np.ndindex(shape)]
    ).reshape(shape)


def np_crop(x: np.ndarray, shape: tuple[int, ...], center: bool = False) -> np.ndarray:
    for axis, size in enumerate(shape):
        start = (x.shape[axis] - size) // 2 if center else 0
        x = np.take(x, range(start, start + size), axis)
    return x


def np_pad(x: np.ndarray, shape: tuple[int, ...], value: float = 0.0) -> np.ndarray:
    result = np.full(shape, value)
    for at in np.ndindex(x.shape):
        result[at] = x[at]
    return result


def cubic_weight(t: float, a: float = -0.75) -> float:
    t = math.fabs(t)
    if t <= 1:
        return (a + 2) * t**3 - (a + 3) * t**2 + 1
    return a * t**3 - 5 * a * t**2 + 8 * a * t - 4 * a if t < 2 else 0.0


def resize_matrix(have: int, want: int, mode: str) -> np.ndarray:
    """Row i: what the new element i takes of each old one. Pixel centres lie at i + 0.5."""
    matrix = np.zeros((want, have))
    for i in range(want):
        centre = (i + 0.5) * have / want - 0.5
        low = math.floor(centre)
        if mode == "nearest":
            taps = {i * have // want: 1.0}
        elif mode == "nearest-exact":
            taps = {int((2 * i + 1) * have // (2 * want)): 1.0}
        elif mode == "area":
            window = range(i * have // want, -(-(i + 1) * have // want))
            taps = {j: 1 / len(window) for j in window}
        else:
            reach, kernel = (
                (1, lambda t: max(0.0, 1 - math.fabs(t))) if mode == "linear" else (2, cubic_weight)
            )
            taps = {j: kernel(centre - j) for j in range(low - reach + 1, low + reach + 1)}
        for j, weight in taps.items():
            matrix[i, min(max(j, 0), have - 1)] += weight
    return matrix


def np_resize(x: np.ndarray, shape: tuple[int, ...], mode: str) -> np.ndarray:
    for axis, want in enumerate(shape):
        if x.shape[axis] != want:
            matrix = resize_matrix(x.shape[axis], want, mode)
            x = np.moveaxis(np.tensordot(matrix, x, (1, axis)), 0, axis)
    return x


def np_standardize(x: np.ndarray, eps: float) -> np.ndarray:
    rows = x.reshape(len(x), -1)
    centred = rows - rows.mean(axis=1, keepdims=True)
    return (centred / np.sqrt((centred**2).mean(axis=1, keepdims=True) + eps)).reshape(x.shape)


@dataclass(frozen=True)
class Case:
    """A transform, the shapes of its sources, and the same in numpy."""

    transform: Callable[..., Tensor]
    shapes: tuple[tuple[int, ...], ...]
    expected: Callable[..., np.ndarray]
    needs_shape: bool = False

    def sources(self) -> list[Tensor]:
        generator = torch.Generator().manual_seed(0)
        draw = [torch.randn(s, generator=generator, dtype=torch.float64) for s in self.shapes]
        # Away from 0, where abs has no derivative.
        return [x + torch.where(x < 0, -0.1, 0.1) for x in draw]


W = (4, 6, 3, 3)


CASES = {
    "same": Case(same, (W,), lambda x: x),
    "square": Case(square, (W,), lambda x: x * x),
    "abs": Case(abs, (W,), lambda x: np.where(x < 0, 0 - x, x)),
    "neg": Case(neg, (W,), lambda x: 0 - x),
    "scale": Case(scale(-1.5), (W,), lambda x: -1.5 * x),
    "standardize": Case(standardize(), (W,), lambda x: np_standardize(x, 1e-5), True),
    "standardize-eps": Case(standardize(0.5), ((3, 5),), lambda x: np_standardize(x, 0.5), True),
    "transpose": Case(transpose(), (W,), lambda x: np.swapaxes(x, 0, 1)),
    "flip": Case(flip(-2, 3), (W,), lambda x: x[:, :, ::-1, ::-1]),
    "rot90": Case(rot90(1), ((2, 3, 4),), lambda x: np.swapaxes(x, 1, 2)[:, ::-1]),
    "rot90-back": Case(rot90(-3), ((2, 3, 4),), lambda x: np.swapaxes(x, 1, 2)[:, ::-1]),
    "rot180": Case(rot90(2), ((3, 4),), lambda x: x[::-1, ::-1]),
    "repeat_interleave": Case(
        repeat_interleave(3, 1), ((2, 4),), lambda x: np.stack([x] * 3, axis=2).reshape(2, 12)
    ),
    "slice": Case(slice(1, 2, 5), (W,), lambda x: x[:, 2:5]),
    "slice-last": Case(slice(-1, 0, 2), (W,), lambda x: x[..., :2]),
    "mean": Case(mean(), ((3, 2),) * 3, lambda x, y, z: (x + y + z) / 3),
    "sum": Case(sum(), ((3, 2),) * 3, lambda x, y, z: x + y + z),
    "tile": Case(
        tile(shape=(7, 6, 2, 4)), ((2, 3, 3, 3),), lambda x: np_tile(x, (7, 6, 2, 4)), True
    ),
    "crop": Case(crop(shape=(2, 6, 1, 2)), (W,), lambda x: np_crop(x, (2, 6, 1, 2)), True),
    "crop-center": Case(
        crop(center=True, shape=(3, 2)), ((8, 5),), lambda x: np_crop(x, (3, 2), True), True
    ),
    "pad": Case(pad(shape=(5, 6, 3, 4)), (W,), lambda x: np_pad(x, (5, 6, 3, 4)), True),
    "pad-value": Case(
        pad(value=2.5, shape=(4, 3)), ((2, 3),), lambda x: np_pad(x, (4, 3), 2.5), True
    ),
    "chain": Case(
        chain(mean(), square, rot90(1)),
        ((2, 3), (2, 3)),
        lambda x, y: (((x + y) / 2) ** 2).T[::-1],
    ),
    "chain-shaped": Case(
        chain(tile(shape=(3, 8)), standardize(0.1), neg, crop(center=True, shape=(3, 3))),
        ((2, 3),),
        lambda x: -np_crop(np_standardize(np_tile(x, (3, 8)), 0.1), (3, 3), True),
        True,
    ),
} | {
    f"resize-{mode}-{have}-{want}": Case(
        resize(mode, shape=want), (have,), lambda x, w=want, m=mode: np_resize(x, w, m), True
    )
    for mode in MODES
    for have, want in (
        ((4, 6, 3, 3), (4, 6, 5, 5)),
        ((4, 6, 3, 3), (6, 3, 3, 3)),
        ((4, 3, 5, 2), (3, 5, 2, 5)),
        ((4, 6), (7, 3)),
        ((5,), (8,)),
        ((2, 3, 4), (3, 4, 7)),
        ((2, 2, 3, 3, 3), (2, 2, 4, 2, 5)),
    )
    if mode != "cubic" or len(want) in (2, 4)
}


def expected(case: Case) -> Tensor:
    result = case.expected(*(x.numpy() for x in case.sources()))
    return torch.from_numpy(np.ascontiguousarray(result))


shapes = st.lists(st.integers(0, 5), max_size=5).map(tuple)


pairs = st.one_of(
    st.tuples(shapes, shapes),
    st.integers(0, 6).flatmap(
        lambda n: st.tuples(*[st.lists(st.integers(0, 5), min_size=n, max_size=n).map(tuple)] * 2)
    ),
)


def fits(transform: Any, have: tuple[int, ...], want: tuple[int, ...]) -> bool:
    """What the docstrings promise."""
    if len(have) != len(want):
        return False
    each = list(zip(have, want, strict=True))
    if isinstance(transform, tile):
        return all(a > 0 or b == 0 for a, b in each)
    if isinstance(transform, crop):
        return all(a >= b for a, b in each)
    if isinstance(transform, pad):
        return all(a <= b for a, b in each)
    if have == want:
        return True
    if 0 in have + want:
        return False
    kernel = len(want) - 2 if have[2:] != want[2:] else 0
    if transform.mode == "cubic":
        return len(want) > 1 and kernel in (0, 2)
    return kernel <= 3


LEARNED = {
    "LowRank": (lambda: LowRank(2).for_target(torch.empty(4, 3, 2, 2)), 1),
    "ChannelScale": (lambda: ChannelScale().for_target(torch.empty(4, 3, 2, 2)), 1),
    "ChannelScale-1": (lambda: ChannelScale(1).for_target(torch.empty(4, 3, 2, 2)), 1),
    "Mix": (lambda: Mix(3).for_target(torch.empty(4, 3, 2, 2)), 3),
    "chain": (
        lambda: chain(Mix(2), neg, LowRank(1), ChannelScale(-1)).for_target(
            torch.empty(4, 3, 2, 2)
        ),
        2,
    ),
}


class Shaped(fx.Proxy):
    """A proxy that knows its shape, as those of fxtie's own tracer do."""

    @property
    def shape(self) -> torch.Size:
        return self.node.meta["value"].shape


class ShapeTracer(fx.Tracer):
    def __init__(self, sources: list[Tensor]) -> None:
        super().__init__()
        self.pending = list(sources)

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return Shaped(node, self)

    def create_proxy(self, kind: str, target: Any, *args: Any, **kwargs: Any) -> Any:
        proxy = super().create_proxy(kind, target, *args, **kwargs)
        node = proxy.node
        values, named = fx.node.map_arg((node.args, node.kwargs), lambda n: n.meta["value"])
        if kind == "placeholder":
            node.meta["value"] = self.pending.pop(0)
        elif kind == "get_attr":
            node.meta["value"] = dict(self.root.named_parameters())[target]
        elif kind == "call_method":
            node.meta["value"] = getattr(values[0], target)(*values[1:], **named)
        elif kind == "call_function":
            node.meta["value"] = target(*values, **named)
        return proxy


def root_of(transform: Callable[..., Tensor], arity: int) -> nn.Module:
    """A module of fixed arity around the transform: fx can't trace `*sources`."""

    class Root(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.f = transform

    class Root1(Root):
        def forward(self, a: Any) -> Any:
            return self.f(a)

    class Root2(Root):
        def forward(self, a: Any, b: Any) -> Any:
            return self.f(a, b)

    class Root3(Root):
        def forward(self, a: Any, b: Any, c: Any) -> Any:
            return self.f(a, b, c)

    return (Root1, Root2, Root3)[arity - 1]()


def layers(kind: str, count: int) -> nn.Sequential:
    """Layers of a kind, alike."""
    make: Any = {
        "Linear": lambda: nn.Linear(64, 96),
        "Conv2d": lambda: nn.Conv2d(24, 48, 3),
        "ConvTranspose2d": lambda: nn.ConvTranspose2d(24, 48, 3),
    }[kind]
    return nn.Sequential(*(make() for _ in range(count)))
