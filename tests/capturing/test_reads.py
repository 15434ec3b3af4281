"""How a graph derives tensors: once each, by whose transform, and from which line of the user's."""

import pytest
import torch
from oracle import assert_tied_equals_oracle
from tied_forms import check
from torch import nn
from two_linears import Two

import fxtie
from fxtie import Rule, transforms
from fxtie.planning.lowering import Opaque
from fxtie.transforms import scale


def test_equal_derivations_are_computed_once():
    net = nn.Sequential(*(nn.Linear(6, 6) for _ in range(5)))
    tied = check(net, Rule("*", "0", transforms.scale(-1.5)), torch.randn(4, 6))
    assert sum("derived" in node.meta for node in tied.graph.nodes) == 1
    tied = check(net, [Rule("1", "0", torch.neg), Rule("2", "0", torch.neg)], torch.randn(4, 6))
    assert len(tied.graph.find_nodes(op="call_function", target=torch.neg)) == 1


def test_a_module_called_twice_derives_once():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(6, 6), nn.Linear(6, 6)

        def forward(self, x):
            return self.b(self.a(self.b(x)))

    tied = check(Net(), Rule("b", "a", torch.neg), torch.randn(4, 6))
    assert len(tied.graph.find_nodes(op="call_function", target=torch.neg)) == 1


def test_statistics_that_change_in_between_leave_other_tensors_as_they_are():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.norm = nn.Linear(6, 6), nn.Linear(6, 6), nn.BatchNorm1d(6)

        def forward(self, x):
            return self.b(self.norm(self.a(self.b(x))))

    rules = [Rule("b", "a", torch.neg), fxtie.Tie("norm.bias", "a.bias", torch.sin)]
    tied = check(Net(), rules, torch.randn(4, 6)).train()
    assert len(tied.graph.find_nodes(op="call_function", target=torch.neg)) == 1


def test_an_opaque_transform_is_called():
    def branching(w):
        return w if w.sum() > 0 else -w

    net = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 6))
    tied = check(net, Rule("1", "0", branching), torch.randn(4, 6))
    (node,) = (node for node in tied.graph.nodes if node.meta.get("tie") == "1.weight")
    assert isinstance(node.target, Opaque) and node.target.function is branching
    assert [argument.target for argument in node.args] == ["0.weight"]
    assert "branching(" in tied.code


def test_transforms_that_make_random_numbers_make_them_at_each_call():
    net = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 6))
    tied = check(net, Rule("1", "0", lambda w: w + torch.rand(6)), torch.randn(4, 6))
    x = torch.randn(4, 6)
    assert not torch.equal(tied(x), tied(x))


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


def masked(w):
    w = w.clone()
    w[0] = 0
    return w


def scaled_after_a_change(w):
    changed = w.sin()
    row = changed[1]
    row *= 3
    changed[0] = 1
    return changed * 2


@pytest.mark.parametrize("transform", [masked, scaled_after_a_change])
@pytest.mark.parametrize("options", [{}, {"recompute": True}])
def test_transforms_that_work_in_place(transform, options):
    model = nn.Sequential(*(nn.Linear(4, 4) for _ in range(4)))
    plan = fxtie.plan(model, [Rule(str(i), "0", weight=transform) for i in (2, 3)])
    tied = fxtie.transform(model, plan, **options)
    x = torch.randn(3, 4)
    assert_tied_equals_oracle(model, tied, plan.ties, (x,), train=True)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(tied(x), fxtie.materialize(tied)(x))
    with torch.no_grad(), fxtie.derive_once(tied):
        assert torch.equal(tied(x), fxtie.materialize(tied)(x))
