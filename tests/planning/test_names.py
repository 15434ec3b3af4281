"""Names of a model: modules and parameters of several names, models that have none of their own."""

import warnings

import pytest
import torch
from torch import nn
from two_linears import RULE, Two

import fxtie
from fxtie import Rule, Tie


def test_shared_modules_are_one_target():
    layer = nn.Linear(4, 4)
    net = nn.Sequential(nn.Linear(4, 4), layer, layer)
    assert len(fxtie.plan(net, Rule("*", "0")).ties) == 2
    with pytest.raises(fxtie.PlanError, match=r"another name of '1\.weight'"):
        fxtie.plan(net, [Rule("1.weight", "0.weight"), Tie("2.weight", "0.weight")])


def test_a_parameter_held_elsewhere_saves_nothing():
    net = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4))
    net[2].weight = net[1].weight
    plan = fxtie.plan(net, Rule("1.weight", "0.weight"))
    assert plan.parameters_after == plan.parameters
    plan = fxtie.plan(net, [Rule("1.weight", "0.weight"), Rule("2.weight", "0.weight")])
    assert plan.parameters_after == plan.parameters - 16


def test_models_that_are_compiled_already():
    with pytest.raises(fxtie.PlanError, match="compiled already"):
        fxtie.plan(torch.compile(Two()), RULE)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        scripted = torch.jit.script(Two())
    with pytest.raises(fxtie.PlanError, match="TorchScript"):
        fxtie.plan(scripted, RULE)
