"""What changed in each layer: its lines, and their order."""

import pytest
import torch
from three_convs import Net
from torch import fx, nn

import fxtie
from fxtie.looking.diff_layers import RegionDiff
from fxtie.looking.nodes import NodeInfo


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


@pytest.mark.parametrize(
    ("before", "after", "both"),
    [("ac", "abc", "abc"), ("abc", "ac", "abc"), ("ab", "ba", "ba"), ("xay", "baz", "xbayz")],
)
def test_the_order_of_layers_fits_both_graphs(before, after, both):
    old, new = (
        tuple(NodeInfo("output", name, name, "", name) for name in names)
        for names in (before, after)
    )
    found = RegionDiff("", old, new, {}).layers
    assert "".join(layer.name for layer in found) == both
