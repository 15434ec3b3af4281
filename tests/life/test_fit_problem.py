"""What may move in a fit: sources that are not frozen, of all dtypes; and what is left alone."""

import pytest
import torch
from chain_net import chain_net
from torch import nn

import fxtie
from fxtie import Rule, transforms
from fxtie.life.fit_problem import Problem


def test_frozen_sources_stay_as_they_are():
    net = chain_net(3)
    a, b, c = (layer.weight.detach().clone() for layer in net)
    net[0].weight.requires_grad_(False)
    found = fxtie.fit(net, Rule("2", ("0", "1"), torch.add, None))
    assert torch.equal(net[0].weight, a) and not net[0].weight.requires_grad
    torch.testing.assert_close(net[1].weight, (b + c - a) / 2, rtol=0, atol=1e-6)
    assert found.after["2.weight"] < found.before["2.weight"]


def test_all_sources_are_frozen():
    net = chain_net(8).requires_grad_(False)
    before = [p.clone() for p in net.parameters()]
    with pytest.raises(fxtie.FxtieError, match=r"frozen .requires_grad=False.: '0.weight'. Call"):
        fxtie.fit(net, Rule("1", "0", bias=None))
    with pytest.raises(fxtie.FxtieError, match=r"'4.weight' and 2 more. Call requires_grad_"):
        fxtie.fit(net, fxtie.Tie("7.weight", [f"{i}.weight" for i in range(7)], transforms.mean()))
    for p, old in zip(net.parameters(), before, strict=True):
        assert torch.equal(p, old)


def test_a_learnable_transform_of_a_frozen_source():
    net = chain_net(2)
    net[0].requires_grad_(False)
    before = net[0].weight.clone()
    found = fxtie.fit(net, Rule("1", "0", transforms.LowRank(6), None))
    assert torch.equal(net[0].weight, before) and found.after["1.weight"] < 1e-6
    (low_rank,) = found.plan.modules.values()
    with torch.no_grad():
        low_rank.A.normal_()
    low_rank.A.requires_grad_(False)
    left = low_rank.A.clone()
    again = fxtie.fit(net, found.plan)
    assert torch.equal(low_rank.A, left)
    assert again.after["1.weight"] < again.before["1.weight"]


def test_complex_parameters():
    net = chain_net(3, dtype=torch.complex64)
    a, b, c = (layer.weight.detach().clone() for layer in net)
    found = fxtie.fit(net, Rule("*", "0", bias=None))
    torch.testing.assert_close(net[0].weight, (a + b + c) / 3, rtol=0, atol=1e-6)
    assert net[0].weight.imag.abs().sum() > 1
    error = (net[0].weight - b).norm() / b.norm()
    assert found.after["1.weight"] == pytest.approx(error.item(), rel=1e-5)
    net = chain_net(2, dtype=torch.complex64)
    a, b = (layer.weight.detach().clone() for layer in net)
    fxtie.fit(net, Rule("1", "0", lambda w: 2j * w.mH, None))
    torch.testing.assert_close(net[0].weight, (a + 2j * b.mH) / 5, rtol=0, atol=1e-6)


def test_real_from_complex_and_back():
    net = nn.ModuleDict({"a": nn.Linear(6, 6), "z": nn.Linear(6, 6, dtype=torch.complex64)})
    a, z = net["a"].weight.detach().clone(), net["z"].weight.detach().clone()
    fxtie.fit(net, fxtie.Tie("a.weight", "z.weight", torch.real))
    torch.testing.assert_close(net["z"].weight.real, (a + z.real) / 2, rtol=0, atol=1e-6)
    torch.testing.assert_close(net["z"].weight.imag, z.imag, rtol=0, atol=1e-6)
    z = net["z"].weight.detach().clone()
    fxtie.fit(net, fxtie.Tie("z.weight", "a.weight", lambda w: torch.complex(w, 2 * w)))
    torch.testing.assert_close(net["a"].weight, (a + z.real + 2 * z.imag) / 6, rtol=0, atol=1e-6)


class Picks(nn.Module):
    """A transform with a buffer in the model's precision."""

    def __init__(self):
        super().__init__()
        self.register_buffer("turn", torch.linalg.qr(torch.randn(6, 6))[0])

    def forward(self, w):
        return w @ self.turn


def test_buffers():
    """Indices stay what they are, and a transform's buffers take part in double precision."""
    net = chain_net(2)
    net.register_buffer("order", torch.tensor([5, 4, 3, 2, 1, 0]))
    a, b = (layer.weight.detach().clone() for layer in net)
    fxtie.fit(net, fxtie.Tie("1.weight", ("0.weight", "order"), lambda w, order: w[order]))
    torch.testing.assert_close(net[0].weight, (a + b.flip(0)) / 2, rtol=0, atol=1e-6)
    assert torch.equal(net.order, torch.tensor([5, 4, 3, 2, 1, 0]))
    net, picks = chain_net(2), Picks()
    a, b = (layer.weight.detach().clone() for layer in net)
    fxtie.fit(net, Rule("1", "0", picks, None))
    torch.testing.assert_close(net[0].weight, (a + b @ picks.turn.T) / 2, rtol=0, atol=1e-6)
    assert picks.turn.dtype is torch.float32


def test_nothing_to_fit():
    net = chain_net(2)
    net.register_buffer("table", torch.randn(6, 6))
    with pytest.raises(fxtie.FxtieError, match="nothing to fit"):
        fxtie.fit(net, Rule("1.weight", "table"))


def test_ties_that_have_nothing_in_common_are_solved_apart(monkeypatch):
    iterated = []
    monkeypatch.setattr(
        "fxtie.life.fit.minimise", lambda problem, rest, steps: iterated.extend(rest)
    )
    net = chain_net(4)
    fxtie.fit(net, [Rule("1", "0"), Rule("3", "2", torch.square, None)])
    assert [tie.target for one in iterated for tie in one.ties] == ["3.weight"]


def test_what_is_held_is_no_variable():
    net = chain_net(3)
    problem = Problem(net, fxtie.plan(net, [Rule("1", "0", bias=None), Rule("2", "1")]))
    weights, biases = problem.components()
    assert [tie.target for tie in weights.ties] == ["1.weight", "2.weight"]
    problem.held |= weights.variables
    assert problem.components() == [biases]
