"""Steps of a plan: their order, and that no data is touched."""

import sys
import traceback

import pytest
import torch
from chain_net import chain_net
from torch import nn

import fxtie
from fxtie import Rule
from fxtie.planning import lowering, steps


def test_order_follows_dependencies():
    net = chain_net(4)
    plan = fxtie.plan(net, [Rule(str(i), str(i - 1), torch.neg, None) for i in (3, 1, 2)])
    assert [tie.target for tie in plan.ties] == ["1.weight", "2.weight", "3.weight"]


def test_long_chains_need_no_recursion():
    n = sys.getrecursionlimit() + 100
    net = chain_net(n)
    rules = [Rule(f"{i}.weight", f"{i - 1}.weight", torch.neg) for i in range(n - 1, 0, -1)]
    plan = fxtie.plan(net, rules)
    assert [tie.target for tie in plan.ties] == [f"{i}.weight" for i in range(1, n)]


def test_self_derived_tensors_stay_stored():
    plan = fxtie.plan(chain_net(), Rule("**", "{0}", weight=lambda w: w - w.mean()))
    assert all(tie.is_self_derived for tie in plan.ties)
    assert plan.parameters_after == plan.parameters
    assert len(plan.ties) == 4  # a bias as itself is no tie


def test_planning_touches_no_data():
    with torch.device("meta"):
        net = nn.Sequential(nn.Linear(100_000, 100_000), nn.Linear(100_000, 100_000))
    plan = fxtie.plan(net, Rule("1", "0", weight=torch.square))
    assert plan.parameters_after == 100_000 * 100_001


def test_a_transform_is_traced_once_for_all_shapes(monkeypatch):
    def lower(*args):
        lowered.append(args)
        return lowering.lower(*args)

    lowered = []
    monkeypatch.setattr(steps, "lower", lower)
    net = nn.Sequential(*(nn.Linear(n, n) for n in (2, 2, 3, 3)))
    fxtie.plan(net, [Rule("1", "0", torch.exp, None), Rule("3", "2", torch.exp, None)])
    assert len(lowered) == 1


def test_a_transform_that_raises_for_the_second_shape_raises_in_the_code_of_the_users():
    def times_two_rows(w):
        return torch.ones(2, 2) @ w

    net = nn.Sequential(*(nn.Linear(n, n) for n in (2, 2, 3, 3)))
    rules = [Rule("1", "0", weight=times_two_rows), Rule("3", "2", weight=times_two_rows)]
    with pytest.raises(fxtie.PlanError, match=r"of '3\.weight' raises") as info:
        fxtie.plan(net, rules)
    frames = traceback.extract_tb(info.value.__cause__.__traceback__)
    assert "times_two_rows" in {frame.name for frame in frames}
