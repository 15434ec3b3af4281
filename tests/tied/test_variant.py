"""Which calls a captured forward is for, and which names its code can have."""

import pytest
import torch
from tied_forms import Frozen, TwoConvs
from torch import nn
from two_linears import RULE, check, model_with

import fxtie
from fxtie import Rule


def test_keywords_that_are_not_named():
    def forward(self, x, *, scale=1.0, **others):
        if (shift := others.get("shift")) is not None:
            x = x + shift
        return self.b(self.a(x)) * scale

    x = torch.randn(3, 4)
    assert not check(model_with(forward), x).kept
    check(model_with(forward), x, shift=2.0)
    check(model_with(forward), x, scale=3.0)


def test_names_that_generated_code_cannot_have():
    class Keyed(nn.Module):
        def __init__(self):
            super().__init__()
            self.items = nn.ModuleDict({"class": nn.Linear(4, 4), "b": nn.Linear(4, 4)})

        def forward(self, x):
            return self.items["b"](self.items["class"](x))

    (kept,) = check(Keyed(), rule=Rule("items.b", "items.class", weight=torch.square)).kept
    assert "names that generated code can't have" in kept.reason


def test_one_graph_where_both_modes_agree():
    tied = fxtie.transform(TwoConvs(), Rule("conv_2", "conv_1"))
    assert tied.train().graph is tied.eval().graph
    tied = fxtie.transform(Frozen(), Rule("norms.1", "norms.0"))
    assert tied.train().graph is not tied.eval().graph


@pytest.mark.parametrize("default", [{}, {"x": None}])
def test_a_single_argument_is_checked(default):
    """Code tells None, True and strings apart by `is`, which a trace of a tensor cannot see."""

    def with_default(self, x=None):
        if x is None:
            x = torch.ones(2, 4)
        return self.b(self.a(x))

    def without(self, x):
        if x is None:
            x = torch.ones(2, 4)
        return self.b(self.a(torch.zeros(2, 4) if x is True else x))

    model = model_with(with_default if default else without)
    tied = fxtie.transform(model, RULE)
    # `x is True` is no question that a graph of a tensor can answer.
    assert isinstance(tied, torch.fx.GraphModule) == bool(default)
    plain = fxtie.materialize(tied)
    for x in (None, torch.randn(2, 4), *(() if default else (True,))):
        assert torch.equal(tied(x), plain(x))
    assert not torch.equal(tied(None), tied(torch.zeros(2, 4)))
