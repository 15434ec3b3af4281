"""Diffs as text: folded, cut, in colours."""

import operator
import re

import torch
from three_convs import Net
from torch import fx, nn
from vision import import_torchvision

import fxtie
from fxtie import Rule


def test_long_layers_are_shown_around_the_change():
    class Long(nn.Module):
        def forward(self, x):
            for i in range(100):
                x = x * i
            return x

    before, after = fx.symbolic_trace(Long()), fx.symbolic_trace(Long())
    node = after.graph.find_nodes(op="call_function", target=operator.mul)[50]
    node.args = (node.args[0], 1000)
    text = str(fxtie.diff(before, after))
    assert text.startswith("(root)") and "…   49 nodes" in text
    assert len(text.splitlines()) == 13
    assert len(fxtie.diff(before, after).layers[0].lines) == 103


def test_alike_layers_are_folded():
    net = import_torchvision().models.resnet18(weights=None)
    rule = Rule("layer*.1.conv2", "layer{0}.1.conv1", torch.neg, count=4)
    text = str(fxtie.diff(net, fxtie.transform(net, rule)))
    assert text.count("call_module") == 1
    assert "\nlayer2…4.1.conv2: the same\n" in text


def test_colours_only_on_a_terminal(monkeypatch):
    net = Net()
    found = fxtie.diff(net, fxtie.transform(net, Rule("conv_2", "conv_1")))
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert "\x1b[31m-" in str(found)
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\x1b" not in str(found)


def test_long_lines_are_cut_on_a_terminal_only(monkeypatch):
    net = Net()
    found = fxtie.diff(net, fxtie.transform(net, Rule("conv_2", "conv_1")))
    longest = max(map(len, str(found).splitlines()))
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("COLUMNS", "70")
    cut = [re.sub("\x1b.*?m", "", line) for line in str(found).splitlines()]
    assert longest > 70 and max(map(len, cut)) == 70
