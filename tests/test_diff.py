"""Diffs: what they show on real and made-up graphs."""

import json

import pytest
import torch
from torch import fx, nn
from vision import import_torchvision

import fxtie
from fxtie import Rule


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv_1, self.conv_2 = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.head = nn.Conv2d(4, 2, 1)

    def forward(self, x):
        return self.head(self.conv_2(self.conv_1(x).relu()).relu())


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


def test_any_two_graph_modules_and_an_insertion_shifts_nothing():
    before, after = fx.symbolic_trace(Net()), fx.symbolic_trace(Net())
    first = after.graph.find_nodes(op="call_module", target="conv_1")[0]
    with after.graph.inserting_after(first):
        added = after.graph.call_function(torch.neg, (first,))
    first.replace_all_uses_with(added, lambda user: user is not added)
    after.recompile()
    found = fxtie.diff(before, after)
    assert found.removed <= 1 and 1 <= found.added <= 2
    assert "torch.neg" in str(found)


def test_renamed_nodes_are_no_change():
    before, after = fx.symbolic_trace(Net()), fx.symbolic_trace(Net())
    for node in after.graph.nodes:
        node._rename(f"other_{node.name}")
    assert not fxtie.diff(before, after)


def test_alike_layers_are_folded():
    net = import_torchvision().models.resnet18(weights=None)
    rule = Rule("layer*.1.conv2", "layer{0}.1.conv1", torch.neg, count=4)
    text = str(fxtie.diff(net, fxtie.transform(net, rule)))
    assert text.count("call_module") == 1
    assert "the same: layer2.1.conv2, layer3.1.conv2, layer4.1.conv2" in text


def test_regions_of_a_kept_root():
    class Kept(Net):
        def forward(self, x):
            return super().forward(x if x.sum() > 0 else -x)

    net = Kept()
    found = fxtie.diff(net, fxtie.transform(net, Rule("conv_2", "conv_1", torch.neg)))
    assert [layer.name for layer in found.layers] == ["conv_2"]
    assert "_borrowed_conv_1.weight" in str(found)


def test_colours_only_on_a_terminal(monkeypatch):
    net = Net()
    found = fxtie.diff(net, fxtie.transform(net, Rule("conv_2", "conv_1")))
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert "\x1b[31m-" in str(found)
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\x1b" not in str(found)


def test_a_plain_module_is_no_after():
    with pytest.raises(fxtie.FxtieError, match="There is no graph to compare"):
        fxtie.diff(Net(), Net())
