"""`fxtie.transforms` and its registry: values, gradients, shapes, tracing, copies, specs."""

from __future__ import annotations

import copy
import itertools
import json
import math
import operator
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor, fx, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import functional_call

from fxtie.errors import RuleError
from fxtie.transforms import (
    ChannelScale,
    FitsTarget,
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
    stop_gradient,
    sum,
    tile,
    transpose,
)
from fxtie.transforms.registry import from_spec, register, to_spec

MODES = ("nearest", "nearest-exact", "area", "linear", "cubic")


# --- An oracle in numpy -----------------------------------------------------------------------


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


@pytest.fixture(params=CASES.values(), ids=CASES.keys())
def case(request: pytest.FixtureRequest) -> Case:
    found = request.param
    assert isinstance(found, Case)
    return found


def expected(case: Case) -> Tensor:
    result = case.expected(*(x.numpy() for x in case.sources()))
    return torch.from_numpy(np.ascontiguousarray(result))


# --- Values and gradients ---------------------------------------------------------------------


def test_value_is_what_numpy_computes(case: Case) -> None:
    torch.testing.assert_close(case.transform(*case.sources()), expected(case))


def test_gradient(case: Case) -> None:
    sources = [x.requires_grad_() for x in case.sources()]
    assert torch.autograd.gradcheck(case.transform, sources)


def test_sources_are_left_as_they_are(case: Case) -> None:
    sources = case.sources()
    case.transform(*sources)
    assert all(map(torch.equal, sources, case.sources()))


def test_stop_gradient() -> None:
    source = torch.randn(3, requires_grad=True)
    derived = stop_gradient()(source)
    assert torch.equal(derived, source)
    (derived.sum() + 2 * source.sum()).backward()
    assert source.grad is not None and source.grad.tolist() == [2.0, 2.0, 2.0]


@pytest.mark.parametrize("groups", [1, 2])
def test_same_ties_a_conv_to_its_adjoint(groups: int) -> None:
    """The docstring of `transpose`: the ConvTranspose that leads back takes the weight as it is."""
    conv = nn.Conv2d(4, 6, 3, groups=groups, bias=False).double()
    back = nn.ConvTranspose2d(6, 4, 3, groups=groups, bias=False)
    assert back.weight.shape == conv.weight.shape
    x = torch.randn(1, 4, 7, 7, dtype=torch.float64)
    y = torch.randn(1, 6, 5, 5, dtype=torch.float64)
    returned = F.conv_transpose2d(y, same(conv.weight), groups=groups)
    torch.testing.assert_close((conv(x) * y).sum(), (x * returned).sum())


def test_transpose_and_flip_make_the_adjoint_kernel_of_a_conv() -> None:
    weight = torch.randn(6, 4, 3, 3, dtype=torch.float64)
    y = torch.randn(1, 6, 5, 5, dtype=torch.float64)
    back = F.conv2d(y, chain(transpose(), flip(-2, -1))(weight), padding=2)
    torch.testing.assert_close(back, F.conv_transpose2d(y, weight))


def test_transpose_fits_conv_to_conv_transpose_in_the_same_direction() -> None:
    shape = transpose()(nn.Conv2d(4, 6, 3).weight).shape
    assert shape == nn.ConvTranspose2d(4, 6, 3).weight.shape
    assert shape != nn.ConvTranspose2d(4, 6, 3, groups=2).weight.shape


def test_rot90_of_the_filter_is_rot90_of_the_result() -> None:
    image = torch.randn(1, 2, 8, 8, dtype=torch.float64)
    weight = torch.randn(3, 2, 3, 3, dtype=torch.float64)
    turned = F.conv2d(torch.rot90(image, 1, (-2, -1)), rot90(1)(weight))
    torch.testing.assert_close(turned, torch.rot90(F.conv2d(image, weight), 1, (-2, -1)))


def test_resize_keeps_a_constant_and_scale_makes_up_for_the_sum() -> None:
    grown = chain(resize("linear"), scale(9 / 25)).for_target(torch.empty(1, 1, 5, 5))
    torch.testing.assert_close(grown(torch.ones(1, 1, 3, 3)).sum(), torch.tensor(9.0))


@pytest.mark.parametrize(
    ("written", "family"), [("bilinear", "linear"), ("trilinear", "linear"), ("bicubic", "cubic")]
)
def test_resize_takes_torch_mode_names(written: str, family: str) -> None:
    assert resize(written) == resize(family)


def test_transforms_keep_the_dtype() -> None:
    for dtype in (torch.bfloat16, torch.float16, torch.float64):
        x = torch.rand(4, 4, 3, 3, dtype=torch.float32).to(dtype)
        for f in (square, abs, neg, scale(0.5), standardize(), mean(), sum(), Mix(1).for_target(x)):
            assert f(x).dtype == dtype, (f, dtype)


# --- Shapes: every pair fits or says why not --------------------------------------------------

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


@settings(deadline=None)
@given(
    pair=pairs,
    transform=st.sampled_from(
        [tile(), crop(), crop(center=True), pad(value=1.5), *map(resize, MODES)]
    ),
)
def test_every_pair_of_shapes_fits_or_says_why_not(
    pair: tuple[tuple[int, ...], tuple[int, ...]], transform: Any
) -> None:
    have, want = pair
    source = torch.arange(1.0, 1 + math.prod(have)).reshape(have)
    fitted = transform.for_target(torch.empty(want, device="meta"))
    if fits(transform, have, want):
        derived = fitted(source)
        assert derived.shape == want
        if have == want:
            assert derived is source
    else:
        with pytest.raises(ValueError) as error:
            fitted(source)
        message = str(error.value)
        assert f"{type(transform).__name__}()" in message
        assert f"{have} to {want}" in message


@settings(deadline=None)
@given(pair=pairs)
def test_tile_and_pad_agree_with_numpy(pair: tuple[tuple[int, ...], tuple[int, ...]]) -> None:
    have, want = pair
    assume(fits(tile(), have, want))
    source = torch.arange(1.0, 1 + math.prod(have), dtype=torch.float64).reshape(have)
    assert torch.equal(
        tile(shape=want)(source), torch.from_numpy(np_tile(source.numpy(), want)).double()
    )
    if fits(pad(), have, want):
        padded = pad(value=-1.0, shape=want)(source)
        assert torch.equal(padded, torch.from_numpy(np_pad(source.numpy(), want, -1.0)))


@settings(deadline=None)
@given(pair=pairs, chained=st.booleans(), rank=st.integers(1, 4), dim=st.integers(-3, 3))
def test_every_target_of_a_learned_transform_fits_or_says_why_not(
    pair: tuple[tuple[int, ...], tuple[int, ...]], chained: bool, rank: int, dim: int
) -> None:
    have, want = pair
    source = torch.ones(have)
    reaches = fits(tile(), have, want) if chained else have == want
    low_rank = len(want) > 1 and rank <= min(want[0], math.prod(want[1:]))
    channels = -len(want) <= dim < len(want)
    for transform, works in ((LowRank(rank), low_rank), (ChannelScale(dim), channels)):
        if works and reaches:
            adapted = chain(tile(), transform) if chained else transform
            assert adapted.for_target(torch.empty(want))(source).shape == want
        else:
            with pytest.raises(ValueError):
                adapted = chain(tile(), transform) if chained else transform
                adapted.for_target(torch.empty(want))(source)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: tile()(torch.ones(2)), "for_target"),
        (lambda: tile(shape=(2, 2))(torch.ones(2)), r"\(2,\) to \(2, 2\)"),
        (lambda: crop(shape=(3,))(torch.ones(2)), "pad"),
        (lambda: pad(shape=(1,))(torch.ones(2)), "crop"),
        (lambda: resize("bilinaer"), "nearest-exact"),
        (lambda: resize("cubic", shape=(3,))(torch.ones(2)), "'linear'"),
        (lambda: standardize(0.0), "positive"),
        (lambda: standardize()(torch.ones(8, 1)), r"\(8, 1\)"),
        (lambda: standardize()(torch.ones(8)), r"\(8,\)"),
        (lambda: scale(torch.ones(1)), "number"),
        (lambda: scale(math.nan), "finite"),
        (lambda: pad(value=math.inf), "finite"),
        (lambda: rot90(0.5), "integers"),
        (lambda: flip(), "dimensions"),
        (lambda: slice(0, 3, 3), "start < stop"),
        (lambda: slice(0, -2, 3), "start < stop"),
        (lambda: repeat_interleave(0, 1), "positive"),
        (lambda: mean()(), "one or more"),
        (lambda: sum()(), "one or more"),
        (lambda: chain(), "same"),
        (lambda: chain(tile), r"Call it: tile\(\)"),
        (lambda: chain(tile(), square, pad()), r"tile\(\) and pad\(\)"),
        (lambda: LowRank(0), "positive"),
        (lambda: Mix(0), "positive"),
        (lambda: Mix(2).for_target(torch.ones(1))(torch.ones(1)), r"Mix\(2\) takes 2"),
        (lambda: LowRank(2)(torch.ones(2, 2)), "for_target"),
        (lambda: LowRank(1).for_target(torch.ones(2, 2, dtype=torch.int64)), "int64"),
        (lambda: LowRank(3).for_target(torch.empty(2, 9)), "at most 2"),
        (lambda: ChannelScale().for_target(torch.empty(())), "no dimension 0"),
        (lambda: ChannelScale().for_target(torch.empty(4, 2))(torch.ones(1, 2)), "tile"),
    ],
)
def test_mistakes_are_told(make: Callable[[], Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        make()


def test_slice_beyond_the_end_is_an_error_and_not_shorter() -> None:
    with pytest.raises((RuntimeError, IndexError)):
        slice(0, 1, 4)(torch.ones(3))


# --- Fitting, chains --------------------------------------------------------------------------


def test_for_target_is_the_documented_protocol() -> None:
    assert all(isinstance(f, FitsTarget) for f in (tile(), crop(), pad(), resize("area")))
    assert all(isinstance(f, FitsTarget) for f in (LowRank(1), ChannelScale(), chain(neg)))
    assert not any(isinstance(f, FitsTarget) for f in (same, scale(2), mean()))


def test_a_shape_given_by_hand_wins() -> None:
    assert tile(shape=[2, 3]).for_target(torch.empty(9)) == tile(shape=(2, 3))


def test_chain_gives_the_target_to_those_that_adapt() -> None:
    fitted = chain(crop(shape=(2,)), tile(), scale(2)).for_target(torch.empty(5))
    assert fitted == chain(crop(shape=(2,)), tile(shape=(5,)), scale(2))
    assert fitted(torch.tensor([1.0, 2.0, 3.0])).tolist() == [2.0, 4.0, 2.0, 4.0, 2.0]


def test_chain_without_one_that_adapts_stays_itself() -> None:
    for f in (chain(square, neg), chain(Mix(2).for_target(torch.empty(3)), neg)):
        assert f.for_target(torch.empty(3)) is f


def test_chain_lays_chains_flat() -> None:
    assert chain(chain(square, neg), chain(scale(2))) == chain(square, neg, scale(2))
    assert chain(neg, square)(torch.tensor(3.0)) == 9
    assert chain(square, neg)(torch.tensor(3.0)) == -9


def test_chain_of_modules_is_a_module_with_their_parameters() -> None:
    mix = Mix(2).for_target(torch.empty(4, 3))
    f = chain(mix, square, tile(), LowRank(1), ChannelScale())
    assert isinstance(f, nn.Module)
    fitted = f.for_target(torch.empty(4, 3))
    names = [name for name, _ in fitted.named_parameters()]
    assert names == ["0.weights", "3.A", "3.B", "4.scale"]
    assert next(fitted.parameters()) is mix.weights
    assert list(f.for_target(torch.empty(4, 3)).parameters())[1] is not fitted.transforms[3].A
    a, b = torch.randn(2, 3), torch.randn(2, 3)
    once = mix(a, b) ** 2
    torch.testing.assert_close(fitted(a, b), torch.cat([once, once]))


class Column(nn.Module):
    """A user's own adapting transform, which makes a module for each target."""

    def for_target(self, target: Tensor) -> nn.Module:
        return nn.Linear(1, target.shape[1], bias=False)


def test_a_user_module_adapts_in_a_chain() -> None:
    fitted = chain(lambda w: w.unsqueeze(1), Column()).for_target(torch.empty(4, 3))
    assert [tuple(p.shape) for p in fitted.parameters()] == [(3, 1)]
    assert fitted(torch.ones(4)).shape == (4, 3)


# --- Learned ----------------------------------------------------------------------------------

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


@pytest.fixture(params=LEARNED.values(), ids=LEARNED.keys())
def learned(request: pytest.FixtureRequest) -> tuple[nn.Module, list[Tensor]]:
    """A fitted module in float64, away from its start, and its sources."""
    torch.manual_seed(0)
    make, count = request.param
    module = make().double()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn_like(parameter))
    return module, [torch.randn(4, 3, 2, 2, dtype=torch.float64) for _ in range(count)]


def test_learned_gradients_of_sources_and_parameters(
    learned: tuple[nn.Module, list[Tensor]],
) -> None:
    module, sources = learned
    names = [name for name, _ in module.named_parameters()]

    def run(*tensors: Tensor) -> Tensor:
        parameters = dict(zip(names, tensors, strict=False))
        return functional_call(module, parameters, tensors[len(names) :])

    values = [*module.parameters(), *sources]
    assert torch.autograd.gradcheck(run, [v.detach().clone().requires_grad_() for v in values])


def test_learned_copies_are_independent_and_equal(
    learned: tuple[nn.Module, list[Tensor]],
) -> None:
    module, sources = learned
    before = module(*sources)
    for twin in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        assert torch.equal(twin(*sources), before)
        assert repr(twin) == repr(module)
        with torch.no_grad():
            for parameter in twin.parameters():
                parameter.add_(1)
        assert not torch.allclose(twin(*sources), before)
        assert torch.equal(module(*sources), before)


def test_learned_values() -> None:
    generator = torch.Generator().manual_seed(1)
    w = torch.randn(4, 3, 2, generator=generator)
    low_rank = LowRank(2).for_target(w)
    nn.init.normal_(low_rank.B, generator=generator)
    product = np.einsum("or,ri->oi", low_rank.B.detach().numpy(), low_rank.A.detach().numpy())
    torch.testing.assert_close(low_rank(w).detach(), w + torch.from_numpy(product).reshape(4, 3, 2))
    for dim in range(-3, 3):
        factors = ChannelScale(dim).for_target(w)
        nn.init.normal_(factors.scale, generator=generator)
        moved = torch.movedim(w, dim, -1) * factors.scale
        torch.testing.assert_close(factors(w), torch.movedim(moved, -1, dim))
    mix = Mix(2).for_target(w)
    mix.weights.data = torch.tensor([2.0, -0.5])
    torch.testing.assert_close(mix(w, w.square()), 2 * w - 0.5 * w * w)


def test_learned_transforms_start_at_the_source() -> None:
    w = torch.randn(4, 3)
    assert torch.equal(LowRank(2).for_target(w)(w), w)
    assert torch.equal(ChannelScale().for_target(w)(w), w)


def test_reset_parameters_goes_back_to_the_start_in_place() -> None:
    w = torch.randn(4, 3)
    for module in (LowRank(2).for_target(w), ChannelScale().for_target(w)):
        before = list(module.parameters())
        for parameter in before:
            nn.init.constant_(parameter, 7.0)
        assert not torch.equal(module(w), w)
        module.reset_parameters()
        assert torch.equal(module(w), w)
        assert all(map(operator.is_, before, module.parameters()))


def test_low_rank_can_leave_its_start() -> None:
    """With B at 0 the gradient of A is 0: that of B must not be, so A may not start at 0."""
    w = torch.randn(4, 9)
    f = LowRank(3).for_target(w)
    f(w).square().sum().backward()
    assert f.B.grad is not None and f.B.grad.abs().max() > 1e-3
    assert 0 < f.A.abs().max() <= 1 / math.sqrt(9)


def test_each_target_gets_parameters_of_its_own_and_a_fitted_one_is_kept() -> None:
    w = torch.randn(4, 3)
    for f in (LowRank(1), ChannelScale()):
        assert not list(f.parameters())
        first, second = f.for_target(w), f.for_target(w)
        assert not {map(id, first.parameters())} & {map(id, second.parameters())}
        assert first.for_target(w) is first
        with pytest.raises(ValueError, match=r"\(4, 3\).*\(3, 4\)"):
            first.for_target(w.T)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_parameters_have_the_dtype_and_device_of_the_target(
    dtype: torch.dtype, device: str
) -> None:
    with FakeTensorMode():
        target = torch.empty(4, 3, dtype=dtype, device=device)
    for f in (LowRank(1), ChannelScale(), chain(neg, LowRank(2))):
        for parameter in f.for_target(target).parameters():
            assert type(parameter) is nn.Parameter and type(parameter.data) is Tensor
            assert (parameter.dtype, parameter.device.type) == (dtype, device)
            assert parameter.requires_grad


# --- Tracing ----------------------------------------------------------------------------------


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


def test_traced_by_proxies_that_know_their_shape(case: Case) -> None:
    sources = case.sources()
    root = root_of(case.transform, len(sources))
    traced = fx.GraphModule(root, ShapeTracer(sources).trace(root))
    assert not [n for n in traced.graph.nodes if n.op == "call_module"]
    assert torch.equal(traced(*sources), case.transform(*sources))


@pytest.mark.parametrize(
    "case", [pytest.param(c, id=name) for name, c in CASES.items() if not c.needs_shape]
)
def test_traced_by_stock_fx_where_no_shape_is_needed(case: Case) -> None:
    sources = case.sources()
    traced = fx.symbolic_trace(root_of(case.transform, len(sources)))
    assert torch.equal(traced(*sources), case.transform(*sources))


def test_learned_transforms_are_traceable(learned: tuple[nn.Module, list[Tensor]]) -> None:
    module, sources = learned
    root = root_of(module, len(sources))
    traced = fx.GraphModule(root, ShapeTracer(sources).trace(root))
    assert {name for name, _ in traced.named_parameters()} == {
        name for name, _ in root.named_parameters()
    }
    assert torch.equal(traced(*sources), module(*sources))


def test_nothing_is_added_to_the_graph_where_the_shape_fits_already() -> None:
    source = torch.randn(2, 3)
    for f in (tile(), crop(), pad(), resize("linear")):
        root = root_of(f.for_target(source), 1)
        assert [n.op for n in ShapeTracer([source]).trace(root).nodes] == ["placeholder", "output"]


# --- Copies, equality, repr -------------------------------------------------------------------


def test_copies_are_equal(case: Case) -> None:
    for twin in (copy.deepcopy(case.transform), pickle.loads(pickle.dumps(case.transform))):
        assert twin == case.transform and hash(twin) == hash(case.transform)
        torch.testing.assert_close(twin(*case.sources()), expected(case))


def test_different_transforms_differ() -> None:
    distinct = {case.transform for case in CASES.values()}
    distinct |= {crop(), crop(center=True), pad(), pad(value=1), tile(), rot90(1), chain(square)}
    listed = list(distinct)
    for a, b in itertools.combinations(listed, 2):
        assert a != b
    assert len(listed) == len(CASES) + 6  # rot90(1) is among the cases


def test_equal_after_fitting_to_equal_shapes() -> None:
    for f in (tile(), crop(), pad(value=2), resize("area"), chain(neg, tile())):
        a, b = f.for_target(torch.empty(2, 3)), f.for_target(torch.ones(2, 3))
        assert a == b and hash(a) == hash(b)
        assert a != f.for_target(torch.empty(3, 2))
    assert LowRank(1) != LowRank(1)


def test_frozen() -> None:
    with pytest.raises(AttributeError):
        scale(2).s = 3  # type: ignore[misc]


@pytest.mark.parametrize(
    "text",
    [
        "scale(0.5)",
        "rot90(1)",
        "tile()",
        "tile(shape=(2, 3))",
        "crop(center=True)",
        "crop(center=True, shape=(2, 3))",
        "resize('area', shape=(2,))",
        "pad(value=1.0)",
        "resize('linear')",
        "flip(-2, -1)",
        "slice(0, 1, 2)",
        "repeat_interleave(2, 0)",
        "standardize()",
        "transpose()",
        "mean()",
        "chain(square, scale(0.5), tile())",
        "chain(Mix(2), abs, LowRank(4), ChannelScale(), ChannelScale(dim=1))",
    ],
)
def test_repr_is_the_call(text: str) -> None:
    assert repr(eval(text)) == text


# --- Specs ------------------------------------------------------------------------------------

numbers = st.floats(allow_nan=False, allow_infinity=False, width=32)
maybe_shape = st.none() | shapes
simple = st.one_of(
    st.sampled_from([same, square, abs, neg, transpose(), mean(), sum(), stop_gradient()]),
    st.builds(scale, numbers),
    st.builds(standardize, st.floats(1e-9, 1)),
    st.builds(rot90, st.integers()),
    st.lists(st.integers(-4, 4), min_size=1).map(lambda dims: flip(*dims)),
    st.builds(repeat_interleave, st.integers(1, 9), st.integers(-4, 4)),
    st.builds(slice, st.integers(-4, 4), st.integers(0, 5), st.integers(6, 9)),
)
shaped = st.one_of(
    st.builds(tile, shape=maybe_shape),
    st.builds(crop, center=st.booleans(), shape=maybe_shape),
    st.builds(pad, value=numbers, shape=maybe_shape),
    st.builds(resize, st.sampled_from(MODES), shape=maybe_shape),
)
chains = st.tuples(st.lists(simple, min_size=1), st.lists(shaped, max_size=1)).map(
    lambda parts: chain(*parts[0], *parts[1])
)


@settings(deadline=None)
@given(simple | shaped | chains)
def test_spec_round_trip(transform: Callable[..., Tensor]) -> None:
    text = json.dumps(to_spec(transform), allow_nan=False)
    read = from_spec(json.loads(text))
    assert read == transform and type(read) is type(transform)


@pytest.mark.parametrize(
    "make",
    [
        lambda: LowRank(3),
        lambda: LowRank(3).for_target(torch.empty(4, 4)),
        lambda: ChannelScale(1),
        lambda: Mix(4),
        lambda: chain(Mix(2), square, LowRank(1)),
    ],
)
def test_spec_round_trip_of_learned_transforms(make: Callable[[], nn.Module]) -> None:
    module = make()
    read = from_spec(json.loads(json.dumps(to_spec(module))))
    assert type(read) is type(module) and repr(read) == repr(module)
    assert to_spec(read) == to_spec(module)


@pytest.mark.parametrize(
    ("transform", "spec"),
    [
        (square, "square"),
        (torch.square, "square"),
        (torch.abs, "abs"),
        (torch.neg, "neg"),
        (operator.neg, "neg"),
        (rot90(1), {"transform": "rot90", "k": 1}),
        (tile(), "tile"),
        (tile(shape=(2,)), {"transform": "tile", "shape": [2]}),
        (
            chain(torch.square, scale(2)),
            {
                "transform": "chain",
                "transforms": [{"transform": "square"}, {"transform": "scale", "s": 2.0}],
            },
        ),
    ],
)
def test_spec_text(transform: Callable[..., Tensor], spec: Any) -> None:
    assert to_spec(transform) == spec


def test_inner_transforms_may_be_written_as_plain_names() -> None:
    spec = {"transform": "chain", "transforms": ["square", {"transform": "scale", "s": 2}, "tile"]}
    assert from_spec(spec) == chain(square, scale(2.0), tile())


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ("sqare", "'square'"),
        ("os.system", "register"),
        ({"transform": "rot9", "k": 1}, "'rot90'"),
        ({"transform": "rot90"}, "'k'.*missing"),
        ({"transform": "rot90", "l": 1}, "'l'.*'k'"),
        ({"transform": "crop", "centre": True}, "'centre'.*'center'"),
        ({"transform": "rot90", "k": True}, "'k'.*int"),
        ({"transform": "rot90", "k": 1.0}, "'k'.*int"),
        ({"transform": "rot90", "k": "1"}, "'k'.*int"),
        ({"transform": "scale", "s": "2"}, "'s'.*float"),
        ({"transform": "scale", "s": math.nan}, "'s'.*float"),
        ({"transform": "scale", "s": 10**400}, "'s'.*float"),
        ({"transform": "crop", "center": 1}, "'center'.*bool"),
        ({"transform": "tile", "shape": 3}, "'shape'"),
        ({"transform": "tile", "shape": [1.5]}, "'shape'.*1.5"),
        ({"transform": "flip", "dims": []}, "dimensions"),
        ({"transform": "slice", "dim": 0, "start": 2, "stop": 1}, "start < stop"),
        ({"transform": "resize", "mode": "best"}, "nearest"),
        ({"transform": "square", "p": 2}, "no arguments.*'p'"),
        ({"transform": "chain", "transforms": "square"}, "'transforms'"),
        ({"transform": "chain", "transforms": [3]}, "'transforms'.*3"),
        ({"transform": "chain", "transforms": ["squar"]}, "'square'"),
        ({"k": 1}, "written as"),
        (["square"], "written as"),
        (None, "written as"),
    ],
)
def test_bad_specs_are_refused(spec: Any, says: str) -> None:
    with pytest.raises(RuleError, match=says):
        from_spec(spec)


def test_endless_nesting_is_refused() -> None:
    spec: Any = "square"
    for _ in range(100_000):
        spec = {"transform": "chain", "transforms": [spec]}
    with pytest.raises(RuleError, match="deep"):
        from_spec(spec)
    while isinstance(spec, dict):  # take it apart here, not in a deep destructor
        spec = spec["transforms"][0]


names = ["square", "scale", "rot90", "flip", "slice", "tile", "crop", "pad", "resize", "chain"]
keys = ["s", "k", "dims", "dim", "start", "stop", "shape", "value", "mode", "transforms", "center"]
junk = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.sampled_from(names) | st.text(),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["transform", *keys]), inner, max_size=4)
    ),
    max_leaves=8,
)


@settings(deadline=None)
@given(
    st.builds(
        lambda name, rest: {**rest, "transform": name},
        st.sampled_from(names),
        st.dictionaries(st.sampled_from(keys), junk, max_size=3),
    )
    | junk
)
def test_any_json_is_read_or_refused(spec: Any) -> None:
    try:
        transform = from_spec(spec)
    except RuleError:
        return
    assert from_spec(to_spec(transform)) == transform


# --- Names for one's own ----------------------------------------------------------------------


def plus_one(source: Tensor) -> Tensor:
    return source + 1


def unnamed(source: Tensor) -> Tensor:
    return source


@register("tests.blend")
@dataclass(frozen=True)
class Blend:
    inner: Callable[..., Tensor]
    label: str
    amounts: tuple[float, float] = (1.0, 2.0)
    limit: int | None = None

    def __call__(self, source: Tensor) -> Tensor:
        return self.inner(source) * self.amounts[0] + self.amounts[1]


@dataclass(frozen=True)
class MoreThanBlend(Blend):
    extra: int = 3


@register("tests.loose")
@dataclass(frozen=True)
class Loose:
    value: Any

    def __call__(self, source: Tensor) -> Tensor:
        return source


@register("tests.hyper")
class Hyper(nn.Module):
    def __init__(self, width: int, act: Callable[..., Tensor] = torch.neg) -> None:
        super().__init__()
        self.width, self.act = width, act
        self.net = nn.Linear(width, width)


register("tests.plus_one")(plus_one)


def test_a_registered_function_goes_by_its_name() -> None:
    assert to_spec(chain(plus_one, square)) == {
        "transform": "chain",
        "transforms": [{"transform": "tests.plus_one"}, {"transform": "square"}],
    }
    assert from_spec("tests.plus_one") is plus_one


@pytest.mark.parametrize("inner", [square, chain(neg, tile(shape=(2,))), Blend(neg, "x")])
def test_a_registered_dataclass_goes_by_its_arguments(inner: Callable[..., Tensor]) -> None:
    # The label is the name of a transform, and stays a string.
    for blend in (Blend(inner, "square"), Blend(inner, "", (0.5, 3.0), 7)):
        assert from_spec(json.loads(json.dumps(to_spec(blend)))) == blend


def test_a_registered_module_goes_by_its_arguments() -> None:
    read = from_spec(to_spec(Hyper(3, torch.abs)))
    assert isinstance(read, Hyper) and (read.width, read.act) == (3, abs)


@pytest.mark.parametrize(
    "value", ["square", 1, 1.5, None, True, (1, "a", (2.0,)), square, scale(2)]
)
def test_arguments_without_a_type_keep_their_value(value: Any) -> None:
    read = from_spec(json.loads(json.dumps(to_spec(Loose(value)))))
    assert read == Loose(value) and type(read.value) is type(value)


@pytest.mark.parametrize(
    ("transform", "says"),
    [
        (lambda w: w, "register"),
        (unnamed, "register"),
        (tile, "register"),
        (chain(square, unnamed), "register"),
        (MoreThanBlend(neg, "a"), "register"),
        (nn.Linear(2, 2), "register"),
        (Loose(math.inf), "'value'"),
        (Loose(torch.ones(2)), "'value'.*Tensor"),
        (Loose({"a": 1}), "'value'.*dict"),
        (Loose(unnamed), "register"),
        (Blend(neg, 3), "'label'.*str"),  # type: ignore[arg-type]
        (Blend(neg, "a", (1.0,)), "'amounts'"),  # type: ignore[arg-type]
        (Blend(neg, "a", limit=1.5), "'limit'.*int"),  # type: ignore[arg-type]
    ],
)
def test_what_has_no_spec_is_refused_with_the_remedy(transform: Any, says: str) -> None:
    with pytest.raises(RuleError, match=says):
        to_spec(transform)


def test_an_argument_that_is_not_kept_is_told() -> None:
    @register("tests.forgetful")
    class Forgetful(nn.Module):
        def __init__(self, width: int) -> None:
            super().__init__()

    with pytest.raises(RuleError, match=r"self\.width = width"):
        to_spec(Forgetful(2))


def test_names_are_given_once_and_the_same_code_may_run_again() -> None:
    def first(source: Tensor) -> Tensor:
        return source

    def again() -> Callable[..., Tensor]:
        def cell(source: Tensor) -> Tensor:
            return source

        return register("tests.cell")(cell)

    assert register("tests.first")(first) is first
    with pytest.raises(RuleError, match=r"'tests\.first' is taken"):
        register("tests.first")(again)
    with pytest.raises(RuleError, match="'square' is taken"):
        register("square")(first)
    again()
    newest = again()
    assert from_spec("tests.cell") is newest


def test_constructors_that_no_spec_can_describe_are_refused() -> None:
    class Open:
        def __init__(self, **options: int) -> None: ...

    class Clash:
        def __init__(self, transform: int) -> None: ...

    with pytest.raises(RuleError, match="options"):
        register("tests.open")(Open)
    with pytest.raises(RuleError, match="rename"):
        register("tests.clash")(Clash)
    with pytest.raises(RuleError, match="non-empty"):
        register("")
    with pytest.raises(RuleError, match="callable"):
        register("tests.text")("text")  # type: ignore[type-var]
    for name in ("tests.open", "tests.clash", "tests.text"):
        with pytest.raises(RuleError, match="no transform named"):
            from_spec(name)
