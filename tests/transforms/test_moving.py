"""Transforms that move or select elements."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fxtie.transforms import chain, flip, rot90, slice, transpose

# --- Values and gradients ---------------------------------------------------------------------


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


def test_slice_beyond_the_end_is_an_error_and_not_shorter() -> None:
    with pytest.raises((RuntimeError, IndexError)):
        slice(0, 1, 4)(torch.ones(3))
