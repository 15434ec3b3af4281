"""Rules against names: what the patterns match, which tensors are tied."""

import pytest
import torch
from chain_net import chain_net, tied_names
from torch import nn

import fxtie
from fxtie import Rule, Tie


def test_weight_and_bias_of_one_module():
    plan = fxtie.plan(chain_net(), Rule("1", "0", weight=torch.square))
    assert plan.ties == (
        Tie("1.weight", ("0.weight",), torch.square),
        Tie("1.bias", ("0.bias",), fxtie.same),
    )
    assert (plan.parameters, plan.parameters_after) == (4 * 42, 3 * 42)


def test_patterns_skip_their_own_source():
    plan = fxtie.plan(chain_net(), Rule("*", "1", bias=None))
    assert list(tied_names(plan)) == ["0.weight", "2.weight", "3.weight"]


def test_groups_reach_the_source():
    net = nn.ModuleDict({"a": chain_net(2), "b": chain_net(2)})
    plan = fxtie.plan(net, Rule("b.*", "a.{0}", bias=None))
    assert tied_names(plan) == {"b.0.weight": ("a.0.weight",), "b.1.weight": ("a.1.weight",)}


def test_a_whole_block_is_tied_with_double_star():
    net = nn.ModuleDict({"a": nn.Sequential(chain_net(2), nn.LayerNorm(6))})
    net["b"] = nn.Sequential(chain_net(2), nn.LayerNorm(6))
    plan = fxtie.plan(net, Rule("b.**", "a.{0}"))
    assert len(plan.ties) == 6
    assert tied_names(plan)["b.1.weight"] == ("a.1.weight",)


def test_callable_targets_exclude_and_count():
    net = chain_net()
    rule = Rule(lambda name, m: isinstance(m, nn.Linear), "0", bias=None, exclude="2", count=2)
    assert list(tied_names(fxtie.plan(net, rule))) == ["1.weight", "3.weight"]


def test_single_tensors_and_several_sources():
    plan = fxtie.plan(
        chain_net(),
        [Rule("2.weight", ("0.weight", "1.weight"), torch.add), Tie("3.bias", "0.bias")],
    )
    assert tied_names(plan) == {"2.weight": ("0.weight", "1.weight"), "3.bias": ("0.bias",)}


def test_tensors_of_containers():
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.gamma = nn.Parameter(torch.ones(3))

    net = nn.Module()
    net.blocks = nn.ModuleList(Block() for _ in range(3))
    plan = fxtie.plan(net, Rule("blocks.*.gamma", "blocks.0.gamma"))
    assert list(tied_names(plan)) == ["blocks.1.gamma", "blocks.2.gamma"]


def test_closest_names_are_offered():
    net = nn.ModuleDict({"conv_1": nn.Conv2d(1, 1, 1), "conv_2": nn.Conv2d(1, 1, 1)})
    with pytest.raises(fxtie.PlanError, match=r"Closest names: .*'conv_2'"):
        fxtie.plan(net, Rule("conv2", "conv_1"))


def test_a_fault_of_many_targets_is_told_once():
    net = nn.Sequential(*(nn.Linear(4, 4) for _ in range(5)))
    with pytest.raises(fxtie.PlanError, match="asks for a group") as told:
        fxtie.plan(net, Rule("*", "{1}"))
    assert len(told.value.faults) == 1
