"""Diffs: what they show on real and made-up graphs."""

import json
import operator
import re

import pytest
import torch
from torch import fx, nn
from vision import import_torchvision

import fxtie
from fxtie import Rule
from fxtie.words import list_names


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
    changed = [line for layer in found.layers for line in layer.lines if line.mark != " "]
    assert [(line.mark, line.op, line.args) for line in changed] == [
        ("+", "call_function", "conv_1"),
        ("-", "call_method", "conv_1"),
        ("+", "call_method", "neg"),
    ]


def test_renamed_nodes_are_no_change():
    before, after = fx.symbolic_trace(Net()), fx.symbolic_trace(Net())
    for node in after.graph.nodes:
        node._rename(f"other_{node.name}")
    assert not fxtie.diff(before, after)


def _square_by_hand(model, *, meta):
    """conv_2 of a traced model replaced by hand, as a pass does that knows nothing of fxtie."""
    traced = fx.symbolic_trace(model)
    node = traced.graph.find_nodes(op="call_module", target="conv_2")[0]
    with traced.graph.inserting_before(node):
        weight = traced.graph.get_attr("conv_1.weight")
        squared = traced.graph.call_function(torch.square, (weight,))
        conv = traced.graph.call_function(nn.functional.conv2d, (*node.args, squared, None, 1, 1))
    if meta:
        conv.meta = dict(node.meta)
        squared.meta = {**node.meta, "tie": "conv_2.weight"}
    node.replace_all_uses_with(conv)
    traced.graph.erase_node(node)
    traced.delete_all_unused_submodules()
    traced.recompile()
    return traced


@pytest.mark.parametrize("meta", [True, False], ids=["with meta", "without meta"])
@pytest.mark.parametrize("plain", [True, False], ids=["plain before", "traced before"])
def test_a_pass_of_somebody_else(meta, plain):
    net = Net()
    after = _square_by_hand(net, meta=meta)
    found = fxtie.diff(net if plain else fx.symbolic_trace(net), after)
    assert [layer.name for layer in found.layers] == ["conv_2"]
    assert [line.mark for line in found.layers[0].lines] == ["-", "+", "+", "+"]
    assert found.bytes == (1224, 632)


def test_lost_provenance_of_one_side():
    before, after = fx.symbolic_trace(Net()), _square_by_hand(Net(), meta=True)
    for node in after.graph.nodes:
        node.meta.clear()
    found = fxtie.diff(before, after)
    assert (found.removed, found.added) == (1, 3)
    assert [layer.name for layer in found.layers] == ["conv_2"]


def test_a_node_that_reads_something_else_is_shown_twice():
    class Other(Net):
        def forward(self, x):
            return self.head(self.conv_2(self.conv_1(x).relu()) + 1.0)

    class Another(Net):
        def forward(self, x):
            return self.head(self.conv_2(self.conv_1(x).relu()) + 1)

    found = fxtie.diff(fx.symbolic_trace(Other()), fx.symbolic_trace(Another()))
    lines = [(line.mark, line.args) for layer in found.layers for line in layer.lines]
    assert ("-", "conv_2, 1.0") in lines and ("+", "conv_2, 1") in lines
    assert (found.removed, found.added) == (1, 1)


def test_a_module_with_other_settings_is_a_change():
    before, after = fx.symbolic_trace(Net()), fx.symbolic_trace(Net())
    after.head = nn.Conv2d(4, 2, 1, bias=False)
    found = fxtie.diff(before, after)
    assert [layer.name for layer in found.layers] == ["head"]
    assert "Conv2d(4, 2, kernel_size=(1, 1), stride=(1, 1), bias=False)" in str(found)


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


def test_a_module_called_twice():
    class Twice(Net):
        def forward(self, x):
            return self.conv_2(self.conv_2(x).relu()) + self.conv_1(x)

    net = Twice()
    found = fxtie.diff(net, fxtie.transform(net, Rule("conv_2", "conv_1", torch.square)))
    assert [layer.name for layer in found.layers] == ["conv_2"]
    assert (found.removed, found.added) == (2, 6)


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


def test_lists_of_names():
    def names(*numbers):
        return [f"a.{i}.b" for i in numbers]

    assert list_names(names(1)) == "a.1.b"
    assert list_names(names(1, 2)) == "a.1.b, a.2.b"
    assert list_names(names(1, 2, 3, 7)) == "a.1.b … a.3.b, a.7.b"
    assert list_names(names(1, 3, 5, 7)) == "a.1.b, a.3.b … a.7.b"
    assert list_names(["a.1.b1", "a.2.b2"]) == "a.1.b1, a.2.b2"
    squares = names(*(i * i for i in range(20)))
    assert list_names(squares).endswith("a.36.b, … a.361.b (20 in all)")


def test_alike_layers_are_folded():
    net = import_torchvision().models.resnet18(weights=None)
    rule = Rule("layer*.1.conv2", "layer{0}.1.conv1", torch.neg, count=4)
    text = str(fxtie.diff(net, fxtie.transform(net, rule)))
    assert text.count("call_module") == 1
    assert "\nlayer2.1.conv2 … layer4.1.conv2: the same\n" in text


def test_regions_of_a_kept_root():
    class Kept(Net):
        def forward(self, x):
            return super().forward(x if x.sum() > 0 else -x)

    net = Kept()
    found = fxtie.diff(net, fxtie.transform(net, Rule("conv_2", "conv_1", torch.neg)))
    assert [layer.name for layer in found.layers] == ["conv_2"]
    assert "  conv_1.weight" in str(found)


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
