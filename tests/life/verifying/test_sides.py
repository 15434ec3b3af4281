"""Models that are copied to be run: nothing that was passed in changes."""

import functools
import random
import types

import pytest
import torch
from spoiling import finds, inputs, net, tie
from torch import nn
from two_linears import model_with

import fxtie
from fxtie import Rule


def state_of(model):
    return {
        name: (tensor.clone(), tensor._version, tensor.requires_grad, tensor.grad)
        for name, tensor in (*model.named_parameters(), *model.named_buffers())
    } | {f"{name} mode": module.training for name, module in model.named_modules()}


def assert_same_state(found, expected):
    assert found.keys() == expected.keys()
    for name in found:
        if isinstance(found[name], bool):
            assert found[name] == expected[name], name
        else:
            assert torch.equal(found[name][0], expected[name][0]), name
            assert found[name][1:3] == expected[name][1:3], name
            assert found[name][3] is expected[name][3], name


def test_nothing_that_was_passed_in_is_changed():
    class Counter(nn.Module):
        def __init__(self):
            super().__init__()
            self.net, self.n, self.seen = nn.Sequential(*net(), nn.BatchNorm1d(4)), 0, []

        def forward(self, x):
            self.n += 1
            self.seen.append(x)
            return self.net(x)

    model = Counter()
    model.net[1].eval()
    model.net[0].weight.grad = gradient = torch.ones(4, 4)
    tied = fxtie.transform(model, Rule("net.2", "net.0", torch.square))
    x = inputs()
    before = state_of(model), state_of(tied), x.clone()
    fxtie.verify(model, tied, x)
    assert_same_state(state_of(model), before[0])
    assert_same_state(state_of(tied), before[1])
    assert torch.equal(x, before[2]) and x._version == 0
    assert torch.equal(gradient, torch.ones(4, 4)) and model.net[0].weight.grad is gradient
    assert (model.n, model.seen, tied.n, tied.seen) == (0, [], 0, [])


def test_a_copy_that_changes_the_original():
    def forward(self, x):
        self.count()
        return self.b(self.a(x))

    def count(counted):
        counted.n += 1

    model = model_with(forward, n=0)
    model.count = functools.partial(count, types.SimpleNamespace(n=0))
    fxtie.verify(model, tie(model), inputs())
    model.count = lambda: count(model)
    finds(model, tie(model), "A copy changes the attribute n of the .*model .*closure")


def test_a_copy_that_runs_the_original():
    """deepcopy does not copy what a closure refers to: neither side runs what it should."""

    def forward(self, x):
        return self.held(self.a(x))

    model = model_with(forward)
    model.held = lambda x: model.b(x)
    finds(model, tie(model), r" in eval, first call: .*A copy reaches .*b\.weight.*closure")

    model = model_with(forward)
    GLOBAL.append(model)  # a global is what even the pass does not follow
    model.held = lambda x: GLOBAL[-1].b(x)
    finds(model, tie(model), r"A copy uses b\.weight of the model, by something that copy\.deep")
    GLOBAL.clear()


GLOBAL = []


def test_a_transform_that_closes_over_a_parameter():
    """No copy has a parameter of its own there, so that its gradient is not compared."""
    model = net()
    model[1].gate = gate = nn.Parameter(torch.ones(()))
    gate.grad = gradient = torch.zeros(())
    tied = fxtie.transform(model, Rule("2", "0", lambda w: w * gate))
    proof = fxtie.verify(model, tied, inputs())
    assert list(proof.skipped) == ["the gradient of 1.gate"]
    assert gate.grad is gradient and not gradient.any()


def test_random_generators_are_as_before():
    numpy = pytest.importorskip("numpy")
    net = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5), nn.Linear(4, 4))
    tied = fxtie.transform(net, fxtie.Rule("2", "0", torch.neg))
    x = torch.randn(8, 4)

    def draw():
        return torch.rand(1).item(), random.random(), numpy.random.rand()

    for generator in (torch.manual_seed, random.seed, numpy.random.seed):
        generator(5)
    expected = draw()
    for generator in (torch.manual_seed, random.seed, numpy.random.seed):
        generator(5)
    fxtie.verify(net, tied, x)
    assert draw() == expected


def test_each_call_draws_other_random_numbers():
    """Else a tied model that returns its last output again would pass."""
    seen = []

    def forward(self, x):
        seen.append(float(torch.rand(())))
        return self.b(self.a(x))

    model = model_with(forward)
    fxtie.verify(model, tie(model), inputs())
    assert len(set(seen[:6])) == 3
