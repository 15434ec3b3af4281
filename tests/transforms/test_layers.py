"""Which layers `transpose` may stand between."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from fxtie import transforms as T
from fxtie.transforms import ComparesLayers

PAIRS = [
    (nn.Conv1d, nn.ConvTranspose1d),
    (nn.Conv2d, nn.ConvTranspose2d),
    (nn.Conv3d, nn.ConvTranspose3d),
]


@pytest.mark.parametrize(("conv", "back"), PAIRS)
@pytest.mark.parametrize("inverse", [False, True])
@pytest.mark.parametrize(
    ("channels", "groups"), [((8, 8), 1), ((8, 4), 1), ((8, 8), 4), ((8, 8), 8)]
)
def test_the_layer_that_leads_back_takes_the_weight_as_it_is(
    conv: Any, back: Any, inverse: bool, channels: tuple[int, int], groups: int
) -> None:
    """The remedy is right: with `same`, one layer is the adjoint of the other."""
    a, b = channels
    first, second = (back, conv) if inverse else (conv, back)
    source = first(a, b, 3, groups=groups, bias=False).double()
    target = second(b, a, 3, groups=groups, bias=False).double()
    fault = T.transpose().fault_between(source, target)
    assert fault is not None
    assert fault.startswith(f"a {second.__name__} that leads back from a {first.__name__} takes ")
    assert "weight=fxtie.same()" in fault and "lambda w: w.transpose(0, 1)" in fault

    with torch.no_grad():
        target.weight.copy_(T.same(source.weight))
    x = torch.randn(2, a, *(7,) * (source.weight.dim() - 2), dtype=torch.float64)
    forth = source(x)
    y = torch.randn_like(forth)
    torch.testing.assert_close((forth * y).sum(), (x * target(y)).sum())


@pytest.mark.parametrize(("conv", "back"), PAIRS)
def test_where_transpose_is_right(conv: Any, back: Any) -> None:
    transpose = T.transpose()
    assert transpose.fault_between(conv(4, 8, 3), back(4, 8, 3)) is None  # the same direction
    assert transpose.fault_between(back(4, 8, 3), conv(4, 8, 3)) is None
    assert transpose.fault_between(conv(8, 8, 3), conv(8, 8, 3)) is None
    assert transpose.fault_between(nn.Linear(8, 8), nn.Linear(8, 8)) is None
    assert (
        T.transpose(-2, -1).fault_between(conv(8, 8, 3), back(8, 8, 3)) is None or conv is nn.Conv1d
    )


def test_layers_of_different_kinds_are_not_compared() -> None:
    assert T.transpose().fault_between(nn.Conv1d(8, 8, 3), nn.ConvTranspose2d(8, 8, 3)) is None
    assert T.transpose().fault_between(nn.Embedding(8, 8), nn.ConvTranspose1d(8, 8, 3)) is None


def test_dimensions_counted_from_the_last_are_the_same() -> None:
    layers = nn.Conv2d(8, 8, 3), nn.ConvTranspose2d(8, 8, 3)
    assert T.transpose(-3, -4).fault_between(*layers) == T.transpose().fault_between(*layers)
    assert T.transpose(0, 2).fault_between(*layers) is None


def test_subclasses_count_as_their_layer() -> None:
    class Decoder(nn.ConvTranspose2d): ...

    fault = T.transpose().fault_between(nn.Conv2d(8, 8, 3), Decoder(8, 8, 3))
    assert fault is not None and fault.startswith("a Decoder that leads back from a Conv2d")


def test_the_protocol() -> None:
    assert isinstance(T.transpose(), ComparesLayers)
    assert not isinstance(T.rot90(1), ComparesLayers)
