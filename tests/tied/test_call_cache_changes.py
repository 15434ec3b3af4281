"""What changes between two reads in a call: the second read sees it."""

import pytest
import torch
from loops import Counting, Loop, inputs
from torch import nn
from torch.func import functional_call

import fxtie
from fxtie import Rule


class Twice(nn.Module):
    """Reads a derived weight, does something, and reads it again: as a computation of its own."""

    def __init__(self, change):
        super().__init__()
        self.a, self.b = nn.Linear(6, 6, bias=False), nn.Linear(6, 6, bias=False)
        self.c = nn.Linear(6, 6, bias=False)
        self.register_buffer("code", torch.rand(6, 6))
        self.change = (change,)

    def forward(self, x):
        first = self.b(x)
        self.change[0](self)
        return first, self.b(x.to(self.a.weight.dtype)) if x.sum() < 1e9 else first


def fused_step(net):
    optimizer = torch.optim.SGD(net.a.parameters(), 0.1, fused=True)
    net.a.weight.grad = torch.ones_like(net.a.weight)
    optimizer.step()


def anneal(net):
    for module in net.modules():
        if isinstance(module, Annealed):
            module.temperature.fill_(2.0)


CHANGES = {
    "in place": lambda net: net.a.weight.mul_(2),
    "another tensor": lambda net: setattr(net.a, "weight", nn.Parameter(2 * net.a.weight)),
    "dtype": lambda net: net.double(),
    "data": lambda net: setattr(net.a.weight, "data", net.a.weight.data * 2),
    "fused step": fused_step,
    "buffer of the transform": anneal,
    "mode of the transform": lambda net: net.eval(),
}


class Annealed(nn.Module):
    """A transform with a state, which also goes by its mode."""

    def __init__(self):
        super().__init__()
        self.gain = nn.Parameter(torch.rand(6, 1) + 0.5)
        self.register_buffer("temperature", torch.ones(()))

    def forward(self, weight):
        return torch.tanh(weight * self.gain * self.temperature) * (2 if self.training else 1)


OF_SOURCES = list(CHANGES)[:5]


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize(
    ("make", "change"),
    [(Annealed, change) for change in CHANGES]
    + [(lambda: torch.sin, change) for change in OF_SOURCES]
    + [(lambda: torch.Tensor.contiguous, change) for change in OF_SOURCES],
)
def test_a_change_is_seen(change, make, autocast):
    transform = make()
    tied = fxtie.transform(Twice(CHANGES[change]), Rule("re:b|c", "a", weight=transform))
    transform = next((m for m in tied.modules() if isinstance(m, Annealed)), transform)
    tied.requires_grad_(False)  # or autocast would remember casts by itself
    x = torch.randn(4, 6)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        before = nn.functional.linear(x, transform(tied.a.weight))
        first, second = tied(x)
        expected = nn.functional.linear(x.to(second), transform(tied.a.weight))
    assert torch.equal(first, before)
    torch.testing.assert_close(second, expected.to(second))


def test_a_source_that_is_frozen_for_a_while():
    def thaw(net):
        net.a.requires_grad_(True)

    tied = fxtie.transform(Twice(thaw), Rule("re:b|c", "a", weight=torch.sin))
    tied.a.requires_grad_(False)
    first, second = tied(torch.randn(4, 6))
    assert not first.requires_grad and second.requires_grad


def test_inference_tensors_tell_of_no_change():
    def renew(net):
        net.code.mul_(2)

    ties = [fxtie.Tie(f"{name}.weight", "code", torch.sin) for name in "bc"]
    tied = fxtie.transform(Twice(renew), ties)
    x = torch.randn(4, 6)
    with torch.inference_mode():
        tied.code = tied.code.clone()
        first, second = tied(x)
        assert torch.equal(second, nn.functional.linear(x, torch.sin(tied.code)))
    assert not torch.allclose(first, second)


class Shifted(nn.Module):
    def __init__(self):
        super().__init__()
        self.shift = nn.Parameter(torch.rand(6, 1))

    def forward(self, weight):
        return weight + self.shift


class FastWeights(nn.Module):
    """Calls a tied part with values of its transform's that live no longer than a step."""

    def __init__(self, inner):
        super().__init__()
        self.inner, self.a, self.b = inner, nn.Linear(6, 6), nn.Linear(6, 6)

    def forward(self, x):
        name = next(n for n, _ in self.inner.named_parameters() if n.endswith("shift"))
        steps = range(4 if x.sum() < 1e9 else 0)
        return [functional_call(self.inner, {name: torch.full((6, 1), i)}, (x,)) for i in steps]


def test_values_that_are_gone_are_not_taken_for_new_ones():
    inner = fxtie.transform(Twice(len), Rule("b", "a", weight=Shifted()))
    inner.__dict__["forward"] = lambda x: inner.b(x)
    tied = fxtie.transform(FastWeights(inner), Rule("b", "a", weight=torch.sin))
    x = torch.randn(4, 6)
    for i, found in enumerate(tied(x)):
        torch.testing.assert_close(found, nn.functional.linear(x, inner.a.weight + i))


class Stepping(Counting):
    """Changes a buffer of its own at each run, as power iteration does."""

    def __init__(self):
        super().__init__()
        self.register_buffer("steps", torch.zeros(()))

    def forward(self, weight):
        self.steps += 1
        return super().forward(weight) * self.steps


def test_a_transform_that_changes_its_own_buffer():
    transform = Stepping()
    tied = fxtie.transform(Loop(), Rule("cell", "a", weight=transform))
    transform.steps.zero_()
    x = inputs().float()
    tied(x), tied(x)
    assert transform.steps == 2, "once a call"
