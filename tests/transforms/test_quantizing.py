"""`fake_quant` and `ternary`: torch's own rounding, and gradients that go straight through."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import fxtie
from fxtie import Rule
from fxtie import transforms as T


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("dim", [None, 0, 1, -1])
def test_the_values_of_torch(bits: int, dim: int | None) -> None:
    torch.manual_seed(bits)
    weight, most = torch.randn(6, 5, 3), 2 ** (bits - 1) - 1
    if dim is None:
        step = weight.abs().max() / most
        expected = torch.fake_quantize_per_tensor_affine(weight, step.item(), 0, -most - 1, most)
    else:
        others = [i for i in range(3) if i != dim % 3]
        steps = weight.abs().amax(others) / most
        zeros = torch.zeros_like(steps)
        expected = torch.fake_quantize_per_channel_affine(
            weight, steps, zeros.int(), dim % 3, -most - 1, most
        )
    torch.testing.assert_close(T.fake_quant(bits, dim)(weight), expected)


@settings(deadline=None)
@given(st.integers(2, 8), st.lists(st.integers(0, 4), min_size=1, max_size=4), st.data())
def test_what_rounding_promises(bits: int, shape: list[int], data: st.DataObject) -> None:
    dim = data.draw(st.none() | st.integers(-len(shape), len(shape) - 1))
    weight = torch.randn(shape, dtype=torch.float64)
    if 0 in shape:
        return
    rounded = T.fake_quant(bits, dim)(weight)
    others = [i for i in range(len(shape)) if dim is None or i != dim % len(shape)]
    largest = weight.abs().amax(others, keepdim=True) if others else weight.abs()
    step = largest / (2 ** (bits - 1) - 1)
    assert ((rounded - weight).abs() <= step / 2 + 1e-12).all()
    torch.testing.assert_close((rounded / step).round() * step, rounded)
    torch.testing.assert_close(rounded.abs().max(), weight.abs().max())  # nothing is clipped
    torch.testing.assert_close(T.fake_quant(bits, dim)(rounded), rounded)  # twice is once
    torch.testing.assert_close(T.fake_quant(bits, dim)(-weight), -rounded)


def test_channels_of_zeros_stay_zero() -> None:
    weight = torch.tensor([[0.0, 0.0], [1.0, -0.3]], requires_grad=True)
    for transform in (T.fake_quant(4), T.fake_quant(4, dim=0), T.ternary()):
        rounded = transform(weight)
        assert rounded[0].tolist() == [0.0, 0.0] and rounded.isfinite().all()
    assert T.ternary(torch.zeros(3)).tolist() == [0.0] * 3


@settings(deadline=None)
@given(st.lists(st.floats(-9, 9, width=32), min_size=1, max_size=20))
def test_ternary_has_three_values(values: list[float]) -> None:
    weight = torch.tensor(values, dtype=torch.float64)
    size = weight.abs().mean().clamp(min=1e-5)
    levels = T.ternary(weight) / size
    torch.testing.assert_close(levels, levels.round())
    assert levels.abs().max() <= 1 + 1e-12
    assert (levels[weight.abs() > size * 0.51] != 0).all()
    assert (levels[weight.abs() < size * 0.49] == 0).all()
    assert (levels * weight >= 0).all()


def bitlinear(weight: Tensor) -> Tensor:
    """`weight_quant` of the BitNet authors' published code."""
    scale = 1.0 / weight.abs().mean().clamp_(min=1e-5)
    return (weight * scale).round().clamp_(-1, 1) / scale


def test_ternary_is_that_of_bitnet() -> None:
    weight = torch.randn(64, 32)
    torch.testing.assert_close(T.ternary(weight), bitlinear(weight))


@pytest.mark.parametrize("transform", [T.fake_quant(3), T.fake_quant(3, dim=0), T.ternary()])
def test_gradients_go_straight_through(transform: object) -> None:
    net = nn.Sequential(nn.Linear(5, 4, bias=False))
    tied = fxtie.transform(net, Rule("0", "0", transform))
    x, y = torch.randn(8, 5), torch.randn(8, 4)
    (tied(x) * y).sum().backward()
    torch.testing.assert_close(net[0].weight.grad, y.T @ x)


@pytest.mark.parametrize("transform", [T.fake_quant(4, dim=0), T.ternary()])
def test_a_quantised_model_learns(transform: object) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 1))
    tied = fxtie.transform(net, Rule("*", "{0}", transform, None))
    x = torch.randn(64, 8)
    y = x[:, :1] - x[:, 1:2]
    optimizer = torch.optim.Adam(tied.parameters(), lr=0.01)
    losses = []
    for _ in range(60):
        optimizer.zero_grad()
        loss = (tied(x) - y).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.3 * losses[0]
