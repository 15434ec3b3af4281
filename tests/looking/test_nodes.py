"""A node of a graph as plain data."""

import operator

import pytest
import torch
import torch.nn.functional as F
from three_convs import Net
from torch import fx

from fxtie.looking.nodes import node_info, source_line, target_text


@pytest.mark.parametrize(
    ("target", "text"),
    [
        (torch.square, "torch.square"),
        (F.gelu, "F.gelu"),
        (operator.add, "operator.add"),
        (torch.ops.aten.sin.default, "aten.sin.default"),
        (pytest.approx, "approx"),
    ],
)
def test_a_function_is_told_as_one_would_write_it(target, text):
    assert target_text(fx.Graph().call_function(target)) == text


def test_what_a_node_calls_and_reads():
    net, graph = Net(), fx.Graph()
    x = graph.placeholder("x")
    weight, gone = graph.get_attr("conv_1.weight"), graph.get_attr("conv_9.weight")
    called = graph.call_module("head", (x,))
    y = graph.call_function(F.conv2d, (called, weight), {"padding": (1, 1)})
    y.meta |= {"tie": "conv_2.weight", "val": torch.empty(2, 4, device="meta")}

    info = node_info(called, net, "head")
    assert (info.module, info.parameters) == ("Conv2d(4, 2, kernel_size=(1, 1), stride=(1, 1))", 10)
    read = node_info(weight, net, "")
    assert (read.shape, read.dtype, read.parameters) == ("(4, 4, 3, 3)", "float32", 144)
    assert node_info(gone, net, "").parameters == node_info(weight, None, "").parameters == 0
    derived = node_info(y, net, "conv_2")
    assert (derived.args, derived.inputs) == (
        "head, conv_1_weight, padding=(1, 1)",
        ("head", "conv_1_weight"),
    )
    assert (derived.tie, derived.shape) == ("conv_2.weight", "(2, 4)")
    assert node_info(y, net, "conv_2", torch.empty(7)).shape == "(7)", "rather than what meta says"


def test_the_source_is_the_innermost_line():
    node = fx.Graph().placeholder("x")
    assert source_line(node) == ""
    node.meta["stack_trace"] = (
        'File "/home/net.py", line 7, in forward\n    return self.inner(x)\n'
        'File "C:\\code\\inner.py", line 12, in forward\n    x = x + 1\n'
    )
    assert source_line(node) == "x = x + 1  # inner.py:12"
