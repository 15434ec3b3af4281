"""Faults that take more than a sentence. Others are in test_plan.py and test_fault_texts.py."""

import re

import pytest
from torch import nn

import fxtie
from fxtie import Rule


def test_structures_that_do_not_fit_stand_side_by_side():
    model = nn.ModuleDict(
        {"a": nn.Sequential(nn.Linear(3, 4)), "b": nn.Sequential(nn.Linear(3, 4))}
    )
    model["b"].append(nn.Linear(4, 2))
    with pytest.raises(fxtie.PlanError) as told:
        fxtie.plan(model, Rule("b", "a"))
    (fault,) = told.value.faults
    assert re.search(r"(?m)^ +'b' +'a'$", fault)
    assert re.search(r"(?m)^ +0.weight +4x3 +4x3$", fault)
    assert re.search(r"(?m)^ +1.weight +2x4 +-$", fault)
