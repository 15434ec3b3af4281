"""What people do with a tied model that once went wrong: saving, pruning, planning, modes."""

import io
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from oracle import assert_tied_equals_oracle
from torch import nn
from torch.nn.utils import prune

import fxtie
from fxtie import Rule, Tie
from fxtie.transforms import neg, scale, square


class Two(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x):
        return self.b(self.a(x))


class Kept(Two):
    def forward(self, x):
        with torch.no_grad():
            shift = x.mean()
        return self.b(self.a(x)) + shift


class Pooled(Two):
    def forward(self, x):
        return F.max_pool1d(self.b(self.a(x)), 2)


def test_pickling_a_graph_with_functions_that_another_made():
    """`F.max_pool1d` has no name under which pickle finds it by itself."""
    tied = fxtie.transform(Pooled(), Rule("b", "a", weight=torch.square))
    assert not fxtie.report(tied).kept
    file = io.BytesIO()
    torch.save(tied, file)
    file.seek(0)
    again = torch.load(file, weights_only=False)
    x = torch.randn(3, 4)
    assert torch.equal(again(x), tied(x))
    assert not fxtie.report(again).missed, "the graph is used"


def test_a_model_tied_twice_loads_into_the_untied_one(tmp_path):
    layers = nn.Sequential(*(nn.Linear(4, 4) for _ in range(3)))
    once = fxtie.transform(layers, Rule("1", "0", weight=square))
    twice = fxtie.transform(once, Rule("2", "0", weight=neg))
    fxtie.save(twice, tmp_path / "twice.safetensors")
    x = torch.randn(3, 4)
    for fresh in (nn.Sequential(*(nn.Linear(4, 4) for _ in range(3))), once):
        again = fxtie.load(tmp_path / "twice.safetensors", fresh)
        assert torch.equal(again(x), twice(x))
        assert isinstance(again[2].weight, torch.Tensor) and "2.weight" not in again.state_dict()


@pytest.mark.parametrize("make", [Two, Kept])
def test_a_source_that_is_pruned_is_refused(make):
    """Its weight is a plain attribute then, which a hook computes before its own forward."""
    model = make()
    tied = fxtie.transform(model, Rule("b", "a", weight=torch.square))
    tied(torch.randn(3, 4))
    prune.l1_unstructured(tied.a, "weight", 0.5)
    with (
        pytest.warns(fxtie.Outdated, match=r"a\.weight was set"),
        pytest.raises(fxtie.FxtieError, match=r"'a\.weight', a plain attribute by now"),
    ):
        tied(torch.randn(3, 4))


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


def test_tying_under_inference_mode():
    model = Two()
    with torch.inference_mode():
        tied = fxtie.transform(model, Rule("b", "a", weight=torch.square))
    plan = fxtie.report(tied).plan
    assert_tied_equals_oracle(model, tied, plan.ties, (torch.randn(3, 4),), train=True)


@pytest.mark.parametrize("make", [Two, Kept])
def test_a_target_without_sources(make):
    tied = fxtie.transform(make(), Rule("b.weight", None, lambda: torch.full((4, 4), 0.5)))
    x = torch.randn(3, 4)
    assert torch.equal(tied.b.weight, torch.full((4, 4), 0.5))
    shift = x.mean() if make is Kept else 0
    torch.testing.assert_close(tied(x), F.linear(tied.a(x), tied.b.weight, tied.b.bias) + shift)


def noisy(weight):
    return weight + torch.randn_like(weight)


class Read(Two):
    """Returns what it reads, without control flow (a graph), or with (kept)."""

    def __init__(self, kept):
        super().__init__()
        self.c, self.kept = nn.Linear(4, 4), kept

    def forward(self, x):
        if self.kept and x.sum() > 1e9:
            return x
        return self.b.weight, self.c.weight


@pytest.mark.parametrize("kept", [False, True])
def test_random_transforms_draw_for_each_target(kept):
    tied = fxtie.transform(Read(kept), Rule("re:[bc].weight", "a.weight", noisy))
    assert bool(fxtie.report(tied).kept) == kept
    first, second = tied(torch.randn(3, 4))
    assert not torch.equal(first, second)
    with fxtie.derive_once(tied):
        first, second = tied(torch.randn(3, 4))
    assert not torch.equal(first, second)


def test_equal_transforms_that_are_not_random_are_one():
    tied = fxtie.transform(Read(False), Rule("re:[bc].weight", "a.weight", scale(2)))
    first, second = tied(torch.randn(3, 4))
    assert first is second


@pytest.mark.parametrize("trace", [True, False])
def test_untraced(trace):
    model = nn.Sequential(Two(), Kept())
    rules = [Rule("0.b", "0.a", weight=torch.square), Rule("1.b", "0.a", weight=torch.neg)]
    tied = fxtie.transform(model, rules, trace=trace)
    report = fxtie.report(tied)
    assert (report.regions > 0) == trace and report.ties == 4
    assert isinstance(tied, nn.Sequential) and isinstance(tied[0], Two)
    assert isinstance(tied, torch.fx.GraphModule) == trace
    for train in (True, False):
        assert_tied_equals_oracle(model, tied, report.plan.ties, (torch.randn(3, 4),), train=train)


def test_importing_does_not_import_the_compiler():
    code = (
        "import sys, torch, fxtie; from torch import nn\n"
        "net = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))\n"
        "assert 'torch._dynamo' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
