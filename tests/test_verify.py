"""The oracle itself: it passes what is right and finds what is wrong."""

import random

import pytest
import torch
from torch import nn

import fxtie
from fxtie import Rule
from fxtie.verify import Vacuous


def net(**options) -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 4, **options), nn.Tanh(), nn.Linear(4, 4, **options))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_right_model_passes(dtype):
    model = net(dtype=dtype)
    tied = fxtie.transform(model, Rule("2", "0", torch.square))
    fxtie.verify(model, tied, torch.randn(3, 4, dtype=dtype))


def test_a_wrong_output_is_found():
    model = net()
    tied = fxtie.transform(model, Rule("2", "0", torch.square))
    (square,) = tied.graph.find_nodes(op="call_function", target=torch.square)
    square.target = torch.neg
    tied.recompile()
    with pytest.raises(fxtie.VerificationError, match="output 0 in eval"):
        fxtie.verify(model, tied, torch.randn(3, 4))


def test_a_wrong_gradient_is_found():
    model = net()
    tied = fxtie.transform(model, Rule("2", "0", torch.square))
    (square,) = tied.graph.find_nodes(op="call_function", target=torch.square)
    with tied.graph.inserting_after(square):
        cut = tied.graph.call_method("detach", (square,))
    square.replace_all_uses_with(cut, lambda user: user is not cut)
    tied.recompile()
    with pytest.raises(fxtie.VerificationError, match=r"gradient of 0\.weight in eval"):
        fxtie.verify(model, tied, torch.randn(3, 4))


def test_a_comparison_that_proves_nothing_is_refused():
    model = net()
    tied = fxtie.transform(model, Rule("2", "0", lambda w: w * 0, lambda b: b * 0))
    with pytest.raises(Vacuous):
        fxtie.verify(model, tied, torch.randn(3, 4))


def test_learnable_transforms_are_compared():
    model = net()
    tied = fxtie.transform(model, Rule("2", "0", fxtie.transforms.LowRank(2)))
    fxtie.verify(model, tied, torch.randn(3, 4))


def test_random_generators_are_as_before():
    numpy = pytest.importorskip("numpy")
    net = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5), nn.Linear(4, 4))
    tied = fxtie.transform(net, fxtie.Rule("2", "0", torch.neg))
    x = torch.randn(8, 4)

    def draw():
        return torch.rand(1).item(), random.random(), numpy.random.rand()

    for generator in (torch.manual_seed, random.seed, numpy.random.seed):
        generator(5)
    expected = draw()
    for generator in (torch.manual_seed, random.seed, numpy.random.seed):
        generator(5)
    fxtie.verify(net, tied, x)
    assert draw() == expected
