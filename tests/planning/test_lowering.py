"""Transforms, tried out and traced when they are planned."""

import copy
import pickle
import threading

import pytest
import torch
from chain_net import chain_net, raising
from torch import nn
from two_linears import Two, check

import fxtie
from fxtie import Rule, Tie


def test_each_transform_runs_once_per_shape():
    calls = []

    def counted(w):
        calls.append(tuple(w.shape))
        return -w

    fxtie.plan(chain_net(20), Rule("*", "0", counted, None))
    assert calls.count((6, 6)) == 1  # on fake tensors; a trace reads its source


def test_the_traceback_of_a_transform_is_kept():
    with pytest.raises(fxtie.PlanError) as info:
        fxtie.plan(chain_net(), Rule("1", "0", raising))
    assert isinstance(info.value.__cause__, ZeroDivisionError)


class Normed(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm, self.calls = nn.BatchNorm1d(4), 0

    def forward(self, weight):
        self.calls += 1
        return self.norm(weight)


def test_planning_leaves_transforms_as_they_were():
    transform = Normed()
    fxtie.plan(Two(), Tie("b.weight", "a.weight", transform))
    assert transform.norm.num_batches_tracked == 0 and transform.calls == 0
    assert torch.equal(transform.norm.running_mean, torch.zeros(4))


def test_a_learnable_transform_follows_the_mode():
    class Noisy(nn.Module):
        def __init__(self):
            super().__init__()
            self.drop, self.gain = nn.Dropout(0.5), nn.Parameter(torch.ones(1))

        def forward(self, weight):
            return self.drop(weight) * self.gain

    check(Two(), rule=Rule("b", "a", weight=Noisy(), bias=None))


def test_a_transform_that_cannot_be_copied():
    """Such as an op of `torch.library`, whose handle holds compiled objects."""
    lock = threading.Lock()

    class Halved:
        def __init__(self):
            self.lock = lock

        def __call__(self, weight):
            return weight / 2

    check(Two(), rule=Rule("b", "a", weight=Halved()))
    tied = copy.deepcopy(fxtie.transform(Two(), Rule("b", "a", weight=Halved())))
    assert torch.equal(tied.b.weight, tied.a.weight / 2)


FACTOR = 2


def scaled(weight):
    return weight * FACTOR


def with_gradients_only(weight):
    return weight * 2 if torch.is_grad_enabled() else weight


def as_wide(weight):
    return weight / weight.shape[0]


@pytest.mark.filterwarnings("ignore::fxtie.Outdated")
@pytest.mark.parametrize("transform", [scaled, with_gradients_only, as_wide])
def test_what_a_pickled_transform_depends_on(transform, monkeypatch):
    net = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    tied = fxtie.transform(net, fxtie.Rule("1", "0", weight=transform))
    again = pickle.loads(pickle.dumps(tied))
    lowered = again._fxtie.report.plan.steps[0].lowered
    assert torch.equal(lowered(torch.ones(8, 4)), transform(torch.ones(8, 4)))
    x = torch.randn(2, 4)
    for factor in (2, 3):
        monkeypatch.setitem(globals(), "FACTOR", factor)
        for grad in (True, False):
            with torch.set_grad_enabled(grad):
                assert torch.equal(again(x), tied(x))
                assert torch.equal(again[1].weight, transform(net[0].weight))
