"""`transform(..., recompute=True)`: derived tensors that are not stored for the backward pass."""

import copy
import io

import pytest
import torch
from oracle import assert_tied_equals_oracle
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import fxtie
from fxtie import Rule
from fxtie import transforms as T
from fxtie.runtime.recompute import Remember

FEATURES = 64


def net():
    return nn.Sequential(
        *(nn.Sequential(nn.Linear(FEATURES, FEATURES), nn.Tanh()) for _ in range(6))
    )


CHAIN = [Rule(f"{i}.0", f"{i - 1}.0", weight=torch.sin) for i in range(1, 6)]
STAR = [Rule(f"{i}.0", "0.0", weight=T.scale(1 + i / 10), bias=torch.cos) for i in range(1, 6)]
MIXED = [
    Rule("1.0", "0.0", weight=T.chain(torch.sin, T.transpose())),
    Rule("2.0", "0.0", weight=T.transpose()),  # a view: nothing to save
    Rule("3.0", "1.0", weight=T.LowRank(2)),
    Rule("4.0", "3.0", weight=torch.sin),
    Rule("5.0", ("0.0", "4.0"), weight=T.mean(), bias=T.mean()),
]


def gradients(model, x):
    model.zero_grad()
    y = model(x)
    (y * torch.linspace(-1, 1, y.numel()).view_as(y)).sum().backward()
    return [y.detach(), *(p.grad for p in model.parameters())]


@pytest.mark.parametrize("rules", [CHAIN, STAR, MIXED], ids=["chain", "star", "mixed"])
@pytest.mark.parametrize("train", [False, True])
def test_equal_to_the_oracle(rules, train, device):
    model = net().to(device)
    tied = fxtie.transform(model, rules, recompute=True)
    x = torch.randn(3, FEATURES, device=device)
    assert_tied_equals_oracle(model, tied, fxtie.report(tied).plan.ties, (x,), train=train)


class Sines(TorchDispatchMode):
    count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count += function is torch.ops.aten.sin.default
        return function(*args, **(kwargs or {}))


def test_derived_tensors_are_computed_again():
    model, x = net(), torch.randn(3, FEATURES)
    rules = [Rule(f"{i}.0", f"{i - 1}.0", weight=torch.sin, bias=None) for i in range(1, 6)]
    counts = []
    for recompute in (False, True):
        tied = fxtie.transform(model, rules, recompute=recompute)
        with Sines() as sines:
            y = tied(x)
            forward = sines.count
            y.sum().backward()
        counts.append((forward, sines.count - forward))
    (plain, none), (again, more) = counts
    assert plain == again == 5 and none == 0 and more >= 5


def test_derived_weights_are_not_held_for_the_backward():
    model, x = net(), torch.randn(3, FEATURES)
    weight = FEATURES * FEATURES * 4
    held = []
    for recompute in (False, True):
        tied = fxtie.transform(model, STAR, recompute=recompute)
        with torch.profiler.profile(profile_memory=True) as profiler:
            y = tied(x)
        events = profiler.profiler.kineto_results.events()
        held.append(sum(e.nbytes() for e in events if e.name() == "[memory]"))
        del y
    assert held[0] - held[1] == 5 * weight


def test_copies_and_pickles():
    model, x = net(), torch.randn(3, FEATURES)
    expected = gradients(fxtie.transform(model, CHAIN), x)
    tied = fxtie.transform(model, CHAIN, recompute=True)
    file = io.BytesIO()
    torch.save(tied, file)
    file.seek(0)
    for other in (copy.deepcopy(tied), torch.load(file, weights_only=False)):
        assert any(isinstance(node.target, Remember) for node in other.graph.nodes)
        assert other._fxtie_recomputes
        for a, b in zip(gradients(other, x), expected, strict=True):
            assert torch.equal(a, b)


def test_a_source_that_changed_in_between():
    model = net()
    tied = fxtie.transform(model, CHAIN, recompute=True)
    loss = tied(torch.randn(3, FEATURES)).sum()
    with torch.no_grad():
        model[0][0].weight.mul_(2)
    with pytest.raises(RuntimeError, match=r"'\d.0.weight', which is computed again .* version"):
        loss.backward()


def test_second_derivatives():
    model = net().double()
    x = torch.randn(2, FEATURES, dtype=torch.float64)
    found = []
    for recompute in (False, True):
        tied = fxtie.transform(model, CHAIN, recompute=recompute)
        (first,) = torch.autograd.grad(
            tied(x).square().sum(), [model[0][0].weight], create_graph=True
        )
        found.append(torch.autograd.grad(first.square().sum(), [model[0][0].weight])[0])
    assert found[0].norm() > 1e-6
    torch.testing.assert_close(*found)


def test_random_numbers_are_not_drawn_twice():
    def noisy(weight):
        return torch.nn.functional.dropout(torch.sin(weight), 0.5, True)

    model = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 6))
    tied = fxtie.transform(model, Rule("1", "0", weight=noisy), recompute=True)
    remembered = [n for n in tied.graph.nodes if isinstance(n.target, Remember)]
    assert not remembered
    plain = fxtie.transform(model, Rule("1", "0", weight=noisy))
    results = []
    for one in (tied, plain):
        torch.manual_seed(0)
        results.append(gradients(one, torch.randn(3, 6)))
    for a, b in zip(*results, strict=True):
        assert torch.equal(a, b)


def test_with_the_rest():
    """torch.compile, autocast, derive_once, and a root that is kept."""
    model, x = net(), torch.randn(3, FEATURES)
    plain = fxtie.transform(model, CHAIN)
    tied = fxtie.transform(model, CHAIN, recompute=True)
    expected = gradients(plain, x)
    compiled = torch.compile(tied, backend="aot_eager", fullgraph=True)
    for a, b in zip(gradients(compiled, x), expected, strict=True):
        torch.testing.assert_close(a, b)
    with torch.autocast("cpu", torch.bfloat16):
        for a, b in zip(gradients(tied, x), gradients(plain, x), strict=True):
            assert torch.equal(a, b)
    tied.zero_grad()
    with fxtie.derive_once(tied):
        y = tied(x)
        (y * torch.linspace(-1, 1, y.numel()).view_as(y)).sum().backward()
    for p, gradient in zip(tied.parameters(), expected[1:], strict=True):
        torch.testing.assert_close(p.grad, gradient)

    class Kept(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = model

        def forward(self, x):
            return self.net(x if x.sum() > 0 else -x)

    rules = [Rule(f"net.{i}.0", f"net.{i - 1}.0", weight=torch.sin) for i in range(1, 6)]
    kept = fxtie.transform(Kept(), rules, recompute=True)
    assert_tied_equals_oracle(Kept(), kept, fxtie.report(kept).plan.ties, (x,), train=True)
