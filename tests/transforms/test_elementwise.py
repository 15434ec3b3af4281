"""Transforms that keep every element in its place."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fxtie.transforms import same, stop_gradient


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
