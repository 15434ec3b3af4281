"""The compatibility tests' net."""

from __future__ import annotations

import pytest
import torch
from compat.checks import Case
from compat.nets import CASES, Net, rules

import fxtie


@pytest.fixture
def net(device):
    """The untied net, in `eval()`."""
    return Net().to(device).eval()


@pytest.fixture
def tied(net):
    """The tied net, of one graph and one kept part."""
    tied = fxtie.transform(net, rules())
    assert [kept.name for kept in fxtie.report(tied).kept] == ["gate"]
    randomize(tied)
    return tied


@pytest.fixture(params=["net", "kept root"])
def case(request, device):
    """A net: untied, tied, and an input, all in `eval()`."""
    make, rules, shape = CASES[request.param]
    model = make().to(device).eval()
    tied = fxtie.transform(model, rules())
    randomize(tied)
    return Case(model, tied, torch.randn(shape, device=device), rules)


def randomize(tied):
    """Give learnable transforms values: fresh ones add nothing."""
    for parameter in tied.ties.parameters():
        torch.nn.init.normal_(parameter, std=0.3)


@pytest.fixture
def x(device):
    return torch.randn(2, 3, 8, 8, device=device)
