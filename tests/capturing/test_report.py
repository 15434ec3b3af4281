"""What a report says that no other test asks for."""

import torch
from tied_forms import TwoConvs
from torch import nn

import fxtie
from fxtie import Rule


def test_unused_targets_are_told():
    net = TwoConvs()
    net.aux = nn.Conv2d(16, 32, 3)
    tied = fxtie.transform(net, [Rule("conv_2", "conv_1"), Rule("aux", "conv_1", torch.neg)])
    assert fxtie.report(tied).unused == ("aux.weight", "aux.bias")
    assert "aux.weight" not in tied.state_dict()
