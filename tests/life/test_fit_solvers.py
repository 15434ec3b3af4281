"""Closed forms of fit: against NumPy, means by hand, and search by brute force."""

import numpy as np
import pytest
import torch
from blocks import Blocks
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import fxtie
from fxtie import Rule, transforms
from fxtie.life import fit_solvers


@pytest.fixture
def no_iterations(monkeypatch):
    """Whatever asks for L-BFGS fails."""

    def refuse(*_):
        raise AssertionError("this has a closed form")

    monkeypatch.setattr("fxtie.life.fit.minimise", refuse)


def layers(n: int = 3, size: int = 6, **options) -> nn.Sequential:
    return nn.Sequential(*(nn.Linear(size, size, **options) for _ in range(n)))


def weights(net: nn.Sequential) -> list[np.ndarray]:
    return [layer.weight.detach().double().numpy().copy() for layer in net]


def close(tensor: torch.Tensor, expected: np.ndarray, atol: float = 1e-6) -> bool:
    return np.allclose(tensor.detach().double().numpy(), expected, rtol=0, atol=atol)


# -- means and orthogonal transforms --------------------------------------------------------------


def test_blocks_get_their_mean(no_iterations):
    net = Blocks(5)
    stacked = [dict(block.named_parameters()) for block in net.blocks]
    expected = {n: sum(b[n].detach() for b in stacked) / 5 for n in stacked[0]}
    fxtie.fit(net, fxtie.suggest(net, "repeat"))
    for name, p in net.blocks[0].named_parameters():
        torch.testing.assert_close(p.detach(), expected[name], rtol=0, atol=1e-6)


ORTHOGONAL = {  # with their adjoints and their squared scales
    "same": (fxtie.same, lambda w: w, 1),
    "neg": (torch.neg, lambda w: -w, 1),
    "scale": (transforms.scale(-3.0), lambda w: -3 * w, 9),
    "transpose": (transforms.transpose(), lambda w: w.T, 1),
    "flip": (transforms.flip(0), lambda w: w[::-1], 1),
    "rot90": (transforms.rot90(1), lambda w: np.rot90(w, -1), 1),
    "chain": (
        transforms.chain(transforms.scale(2.0), transforms.rot90(3)),
        lambda w: 2 * np.rot90(w, -3),
        4,
    ),
}


@settings(max_examples=25, deadline=None)
@given(st.lists(st.sampled_from(sorted(ORTHOGONAL)), min_size=1, max_size=5), st.integers(1, 9))
def test_any_mix_of_orthogonal_transforms(names, size):
    """The normal equations of one source, by hand."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fxtie.life.fit.minimise", None)
        net = layers(len(names) + 1, size)
        own, *trained = weights(net)
        total, count = own, 1
        for name, w in zip(names, trained, strict=True):
            _, adjoint, square = ORTHOGONAL[name]
            total, count = total + adjoint(w), count + square
        rules = [
            Rule(str(i), "0", ORTHOGONAL[name][0], bias=None) for i, name in enumerate(names, 1)
        ]
        fxtie.fit(net, rules)
        assert close(net[0].weight, total / count)


def test_tiles_to_a_multiple(no_iterations):
    net = nn.Sequential(nn.Linear(2, 3), nn.Linear(4, 6))
    own, large = weights(net)
    fxtie.fit(net, Rule("1", "0", transforms.tile(), None))
    expected = (own + large.reshape(2, 3, 2, 2).sum((0, 2))) / 5
    assert close(net[0].weight, expected)


def test_chains_of_derived_tensors(no_iterations):
    net = layers(3)
    a, b, c = weights(net)
    rules = [Rule("1", "0", torch.neg, None), Rule("2", "1", transforms.transpose(), None)]
    fxtie.fit(net, rules)
    assert close(net[0].weight, (a - b - c.T) / 3)


def test_complex_values(no_iterations):
    net = layers(2, dtype=torch.complex64)
    a, b = (layer.weight.detach().clone() for layer in net)
    fxtie.fit(net, Rule("1", "0", lambda w: 2j * w.mH, None))
    torch.testing.assert_close(net[0].weight.detach(), (a + 2j * b.mH) / 5, rtol=0, atol=1e-6)


@pytest.mark.parametrize("transform", [torch.square, torch.tanh, transforms.standardize()])
def test_what_has_no_closed_form_is_still_minimised(transform):
    """Small random moves of the result never lower the loss."""
    net = layers(2, 3).double()
    own, trained = (layer.weight.detach().clone() for layer in net)
    fxtie.fit(net, Rule("1", "0", transform, None), steps=300)
    found = net[0].weight.detach()

    def loss(w):
        return ((transform(w) - trained).square().sum() + (w - own).square().sum()).item()

    moves = [found + 1e-3 * torch.randn(3, 3).double() for _ in range(200)]
    assert loss(found) <= min(map(loss, moves))


def test_a_step_that_is_not_exact_changes_nothing():
    net = layers(2).double()
    problem = fit_solvers.Problem(net, fxtie.plan(net, Rule("1", "0", torch.square, None)))
    (component,) = problem.components()
    before = net[0].weight.detach().clone()
    assert not fit_solvers.exact_step(problem, component, component.variables)
    assert torch.equal(problem.value_of(net[0].weight), before)


# -- low rank -------------------------------------------------------------------------------------


def truncated(matrix: np.ndarray, rank: int) -> np.ndarray:
    u, s, v = np.linalg.svd(matrix, full_matrices=False)
    return (u[:, :rank] * s[:rank]) @ v[:rank]


def low_rank_loss(base, trained, rank):
    left = [w - base - truncated(w - base, rank) for w in trained]
    return sum(np.square(one).sum() for one in left)


@pytest.mark.parametrize("how", ["average", "lower", "stepwise"])
def test_residuals_of_a_base(how, no_iterations):
    """A. base, then a truncated SVD for each layer."""
    net = layers(5)
    own, *trained = weights(net)
    base = own if how != "average" else (own + sum(trained)) / 5
    plan = fxtie.plan(net, Rule("*", "0", transforms.LowRank(2), None))
    found = fxtie.fit(net, plan, how=how)
    assert close(net[0].weight, base)
    tied = fxtie.transform(net, found.plan)
    for i, w in enumerate(trained, 1):
        assert close(tied[i].weight, base + truncated(w - base, 2), atol=1e-5)


def test_turns_are_better_than_the_mean_and_come_to_rest(no_iterations):
    net = layers(5, 8)
    own, *trained = weights(net)
    mean = (own + sum(trained)) / 5
    fxtie.fit(net, Rule("*", "0", transforms.LowRank(2), None))
    base = net[0].weight.detach().double().numpy()

    def loss(base):
        return low_rank_loss(base, trained, 2) + np.square(base - own).sum()

    assert loss(base) < 0.99 * loss(mean)
    rng = np.random.default_rng(0)
    moves = [base + 0.01 * rng.standard_normal(base.shape) for _ in range(100)]
    assert loss(base) < min(map(loss, moves))


@settings(max_examples=15, deadline=None)
@given(st.integers(1, 7), st.integers(1, 7), st.data())
def test_what_is_of_low_rank_is_found(rows, columns, data):
    """Layers that are a frozen base and a low rank: the error is nothing but rounding."""
    rank = data.draw(st.integers(1, min(rows, columns)))
    net = nn.Sequential(*(nn.Linear(columns, rows) for _ in range(3)))
    net[0].requires_grad_(False)
    with torch.no_grad():
        for layer in net[1:]:
            layer.weight.copy_(net[0].weight + torch.randn(rows, rank) @ torch.randn(rank, columns))
    found = fxtie.fit(net, Rule("*", "0", transforms.LowRank(rank), None))
    assert max(found.after.values()) < 1e-5


# -- bases ----------------------------------------------------------------------------------------


def test_steps_from_the_first_layer_to_the_last(no_iterations):
    net = Blocks(9)
    trained = [block.fc1.weight.detach().clone() for block in net.blocks]
    fxtie.fit(net, fxtie.suggest(net, "cycle 3"), how="stepwise")
    for i, expected in enumerate((0, 4, 8)):
        assert torch.equal(net.blocks[i].fc1.weight, trained[expected])


@pytest.mark.parametrize("how", ["lower", "average"])
def test_the_first_layers_or_means(how, no_iterations):
    net = Blocks(9)
    trained = [block.fc1.weight.detach().clone() for block in net.blocks]
    found = fxtie.fit(net, fxtie.suggest(net, "cycle 3"), how=how)
    for i in range(3):
        expected = trained[i] if how == "lower" else sum(trained[i::3]) / 3
        torch.testing.assert_close(net.blocks[i].fc1.weight.detach(), expected)
    assert (found.before == found.after) == (how == "lower")


def test_ways_that_do_not_exist_or_fit():
    with pytest.raises(fxtie.FxtieError, match=r"how= is one of 'mean', .*'lower', not 'median'"):
        fxtie.fit(layers(), Rule("*", "0"), how="median")
    net = layers()
    before = net[0].weight.detach().clone()
    with pytest.raises(fxtie.FxtieError, match=r"square.* of '1.weight' is not linear"):
        fxtie.fit(net, Rule("*", "0", torch.square, None), how="average")
    assert torch.equal(net[0].weight, before)


# -- several targets at once ----------------------------------------------------------------------


class Basis(nn.Module):
    """A weight as learned coefficients of a basis that several layers share."""

    def __init__(self, k: int, out: int):
        super().__init__()
        self.k, self.C = k, nn.Parameter(torch.randn(out, k))

    def forward(self, basis):
        return self.C @ basis

    def fit_together(self, transforms, targets, sources, moments):
        root = torch.eye(targets[0].shape[1], dtype=torch.float64)
        if all(m is not None for m in moments):
            root = torch.linalg.cholesky(sum(moments))  # |x W^T| = |W root| over all inputs
        _, _, v = torch.linalg.svd(torch.cat(targets) @ root, full_matrices=False)
        basis = v[: self.k] @ torch.linalg.inv(root)
        return [basis], [{"C": target @ root @ v[: self.k].mT} for target in targets]


def basis_rules(net, k):
    bank = fxtie.Bank(1, (k, net[0].in_features))
    ties = [
        fxtie.Tie(f"{i}.weight", bank, Basis(k, layer.out_features)) for i, layer in enumerate(net)
    ]
    return fxtie.plan(net, ties)


def test_a_basis_for_all_layers(no_iterations):
    net = layers(4, 8)
    stacked = np.concatenate(weights(net))
    found = fxtie.fit(net, basis_rules(net, 3))
    tied = fxtie.transform(net, found.plan)
    derived = np.concatenate([tied[i].weight.detach().double().numpy() for i in range(4)])
    assert np.allclose(derived, truncated(stacked, 3), atol=1e-5)


def test_a_basis_that_inputs_weigh(no_iterations):
    """The error on the inputs is that of NumPy's SVD of the weights times the inputs' root."""
    net = layers(3, 6, bias=False)
    x = torch.randn(50, 6) @ torch.diag(torch.tensor([9.0, 5.0, 1.0, 0.3, 0.1, 0.1]))
    given, by_layer = [x], []
    for layer in net:
        by_layer.append(given[-1].double().numpy())
        given.append(layer(given[-1]).detach())
    moment = sum(one.T @ one for one in by_layer)
    root = np.linalg.cholesky(moment)
    stacked = np.concatenate(weights(net))
    expected = truncated(stacked @ root, 2) @ np.linalg.inv(root)
    found = fxtie.fit(net, basis_rules(net, 2), inputs=[x[:20], (x[20:],)])
    tied = fxtie.transform(net, found.plan)
    derived = np.concatenate([tied[i].weight.detach().double().numpy() for i in range(3)])
    assert np.allclose(derived, expected, atol=1e-4)
    plain = truncated(stacked, 2)
    assert np.linalg.norm((derived - stacked) @ root) < np.linalg.norm((plain - stacked) @ root)


def test_the_ready_made_basis():
    """As NumPy's SVD of the stacked weights; with inputs, as the class above."""
    net = layers(4, 8)
    rule = fxtie.Rule("*", fxtie.Bank(3, (1, 8)), weight=fxtie.transforms.basis(3))
    tied = fxtie.transform(net, fxtie.fit(net, rule).plan)
    derived = np.concatenate([tied[i].weight.detach().double().numpy() for i in range(4)])
    assert np.allclose(derived, truncated(np.concatenate(weights(net)), 3), atol=1e-5)
    net = layers(3, 6, bias=False)
    x = torch.randn(50, 6) @ torch.diag(torch.tensor([9.0, 5.0, 1.0, 0.3, 0.1, 0.1]))

    def rule():
        return fxtie.Rule("*", fxtie.Bank(2, (1, 6)), weight=fxtie.transforms.basis(2))

    ours = fxtie.fit(net, rule(), inputs=[x])
    other = fxtie.fit(net, basis_rules(net, 2), inputs=[x])
    assert ours.output_after == pytest.approx(other.output_after, rel=1e-3)
    plain = fxtie.fit(net, rule())
    errors = [(fxtie.transform(net, fit.plan)(x) - net(x)).norm() for fit in (ours, plain)]
    assert errors[0] < errors[1]


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_a_step_of_adam_does_not_undo_a_basis_whatever_the_inputs_were(scale):
    net = layers(3, 6, bias=False)
    x = torch.randn(50, 6)
    rule = fxtie.Rule("*", fxtie.Bank(2, (1, 6)), weight=fxtie.transforms.basis(2))
    tied = fxtie.transform(net, fxtie.fit(net, rule, inputs=[x * scale]).plan)
    before = weights(tied[:3])
    tied(x).square().mean().backward()
    torch.optim.Adam(tied.parameters(), lr=1e-3).step()
    for now, then in zip(weights(tied[:3]), before, strict=True):
        assert 0 < np.linalg.norm(now - then) < 0.02 * np.linalg.norm(then)
