"""`transform(..., recompute=True)`: derived tensors that are not stored for the backward pass."""

import copy
import io
import weakref

import pytest
import torch
import torch.nn.functional as F
from oracle import assert_tied_equals_oracle
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import fxtie
from fxtie import Rule
from fxtie import transforms as T
from fxtie.tied.recompute import Remember

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


class ReadsLate(nn.Linear):
    """A layer that is kept, and notes what it reads."""

    def forward(self, x):
        try:
            weight = self.weight
        finally:
            self.read = weakref.ref(weight)
        return F.linear(x, weight, self.bias)


@pytest.mark.parametrize("recompute", [False, True])
def test_derived_weights_of_a_kept_forward(recompute):
    model = nn.Sequential(nn.Linear(4, 4), ReadsLate(4, 4))
    rule = Rule("1", "0", weight=torch.sin, bias=None)
    tied = fxtie.transform(model, rule, recompute=recompute)
    assert fxtie.report(tied).region_names == ("",)
    x = torch.randn(2, 4)
    y = tied(x)
    assert (tied[1].read() is None) == recompute
    y.square().sum().backward()
    found = model[0].weight.grad.clone()
    model.zero_grad()
    weight = model[0].weight.sin()
    F.linear(model[0](x), weight, model[1].bias).square().sum().backward()
    assert torch.equal(found, model[0].weight.grad)


NOISE = {"during": False, "after": False}


def noisy(w):
    return w + torch.rand_like(w) if NOISE["during"] else w.sin()


@pytest.mark.parametrize("when", NOISE)
def test_a_transform_whose_guards_do_not_hold(monkeypatch, when):
    """What it does then may be random: it isn't computed again, and what was isn't done anew."""
    model, x = nn.Sequential(nn.Linear(4, 4), ReadsLate(4, 4)), torch.randn(2, 4)
    found = []
    for recompute in (False, True):
        tied = fxtie.transform(model, Rule("1", "0", weight=noisy), recompute=recompute)
        torch.manual_seed(0)
        monkeypatch.setitem(NOISE, "during", when == "during")
        y = tied(x).square().sum()
        monkeypatch.setitem(NOISE, "during", True)
        model.zero_grad()
        y.backward()
        monkeypatch.setitem(NOISE, "during", False)
        found.append(model[0].bias.grad)
    assert torch.equal(*found)


def test_copies_and_pickles():
    model, x = net(), torch.randn(3, FEATURES)
    expected = gradients(fxtie.transform(model, CHAIN), x)
    tied = fxtie.transform(model, CHAIN, recompute=True)
    file = io.BytesIO()
    torch.save(tied, file)
    file.seek(0)
    for other in (copy.deepcopy(tied), torch.load(file, weights_only=False)):
        assert any(isinstance(node.target, Remember) for node in other.graph.nodes)
        assert other._fxtie.recomputes
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


class Using(nn.Module):
    """Scales its input by a derived tensor, used as a function says."""

    def __init__(self, use):
        super().__init__()
        self.a, self.b = nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False)
        self.use = use

    def forward(self, x):
        y = x * self.a.weight
        return self.use(y, self.b.weight)


def complex_from(w):
    return torch.view_as_complex(torch.stack((torch.sin(w), torch.cos(w)), -1))


def physical(w):
    return w.conj() if w.is_conj() else w


VIEWS = {
    "conj": lambda x, w: x * w.conj(),
    "transposed conj": lambda x, w: (x + 1j) @ w.mH,
    "view_as_real": lambda x, w: x[..., None] * torch.view_as_real(physical(w)),
    "imag": lambda x, w: x * w.imag,
    "neg bit": lambda x, w: x * w.conj().imag,
    "slice of conj": lambda x, w: x[1:] * w.conj()[1:, ::2].repeat(1, 2),
    "conj of a slice": lambda x, w: x[1:, ::2] * w[1:, ::2].conj(),
    "view as int": lambda x, w: x * torch.view_as_real(physical(w)).view(torch.int32)[..., 0].cos(),
    "flat": lambda x, w: x.flatten() * w.conj().flatten(),
}


@pytest.mark.parametrize("use", VIEWS.values(), ids=VIEWS)
@pytest.mark.parametrize("is_conj", [False, True])
def test_views_that_show_the_values_otherwise(use, is_conj, device):
    """With a bit that stands for conjugation or a minus sign, or in another dtype."""
    results = []
    for recompute in (False, True):
        torch.manual_seed(0)
        model = Using(use)
        model.b.weight = nn.Parameter(torch.zeros(4, 4, dtype=torch.complex64))
        rule = Rule("b", "a", lambda w: complex_from(w).conj() if is_conj else complex_from(w))
        tied = fxtie.transform(model.to(device), rule, recompute=recompute)
        y = tied(torch.linspace(-1, 1, 16, device=device).view(4, 4).requires_grad_())
        held = y.grad_fn  # the derived tensor itself is gone
        y.abs().square().sum().backward()
        results.append([y.detach(), model.a.weight.grad])
        assert held is not None and model.a.weight.grad.norm() > 1e-3
    for a, b in zip(*results, strict=True):
        assert torch.equal(a, b)


def test_complex_views_of_real_ones():
    def use(x, w):
        return x[:, :2] * torch.view_as_complex(w.view(4, 2, 2))

    results = []
    for recompute in (False, True):
        torch.manual_seed(0)
        model = Using(use)
        tied = fxtie.transform(model, Rule("b", "a", torch.sin), recompute=recompute)
        tied(torch.linspace(-1, 1, 16).view(4, 4)).abs().sum().backward()
        results.append(model.a.weight.grad)
    assert torch.equal(*results)


@pytest.mark.parametrize("forward_cast", [False, True])
@pytest.mark.parametrize("backward_cast", [False, True])
def test_autocast_as_in_the_forward(forward_cast, backward_cast, device):
    results = []
    for recompute in (False, True):
        torch.manual_seed(0)
        model = Using(lambda x, w: x * w.float()).to(device)
        rule = Rule("b", "a", lambda w: torch.sin(w @ w).float())
        tied = fxtie.transform(model, rule, recompute=recompute)
        x = torch.linspace(-1, 1, 16, device=device).view(4, 4)
        with torch.autocast(device.type, torch.bfloat16, enabled=forward_cast):
            y = tied(x).square().sum()
        with torch.autocast(device.type, torch.bfloat16, enabled=backward_cast):
            y.backward()
        results.append(model.a.weight.grad)
    assert torch.equal(*results)


def test_the_dtype_that_autocast_gave():
    results = []
    for recompute in (False, True):
        torch.manual_seed(0)
        model = Using(lambda x, w: x * w)
        tied = fxtie.transform(model, Rule("b", "a", lambda w: w @ w), recompute=recompute)
        with torch.autocast("cpu", torch.bfloat16):
            y = tied(torch.linspace(-1, 1, 16).view(4, 4)).square().sum()
        y.backward()
        results.append(model.a.weight.grad)
    assert torch.equal(*results)


def test_a_derived_tensor_that_changes_in_place_after_its_use():
    """Autograd raises then, if it has stored the tensor. What is computed again is as it was."""
    model = Using(lambda x, w: (x * w, w))
    tied = fxtie.transform(model, Rule("b", "a", torch.sin), recompute=True)
    y, derived = tied(torch.ones(4, 4))
    derived.mul_(3)
    y.sum().backward()
    w = model.a.weight.detach()
    torch.testing.assert_close(model.a.weight.grad, torch.sin(w) + w * torch.cos(w))


def test_a_transform_whose_surroundings_have_changed():
    rule = Rule("b", "a", lambda w: w @ torch.eye(4))
    tied = fxtie.transform(Using(lambda x, w: x * w.sin()), rule, recompute=True)
    y = tied(torch.ones(4, 4)).sum()
    y.backward(retain_graph=True)
    torch.set_default_dtype(torch.float64)
    try:
        with pytest.raises(RuntimeError):  # in the op itself
            y.backward(retain_graph=True)
    finally:
        torch.set_default_dtype(torch.float32)
    rule = Rule("b", "a", lambda w: w.sin() + torch.ones(4, 4))
    tied = fxtie.transform(Using(lambda x, w: x * w), rule, recompute=True)
    y = tied(torch.ones(4, 4)).sum()
    torch.set_default_dtype(torch.float64)
    try:
        with pytest.raises(RuntimeError, match=r"dtype is torch.float64, expected torch.float32"):
            y.backward()
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("shape", [(4, 4), (0, 4)])
@pytest.mark.parametrize("device", ["meta", "cpu"])
def test_tensors_without_data(shape, device):
    model = Using(lambda x, w: x.double() * torch.exp(w).double())
    for layer in (model.a, model.b):
        layer.weight = nn.Parameter(torch.ones(shape, device=device))
    tied = fxtie.transform(model, Rule("b", "a", torch.sin), recompute=True)
    tied(torch.ones(shape, device=device)).sum().backward()
    assert model.a.weight.grad.shape == shape


def test_sparse_tensors_and_subclasses_are_stored():
    def use(x, w):
        return torch.sparse.mm(adjacency * x.sum(), w)

    adjacency = torch.eye(4).to_sparse()
    results = []
    for recompute in (False, True):
        torch.manual_seed(0)
        model = Using(use)
        tied = fxtie.transform(model, Rule("b", "a", torch.sin), recompute=recompute)
        tied(torch.ones(4, 4)).square().sum().backward()
        results.append(model.a.weight.grad)
    assert torch.equal(*results)


def test_torch_func():
    model = Using(lambda x, w: x * w)
    tied = fxtie.transform(model, Rule("b", "a", torch.sin), recompute=True)
    x = torch.randn(4, 4)
    torch.testing.assert_close(
        torch.func.jacrev(lambda x: tied(x).sum())(x), model.a.weight * torch.sin(model.a.weight)
    )


def test_random_numbers_are_not_drawn_twice():
    def noisy(weight):
        return F.dropout(torch.sin(weight), 0.5, True)

    model = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 6))
    tied = fxtie.transform(model, Rule("1", "0", weight=noisy), recompute=True)
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
