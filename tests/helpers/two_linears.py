"""`Two` linear layers with any forward around them."""

import torch
from oracle import assert_tied_equals_oracle
from torch import nn

import fxtie
from fxtie import Rule

RULE = Rule("b", "a", weight=torch.square)


class Two(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x):
        return self.b(self.a(x))


def model_with(forward, **attributes):
    """A `Two` with a forward of its own."""
    model = type("Model", (Two,), {"forward": forward})()
    for name, value in attributes.items():
        setattr(model, name, value)
    return model


def check(model, *args, rule=RULE, **kwargs):
    """Tie, compare with the oracle, and see that the model still runs. Returns the report."""
    plan = fxtie.plan(model, rule)
    tied = fxtie.transform(model, plan)
    args = args or (torch.randn(3, 4),)
    for train in (True, False):
        assert_tied_equals_oracle(model, tied, plan.ties, args, kwargs, train=train)
    model(*args, **kwargs)
    return fxtie.report(tied)


class Kept(Two):
    def forward(self, x):
        with torch.no_grad():
            shift = x.mean()
        return self.b(self.a(x)) + shift
