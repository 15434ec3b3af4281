"""How a derived tensor is computed: from which tensors, by their names."""

import gc
import warnings
import weakref

import pytest
import torch
import torch.nn.functional as F
from tied_forms import Attention, TwoConvs, TwoLSTMs, UntraceableRoot
from torch import nn
from torch.nn.utils import prune
from two_linears import RULE, Kept, Two

import fxtie
from fxtie import Rule, Tie


@pytest.mark.parametrize(
    ("make", "target", "source"),
    [
        (TwoConvs, "conv_2.weight", "conv_1.weight"),
        (UntraceableRoot, "b.0.weight", "a.weight"),
        (Attention, "b.in_proj_weight", "a.in_proj_weight"),
        (TwoLSTMs, "b.weight_ih_l0", "a.weight_ih_l0"),
    ],
)
def test_dropped_tensors_are_not_kept_alive(make, target, source):
    net = make()
    dropped = weakref.ref(net.get_parameter(target))
    tied = fxtie.transform(net, Tie(target, source, torch.neg))
    assert dropped() is not None
    del net
    gc.collect()
    assert dropped() is None
    assert tied is not None


@pytest.mark.parametrize("make", [Two, Kept])
def test_a_source_that_is_pruned_is_refused(make):
    """Its weight is a plain attribute then, which a hook computes before its own forward."""
    model = make()
    tied = fxtie.transform(model, Rule("b", "a", weight=torch.square))
    tied(torch.randn(3, 4))
    prune.l1_unstructured(tied.a, "weight", 0.5)
    with (
        pytest.warns(fxtie.Outdated, match=r"a\.weight was set"),
        pytest.raises(fxtie.FxtieError, match=r"'a\.weight', a plain attribute by now"),
    ):
        tied(torch.randn(3, 4))


def test_a_replaced_source_is_one_truth():
    """By name: in the graph, in the attribute, in materialize and in derive_once."""
    tied = fxtie.transform(Two(), RULE)
    tied.a = nn.Linear(4, 4)
    value, given = tied.a.weight.square(), torch.randn(3, 4)
    assert torch.equal(tied.b.weight, value)
    assert torch.equal(fxtie.materialize(tied).b.weight, value)
    expected = F.linear(tied.a(given), value, tied.a.bias)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", fxtie.Outdated)
        assert torch.equal(tied(given), expected)
        with torch.no_grad(), fxtie.derive_once(tied):
            assert torch.equal(tied(given), expected)
