"""Nodes of two graphs, matched by where they come from."""

import pytest
import torch
from three_convs import Net
from torch import fx, nn

import fxtie


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
