"""Nodes of two graphs, matched by where they come from."""

import pytest
import torch
from three_convs import Net
from torch import fx, nn

import fxtie


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
