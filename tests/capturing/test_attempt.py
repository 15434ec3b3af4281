"""What a trace leaves behind that stops: nothing."""

import pytest
import torch
from two_linears import RULE, Two, check, model_with

import fxtie


def test_a_failed_trace_leaves_nothing_behind():
    notes = []

    def forward(self, x):
        notes.append(x)
        return self.b(self.a(x)) if x.sum() > -1e9 else x

    (kept,) = check(model_with(forward)).kept
    assert kept.reason == "writes to a list that it has not made"
    assert all(type(value) is torch.Tensor for value in notes)


SHIFT = torch.linspace(0, 1, 4)


class Shifted(Two):
    def __init__(self, stops):
        super().__init__()
        self.stops = stops
        self._tensor_constant1 = torch.full((4,), 0.5)

    def forward(self, x):
        x = self.b(self.a(x)) + SHIFT
        if self.stops and x.sum() > 1e9:
            x = x / 2
        return x + self._tensor_constant1


@pytest.mark.parametrize("stops", [False, True])
def test_constants_from_outside(stops):
    """They get names of their own, and leave nothing behind where the trace stops."""
    net = Shifted(stops)
    before = set(vars(net))
    check(net)
    tied = fxtie.transform(net, RULE)
    assert set(vars(net)) == before
    constants = {name for name in vars(tied) if name.startswith("_tensor_constant")} - before
    assert len(constants) == (0 if stops else 1)
