"""Transforms that bring a source to the shape of their target."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from transform_cases import MODES, fits, np_pad, np_tile, pairs

from fxtie.transforms import chain, crop, pad, resize, scale, tile

# --- Values and gradients ---------------------------------------------------------------------


def test_resize_keeps_a_constant_and_scale_makes_up_for_the_sum() -> None:
    grown = chain(resize("linear"), scale(9 / 25)).for_target(torch.empty(1, 1, 5, 5))
    torch.testing.assert_close(grown(torch.ones(1, 1, 3, 3)).sum(), torch.tensor(9.0))


@pytest.mark.parametrize(
    ("written", "family"), [("bilinear", "linear"), ("trilinear", "linear"), ("bicubic", "cubic")]
)
def test_resize_takes_torch_mode_names(written: str, family: str) -> None:
    assert resize(written) == resize(family)


# --- Shapes: every pair fits or says why not --------------------------------------------------


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


def test_a_shape_given_by_hand_wins() -> None:
    assert tile(shape=[2, 3]).for_target(torch.empty(9)) == tile(shape=(2, 3))


def test_pad_without_elements() -> None:
    source = torch.zeros(0, 2, requires_grad=True)
    padded = pad(shape=(0, 3))(source)
    assert padded.shape == (0, 3)
    padded.sum().backward()
    assert source.grad is not None and source.grad.shape == (0, 2)
