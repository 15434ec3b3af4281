"""Where learnable transforms start, and what they know of their target."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

import fxtie
from fxtie import Rule
from fxtie import transforms as T
from fxtie.transforms.protocol import fitted_to


def layers(kind: str, count: int) -> nn.Sequential:
    make: Any = {
        "Linear": lambda: nn.Linear(64, 96),
        "Conv2d": lambda: nn.Conv2d(24, 48, 3),
        "ConvTranspose2d": lambda: nn.ConvTranspose2d(24, 48, 3),
    }[kind]
    return nn.Sequential(*(make() for _ in range(count)))


SHARED = {
    "Mix": lambda shape: Rule("*", fxtie.Bank(4, shape), T.Mix(), None),
    "Mix-one": lambda shape: Rule("*", fxtie.Bank(1, shape), T.Mix(), None),
    "basis": lambda shape: Rule("*", fxtie.Bank(16, (1, *shape[1:])), T.basis(16), None),
    "kronecker": lambda shape: Rule("*", None, T.kronecker((8, 8)), None),
}


@pytest.mark.parametrize("kind", ["Linear", "Conv2d", "ConvTranspose2d"])
@pytest.mark.parametrize("name", SHARED)
def test_derived_tensors_start_with_the_variance_of_the_layer(name: str, kind: str) -> None:
    torch.manual_seed(0)
    net = layers(kind, 40)
    own = torch.stack([layer.weight for layer in net]).var().item()
    tied = fxtie.transform(net, SHARED[name](tuple(net[0].weight.shape)))
    derived = torch.stack([tied[i].weight for i in range(len(net))])
    assert derived.mean().abs() < 0.1 * math.sqrt(own)
    assert derived.var().item() == pytest.approx(own, rel=0.15)


@pytest.mark.parametrize("name", ["Mix", "basis", "kronecker"])
def test_no_two_targets_start_equal(name: str) -> None:
    net = layers("Linear", 12)
    tied = fxtie.transform(net, SHARED[name](tuple(net[0].weight.shape)))
    weights = [tied[i].weight for i in range(len(net))]
    for i, a in enumerate(weights):
        for b in weights[:i]:
            assert (a - b).norm() > 0.05 * a.norm()


def test_the_weights_of_a_mixture_have_length_1() -> None:
    for n in (1, 2, 5):
        mix = T.Mix(n).for_target(torch.empty(3, dtype=torch.float64))
        for _ in range(3):
            torch.testing.assert_close(mix.weights.norm(), torch.ones_like(mix.weights[0]))
            mix.reset_parameters()


def test_mix_counts_its_sources() -> None:
    net = layers("Linear", 3)
    plan = fxtie.plan(net, Rule("*", fxtie.Bank(5, (96, 64)), T.Mix(), None))
    assert [repr(tie.transform) for tie in plan.ties] == ["Mix(5)"] * 3
    chained = T.chain(T.Mix(), T.square, T.Mix())
    fitted = chained.for_target(torch.empty(2), sources=3)
    assert repr(fitted) == "chain(Mix(3), square, Mix(1))"
    assert T.Mix(2).for_target(torch.empty(2), sources=3).n == 2
    plan = fxtie.plan(net, Rule("2", ("0", "1"), T.Mix(), T.Mix()))
    assert [repr(tie.transform) for tie in plan.ties] == ["Mix(2)", "Mix(2)"]


def test_mix_that_can_not_count_says_so() -> None:
    with pytest.raises(ValueError) as error:
        T.Mix().for_target(torch.empty(2))
    assert str(error.value) == (
        "Mix() doesn't know the number of its sources. Write Mix(n), or for_target(target, "
        "sources=n), as planning does."
    )
    with pytest.raises(ValueError, match=r"Mix\(2\) takes 2 sources, not 3"):
        T.Mix(2).for_target(torch.empty(2))(*torch.ones(3, 2))
    net = layers("Linear", 3)
    with pytest.raises(fxtie.PlanError, match=r"Mix\(3\) takes 3 sources, not 2"):
        fxtie.plan(net, Rule("2", ("0", "1"), T.Mix(3), None))


# --- weight_norm ------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "dim"), [("Linear", 0), ("Conv2d", 0), ("ConvTranspose2d", 1)])
def test_weight_norm_is_that_of_torch_and_starts_at_the_weight(kind: str, dim: int) -> None:
    torch.manual_seed(0)
    net = layers(kind, 1).double()
    before = net[0].weight.detach().clone()
    tied = fxtie.transform(net, Rule("0", "0", T.weight_norm(dim), None))
    torch.testing.assert_close(tied[0].weight, before)
    oracle = nn.utils.parametrizations.weight_norm(layers(kind, 1).double()[0], dim=dim)
    g = torch.randn(before.shape[dim], dtype=torch.float64)
    with torch.no_grad():
        oracle.parametrizations.weight.original0.view(-1).copy_(g)
        oracle.parametrizations.weight.original1.copy_(before)
        next(tied.ties.parameters()).copy_(g)
    torch.testing.assert_close(tied[0].weight, oracle.weight)
    out = torch.randn_like(before)
    (tied[0].weight * out).sum().backward()
    (oracle.weight * out).sum().backward()
    torch.testing.assert_close(
        next(tied.ties.parameters()).grad, oracle.parametrizations.weight.original0.grad.flatten()
    )
    stored = next(p for name, p in tied.named_parameters() if name.startswith("0.") and p.dim() > 1)
    torch.testing.assert_close(stored.grad, oracle.parametrizations.weight.original1.grad)


def test_weight_norm_of_another_layer_keeps_the_old_magnitudes() -> None:
    net = nn.Sequential(nn.Linear(6, 4), nn.Linear(6, 4))
    norms = net[1].weight.detach().norm(dim=1)
    tied = fxtie.transform(net, Rule("1", "0", T.weight_norm(), None))
    torch.testing.assert_close(tied[1].weight.norm(dim=1), norms)
    source = net[0].weight.detach()
    torch.testing.assert_close(
        tied[1].weight / norms[:, None], source / source.norm(dim=1)[:, None]
    )


@pytest.mark.parametrize(("kind", "dim"), [("Linear", 0), ("Conv2d", 0), ("ConvTranspose2d", 1)])
def test_weight_norm_without_a_value_starts_at_the_norm_of_a_new_layer(kind: str, dim: int) -> None:
    weight = layers(kind, 1)[0].weight
    fitted = T.weight_norm(dim).for_target(weight)
    others = [i for i in range(weight.dim()) if i != dim]
    usual = weight.square().sum(others).mean().sqrt().item()
    assert fitted.g.unique().numel() == 1
    assert fitted.g[0].item() == pytest.approx(usual, rel=0.05)


def test_on_meta_there_is_no_value() -> None:
    with torch.device("meta"):
        net = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    tied = fxtie.transform(net, Rule("1", "0", T.weight_norm(), None))
    assert tied[1].weight.is_meta
    with FakeTensorMode():
        target = torch.empty(4, 4)
    assert T.weight_norm().for_target(target).g[0].item() == pytest.approx(3**-0.5)


# --- What `for_target` is told ----------------------------------------------------------------


class Curious:
    def __init__(self) -> None:
        self.told: list[dict[str, Any]] = []


class Everything(Curious):
    def for_target(self, target: Tensor, **told: Any) -> Any:
        self.told.append(told)
        return lambda *sources: sources[0]


class Name(Curious):
    def for_target(self, target: Tensor, *, name: str = "") -> Any:
        self.told.append({"name": name})
        return lambda *sources: sources[0]


class Nothing(Curious):
    def for_target(self, target: Tensor) -> Any:
        self.told.append({})
        return lambda *sources: sources[0]


def test_for_target_is_told_what_it_asks_for() -> None:
    net = nn.Sequential(*(nn.Linear(4, 4) for _ in range(3)))
    asks: list[Any] = [Everything(), Name(), Nothing()]
    for one in asks:
        one.__class__.__call__ = lambda self, *sources: sources[0]
        fxtie.plan(net, Rule("2", ("0", "1"), one, None))
    everything, name, nothing = (one.told[0] for one in asks)
    assert everything.keys() == {"name", "sources", "value"}
    assert (everything["name"], everything["sources"]) == ("2.weight", 2)
    assert torch.equal(everything["value"], net[2].weight)
    assert not everything["value"].requires_grad
    assert name == {"name": "2.weight"} and nothing == {}


def test_fitted_to_leaves_others_alone() -> None:
    for transform in (torch.square, T.same, T.scale(2), lambda w: w):
        assert fitted_to(transform, torch.empty(2), name="x", sources=1) is transform


# --- LowRank ----------------------------------------------------------------------------------


def away(module: nn.Module) -> nn.Module:
    torch.manual_seed(3)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_()
    return module


def test_alpha_scales_the_update_as_in_lora() -> None:
    source = torch.randn(6, 5, dtype=torch.float64)
    plain, scaled, same = (away(T.LowRank(2, alpha).for_target(source)) for alpha in (None, 8, 2))
    torch.testing.assert_close(scaled(source) - source, 4 * (plain(source) - source))
    assert torch.equal(same(source), plain(source))


def test_dropout_is_lora_s_with_one_mask_for_the_batch() -> None:
    """`x W + scale * B A dropout(x)`, computed the way LoRA does, with the mask that was drawn."""
    linear, x = nn.Linear(7, 5, bias=False).double(), torch.randn(9, 7, dtype=torch.float64)
    low = away(T.LowRank(3, alpha=6, dropout=0.4).for_target(linear.weight))
    torch.manual_seed(5)
    mask = nn.functional.dropout(torch.ones(1, 7, dtype=torch.float64), 0.4)
    lora = linear(x) + 2 * (x * mask) @ low.A.T @ low.B.T
    torch.manual_seed(5)
    torch.testing.assert_close(x @ low(linear.weight).T, lora)
    low.eval()
    torch.testing.assert_close(x @ low(linear.weight).T, linear(x) + 2 * x @ low.A.T @ low.B.T)


def test_dropout_drops_whole_input_channels_and_keeps_the_mean() -> None:
    source = torch.zeros(4, 50, 3, 3, dtype=torch.float64)
    low = away(T.LowRank(2, dropout=0.3).for_target(source))
    update = low.eval()(source)
    low.train()
    drawn = torch.stack([low(source) for _ in range(400)])
    ratio = drawn / update
    assert set(ratio.unique().round(decimals=6).tolist()) == {0.0, round(1 / 0.7, 6)}
    assert (ratio == ratio[:, :1, :, :1, :1]).all() or torch.allclose(
        ratio, ratio[:, :1, :, :1, :1].expand_as(ratio)
    )
    torch.testing.assert_close(drawn.mean(0), update, rtol=0.25, atol=0)


def test_dropout_in_a_tied_model_follows_its_mode() -> None:
    net = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
    tied = fxtie.transform(net, Rule("1", "0", T.LowRank(2, dropout=0.5), None))
    away(tied.ties)
    x = torch.randn(3, 8)
    tied.eval()
    assert torch.equal(tied(x), tied(x))
    tied.train()
    assert not torch.equal(tied(x), tied(x))
    fxtie.verify(net, tied, x)


# --- Mistakes ---------------------------------------------------------------------------------

W = torch.ones(4, 6)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: T.LowRank(2, alpha=0), "LowRank(alpha): alpha is positive, not 0."),
        (lambda: T.LowRank(2, alpha="8"), "LowRank(alpha) takes a number, not '8'."),
        (lambda: T.LowRank(2, dropout=1), "0 <= dropout < 1 is needed, not 1."),
        (lambda: T.weight_norm(2).for_target(W), "weight_norm(dim=2): a target of shape (4, 6)"),
        (lambda: T.weight_norm().for_target(torch.ones(4, 6).int()), "dtype torch.int32"),
        (lambda: T.weight_norm().for_target(W)(torch.ones(4, 5)), "its source has (4, 5)"),
        (lambda: T.basis(0), "basis(k): k is positive, not 0."),
        (lambda: T.basis(2).for_target(torch.ones(())), "one or more dimensions"),
        (
            lambda: T.basis(2).for_target(W)(torch.ones(3, 6)),
            "basis(2) for a target of shape (4, 6) takes sources with 2 rows of shape (6,) in all, "
            "such as fxtie.Bank(2, (1, 6)), not (3, 6).",
        ),
        (lambda: T.basis(2).for_target(W)(torch.ones(2, 5)), "not (2, 5)."),
        (lambda: T.basis(2).for_target(W)(), "not none."),
        (lambda: T.kronecker(())(), "left is a shape such as (4, 8), not ()."),
        (lambda: T.kronecker(4), "left is a shape such as (4, 8), not 4."),
        (lambda: T.kronecker((0, 2)), "not (0, 2)."),
        (lambda: T.kronecker((3, 2)).for_target(W), "have to divide those of the target"),
        (lambda: T.kronecker((2, 2, 2)).for_target(W), "kronecker((2, 2, 2)): the sizes"),
        (lambda: T.kronecker()(W), "kronecker() takes 2 sources, not 1. With learned factors"),
        (lambda: T.interpolate(math.nan), "interpolate(t) takes a finite number, not nan."),
        (lambda: T.interpolate(0.5)(W), "interpolate(0.5) takes 2 sources, not 1."),
        (lambda: T.task_vector("1"), "task_vector(scale) takes a number, not '1'."),
        (lambda: T.task_vector()(W), "takes a base and one or more tuned sources, not 1 in all."),
        (lambda: T.scale(2.0)(W, W), "scale(2.0) takes 1 source, not 2."),
        (lambda: T.learn(T.square), "a transform with one number, such as interpolate(0.5), not"),
        (lambda: T.learn(0.5), "not 0.5."),
        (lambda: T.fake_quant(1), "fake_quant(bits): 2 bits or more are needed, not 1."),
        (lambda: T.fake_quant(4.5), "fake_quant(bits) takes integers, not 4.5."),
        (lambda: T.fake_quant(4, dim=2)(W), "a source of shape (4, 6) has no such dimension."),
    ],
)  # fmt: skip
def test_mistakes(make: Any, says: str) -> None:
    with pytest.raises(ValueError) as error:
        make()
    assert says in str(error.value)
