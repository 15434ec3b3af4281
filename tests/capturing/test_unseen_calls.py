"""Parts that stay calls: what they may change, and in which mode."""

import pytest
import torch
from compared import check
from elsewhere import Outer, Two
from torch import nn

import fxtie


class Halving(nn.Module):
    """Changes what it gets in one mode."""

    def __init__(self, when_training):
        super().__init__()
        self.when_training = when_training

    def forward(self, x):
        if self.training is self.when_training:
            x.mul_(0.5)
        return x + 1


class Derivation(Two):
    """Derives a tensor before and after parts have got its source."""

    def __init__(self, *parts):
        super().__init__()
        self.register_buffer("scale", torch.ones(4))
        self.parts = nn.ModuleList(parts)

    def forward(self, x):
        x = self.b(x)
        for part in self.parts:
            x = x * part(self.scale)
        return self.b(x)


@pytest.mark.parametrize("when_training", [False, True])
def test_a_part_that_changes_a_source_in_one_mode(when_training):
    rule = fxtie.Tie("b.bias", "scale", torch.exp)
    check(lambda: Derivation(Halving(when_training)), "graph", rule=rule)


@pytest.mark.parametrize("inplace", [False, True])
def test_a_layer_inside_of_a_part_that_changes_a_source(inplace):
    rule = fxtie.Tie("b.bias", "scale", torch.exp)
    check(lambda: Derivation(Outer(nn.Hardtanh(-0.5, 0.5, inplace))), "graph", rule=rule)


@pytest.mark.parametrize("layer", [nn.Tanh(), nn.Sequential(Outer(nn.Tanh()))])
def test_layers_inside_of_a_part_that_change_nothing(layer):
    tied = fxtie.transform(Derivation(Outer(layer)), fxtie.Tie("b.bias", "scale", torch.exp))
    assert tied.code.count("torch.exp(") == 1
