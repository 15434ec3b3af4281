"""fit: exact where the model is tied already, the best where it is not."""

import pytest
import torch
import torch.nn.functional as F
import tqdm.auto
from sklearn.datasets import load_digits
from torch import nn

import fxtie
from fxtie import Rule, transforms


def layers(n: int = 3) -> nn.Sequential:
    return nn.Sequential(*(nn.Linear(6, 6) for _ in range(n)))


@pytest.mark.parametrize(
    "transform",
    [fxtie.same, torch.square, torch.neg, transforms.flip(0), transforms.rot90(1), torch.exp],
)
def test_an_exactly_tied_model_keeps_its_source(transform):
    net = layers()
    rules = Rule("*", "0", transform, None)
    fxtie.initialize(net, rules)
    before = net[0].weight.detach().clone()
    found = fxtie.fit(net, rules)
    torch.testing.assert_close(net[0].weight, before, rtol=0, atol=1e-6)
    assert max(found.after.values()) < 1e-6


@pytest.mark.parametrize("transform", [torch.square, transforms.scale(3.0), torch.tanh])
def test_a_disturbed_source_is_found_again(transform):
    net = layers(20)
    rules = Rule("*", "0", transform, None)
    with torch.no_grad():
        net[0].weight.add_(0.5)
    fxtie.initialize(net, rules)
    truth = net[0].weight.detach().clone()
    with torch.no_grad():
        net[0].weight.add_(0.01 * torch.randn(6, 6))
    before = (net[0].weight - truth).norm()
    found = fxtie.fit(net, rules)
    assert (net[0].weight - truth).norm() < 0.3 * before
    assert max(found.after.values()) < 0.3 * max(found.before.values())


def test_closed_forms():
    net = layers()
    a, b, c = (layer.weight.detach().clone() for layer in net)
    fxtie.fit(net, Rule("*", "0", bias=None))
    torch.testing.assert_close(net[0].weight, (a + b + c) / 3, rtol=0, atol=1e-6)
    net = layers(2)
    a, b = (layer.weight.detach().clone() for layer in net)
    fxtie.fit(net, Rule("1", "0", transforms.scale(2.0), None))
    torch.testing.assert_close(net[0].weight, (a + 2 * b) / 5, rtol=0, atol=1e-6)
    net = layers(2)
    a, b = (layer.weight.detach().clone() for layer in net)
    fxtie.fit(net, Rule("1", "0", transforms.transpose(), None))
    torch.testing.assert_close(net[0].weight, (a + b.T) / 2, rtol=0, atol=1e-6)


def test_low_rank_is_at_least_as_good_as_the_svd():
    net = layers(2)
    a, b = (layer.weight.detach().double() for layer in net)
    left = torch.linalg.svdvals(b - a)[2:].norm() / b.norm()
    found = fxtie.fit(net, Rule("1", "0", transforms.LowRank(2), None))
    assert found.after["1.weight"] <= left.item() + 1e-9
    tied = fxtie.transform(net, found.plan)
    error = (tied[1].weight - net[1].weight).norm() / net[1].weight.norm()
    assert error.item() == pytest.approx(found.after["1.weight"], abs=1e-5)


def test_a_bank_learns_what_its_layers_span():
    net = layers(4)
    basis = torch.randn(2, 6, 6)
    with torch.no_grad():
        for layer in net:
            layer.weight.copy_(torch.einsum("n,nij->ij", torch.randn(2), basis))
    rules = Rule("*", fxtie.Bank(2, (6, 6)), transforms.Mix(2), None)
    found = fxtie.fit(net, rules, steps=300)
    assert max(found.after.values()) < 1e-3 < 0.1 < min(found.before.values())


def test_the_bar_is_full_where_the_fit_ends_early(monkeypatch):
    """A notebook leaves one that is not in red."""
    ended = []

    class Bar(tqdm.auto.tqdm):
        def close(self):
            ended.append((self.n, self.total, self.unit))
            super().close()

    monkeypatch.setattr(tqdm.auto, "tqdm", Bar)
    fxtie.fit(layers(), Rule("1", ("0", "2"), weight=torch.mul, bias=None), steps=10_000)
    assert ended[0][0] == ended[0][1] < 10_000 and ended[0][2] == "step"


def test_chains_and_self_derived():
    net = layers()
    rules = [Rule("1", "0", torch.neg, None), Rule("2", "1", torch.neg, None)]
    a, b, c = (layer.weight.detach().clone() for layer in net)
    fxtie.fit(net, rules)
    torch.testing.assert_close(net[0].weight, (a - b + c) / 3, rtol=0, atol=1e-6)
    torch.testing.assert_close(net[1].weight, b)  # targets are left as they are
    net = layers(1)
    trained = net[0].weight.detach().clone()
    found = fxtie.fit(net, Rule("0", "0", transforms.scale(0.5), None))
    torch.testing.assert_close(net[0].weight, 2 * trained)
    assert found.after["0.weight"] < 1e-6


def complex_layers(n=3):
    return nn.Sequential(*(nn.Linear(6, 6, dtype=torch.complex64) for _ in range(n)))


def test_complex_low_rank_is_exact():
    net = complex_layers(2)
    net[0].requires_grad_(False)
    u, v = (torch.randn(*shape, dtype=torch.complex64) for shape in ((6, 2), (2, 6)))
    with torch.no_grad():
        net[1].weight.copy_(net[0].weight + u @ v)
    found = fxtie.fit(net, Rule("1", "0", transforms.LowRank(2), None))
    assert found.after["1.weight"] < 1e-6
    tied = fxtie.transform(net, found.plan)
    torch.testing.assert_close(tied[1].weight, net[1].weight, rtol=1e-4, atol=1e-5)


def digit_net(seed: int) -> nn.Sequential:
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
    data = load_digits()
    x, y = torch.tensor(data.data, dtype=torch.float32) / 16, torch.tensor(data.target)
    optimizer = torch.optim.Adam(net.parameters(), 1e-2)
    for _ in range(60):
        optimizer.zero_grad()
        F.cross_entropy(net(x), y).backward()
        optimizer.step()
    assert (net(x).argmax(1) == y).float().mean() > 0.9
    return net


def test_two_trained_digit_nets_beat_copying_the_source():
    pair = nn.ModuleDict({"a": digit_net(0), "b": digit_net(1)})
    found = fxtie.fit(pair, Rule("b.**", "a.{0}"))
    assert len(found.after) == 4
    for name, error in found.after.items():
        assert error < 0.95 * found.before[name]
    assert "error before" in str(found)
