"""The place in the user's code that a node comes from."""

import tied_forms
import torch
from elsewhere import Two
from tied_forms import TwoConvs
from torch import nn

import fxtie
from fxtie import Rule
from fxtie.tracing.evaluator import Evaluator


class Lines(Two):
    def forward(self, x):
        x = self.a(
            self.b(x)
        )  # fmt: skip
        return x


def test_nodes_note_their_line():
    tied = fxtie.transform(Lines(), fxtie.Rule("b.weight", "a.weight"))
    traces = [node.meta.get("stack_trace", "") for node in tied.graph.nodes]
    first = Lines.forward.__code__.co_firstlineno
    assert any(f"line {first + 2}, in forward" in trace for trace in traces)
    assert Evaluator().running == []


def test_provenance_points_at_the_users_line():
    tied = fxtie.transform(TwoConvs(), Rule("conv_2", "conv_1", torch.square))
    (square,) = tied.graph.find_nodes(op="call_function", target=torch.square)
    assert square.meta["tie"] == "conv_2.weight"
    assert list(square.meta["nn_module_stack"].values())[-1] == ("conv_2", nn.Conv2d)
    assert (
        tied_forms.__file__ in square.meta["stack_trace"]
        and "conv_2(x)" in square.meta["stack_trace"]
    )
