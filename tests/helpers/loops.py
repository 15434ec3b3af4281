"""Forwards that read derived tensors in a loop, and transforms that count their runs."""

import weakref

import torch
from torch import nn

import fxtie
from fxtie import Rule


class Counting(nn.Module):
    """A transform that counts how often it runs, and holds on to what it gave."""

    def __init__(self):
        super().__init__()
        self.values = []

    @property
    def count(self):
        return len(self.values)

    def forward(self, weight):
        value = torch.sin(weight)
        self.values.append(weakref.ref(value))
        return value


class Loop(nn.Module):
    """A cell in a loop over the time steps, which no graph holds."""

    def __init__(self):
        super().__init__()
        self.a, self.cell, self.out = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 6)

    def step(self, x):
        return torch.tanh(self.cell(x))

    def forward(self, x):
        h = self.a(x[0])
        for part in x:
            h = self.step(h + part)
        return self.out(h)


def tie(cls=Loop, rules=None):
    """The net, its tied form, and the transform of the cell's weight."""
    transform = Counting()
    net = cls().double()
    plan = fxtie.plan(net, rules(transform) if rules else Rule("cell", "a", weight=transform))
    tied = fxtie.transform(net, plan)
    assert [kept.name for kept in fxtie.report(tied).kept] == [""]
    transform.values.clear()
    return net, tied, plan, transform


def inputs():
    return torch.randn(4, 3, 6, dtype=torch.float64)
