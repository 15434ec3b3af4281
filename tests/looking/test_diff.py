"""Diffs: what they show on real and made-up graphs."""

import json

import pytest
import torch
from three_convs import Net
from torch import fx, nn

import fxtie
from fxtie import Rule


def test_the_first_example():
    net = Net()
    tied = fxtie.transform(net, Rule("conv_2", "conv_1", torch.square))
    found = fxtie.diff(net, tied)
    assert [layer.name for layer in found.layers] == ["conv_2"]
    lines = [(line.mark, line.op, line.target) for line in found.layers[0].lines]
    assert lines == [
        ("-", "call_module", "conv_2"),
        ("+", "get_attr", "conv_1.weight"),
        ("+", "call_function", "torch.square"),
        ("+", "get_attr", "conv_1.bias"),
        ("+", "call_function", "F.conv2d"),
    ]
    assert found.parameters == (306, 158)
    assert found.summary() == "1 layer changed (nodes: -1 +4), parameters 306 -> 158 (51.6%)"
    assert json.loads(json.dumps(found.to_dict()))["added"] == 4
    assert "\x1b" not in str(found)
    code = found.code().splitlines()
    assert any(line.startswith("-    conv_2 = self.conv_2(") for line in code)
    assert any(line.startswith("+    conv_2_weight = torch.square(") for line in code)


def test_no_difference():
    tied = fxtie.transform(Net(), Rule("conv_2", "conv_1"))
    assert str(fxtie.diff(tied, tied)) == "no difference"
    assert not fxtie.diff(tied, tied)


def test_a_module_called_twice():
    class Twice(Net):
        def forward(self, x):
            return self.conv_2(self.conv_2(x).relu()) + self.conv_1(x)

    net = Twice()
    found = fxtie.diff(net, fxtie.transform(net, Rule("conv_2", "conv_1", torch.square)))
    assert [layer.name for layer in found.layers] == ["conv_2"]
    assert (found.removed, found.added) == (2, 5)  # the cast for autocast is not shown


def test_targets_that_no_graph_shows_are_named():
    net = nn.Sequential(nn.LSTM(4, 4, 2))
    rule = Rule("0.weight_ih_l1", "0.weight_ih_l0")
    text = str(fxtie.diff(net, fxtie.transform(net, rule)))
    assert "in no graph: 0.weight_ih_l1" in text
    assert "parameters 320 -> 256 (80.0%)" in text


def test_compiled_modules_are_looked_into():
    net = Net()
    tied = fxtie.transform(net, Rule("conv_2", "conv_1"), compile={"backend": "eager"})
    assert fxtie.diff(net, tied).added == 3


def test_regions_of_a_kept_root():
    class Kept(Net):
        def forward(self, x):
            return super().forward(x if x.sum() > 0 else -x)

    net = Kept()
    found = fxtie.diff(net, fxtie.transform(net, Rule("conv_2", "conv_1", torch.neg)))
    assert [layer.name for layer in found.layers] == ["conv_2"]
    assert "  conv_1.weight" in str(found)


def test_what_cannot_be_traced_says_so():
    class Branches(Net):
        def forward(self, x):
            return super().forward(x) if x.sum() > 0 else x

    with pytest.raises(fxtie.FxtieError, match="Branches has no graph and can't be traced"):
        fxtie.diff(Branches(), fx.symbolic_trace(Net()))
    plain = Branches()
    assert str(fxtie.diff(plain, plain)) == "no difference"


def test_a_plain_module_is_no_after():
    with pytest.raises(fxtie.FxtieError, match="There is no graph to compare"):
        fxtie.diff(Net(), Net())
