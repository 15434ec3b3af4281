"""Shapes of what nodes give, found without computing anything."""

import pytest
import torch
from html_pages import small, written
from torch import nn

import fxtie
from fxtie import Rule


def test_shapes_need_inputs_and_compute_nothing(tmp_path):
    net, rules = small()
    tied = fxtie.transform(net, rules)
    without, with_inputs = fxtie.diff(net, tied), fxtie.diff(net, tied, torch.randn(7, 4))
    assert "(7, 4)" not in written(without, tmp_path)
    assert "(7, 4)" in written(with_inputs, tmp_path)
    with pytest.raises(fxtie.FxtieError):
        fxtie.diff(net, tied, torch.randn(7, 5))


class Layer(nn.Module):
    """As layers of language models: called with a keyword that the trace does not know of."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.other = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(7, 4)

    def forward(self, x, positions=None):
        if positions is None:
            return self.second(self.other(x))
        return self.second(self.first(x)) + positions[0]


class Kept(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = Layer()

    def forward(self, x):
        with torch.no_grad():  # no graph holds that, and it needs no values
            low = x.min()
        return self.layer(x.clamp(low), positions=(x,))


def test_inputs_for_which_there_is_no_graph():
    net = Kept()
    tied = fxtie.transform(net, Rule("layer.second", "layer.first", torch.neg))
    assert fxtie.report(tied).region_names == ("layer",)
    for found in (
        fxtie.diff(net, tied, torch.ones(3, 4)),
        fxtie.diff(net, tied, x=torch.ones(3, 4)),
    ):
        assert [layer.name for layer in found.layers] == ["layer.second"]
        assert "(3, 4)" not in {node.shape for node in found.regions[0].after}


def test_inputs_by_keyword():
    net = Layer()
    tied = fxtie.transform(net, Rule("second", "first", torch.neg))
    for found in (
        fxtie.diff(net, tied, torch.ones(3, 7)),
        fxtie.diff(net, tied, x=torch.ones(3, 7)),
    ):
        assert "(3, 4)" in {node.shape for node in found.regions[0].after}
