"""Learnable transforms."""

from __future__ import annotations

import copy
import math
import operator
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, fx, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import functional_call
from transform_cases import ShapeTracer, fits, layers, pairs, root_of

import fxtie
from fxtie import Rule
from fxtie import transforms as T
from fxtie.transforms import ChannelScale, LowRank, Mix, chain, neg, tile


@settings(deadline=None)
@given(pair=pairs, chained=st.booleans(), rank=st.integers(1, 4), dim=st.integers(-3, 3))
def test_every_target_of_a_learned_transform_fits_or_says_why_not(
    pair: tuple[tuple[int, ...], tuple[int, ...]], chained: bool, rank: int, dim: int
) -> None:
    have, want = pair
    source = torch.ones(have)
    reaches = fits(tile(), have, want) if chained else have == want
    low_rank = len(want) > 1 and rank <= min(want[0], math.prod(want[1:]))
    channels = -len(want) <= dim < len(want)
    for transform, works in ((LowRank(rank), low_rank), (ChannelScale(dim), channels)):
        if works and reaches:
            adapted = chain(tile(), transform) if chained else transform
            assert adapted.for_target(torch.empty(want))(source).shape == want
        else:
            with pytest.raises(ValueError):
                adapted = chain(tile(), transform) if chained else transform
                adapted.for_target(torch.empty(want))(source)


# --- Learned ----------------------------------------------------------------------------------


def test_learned_gradients_of_sources_and_parameters(
    learned: tuple[nn.Module, list[Tensor]],
) -> None:
    module, sources = learned
    names = [name for name, _ in module.named_parameters()]

    def run(*tensors: Tensor) -> Tensor:
        parameters = dict(zip(names, tensors, strict=False))
        return functional_call(module, parameters, tensors[len(names) :])

    values = [*module.parameters(), *sources]
    assert torch.autograd.gradcheck(run, [v.detach().clone().requires_grad_() for v in values])


def test_learned_copies_are_independent_and_equal(
    learned: tuple[nn.Module, list[Tensor]],
) -> None:
    module, sources = learned
    before = module(*sources)
    for twin in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        assert torch.equal(twin(*sources), before)
        assert repr(twin) == repr(module)
        with torch.no_grad():
            for parameter in twin.parameters():
                parameter.add_(1)
        assert not torch.allclose(twin(*sources), before)
        assert torch.equal(module(*sources), before)


def test_learned_values() -> None:
    generator = torch.Generator().manual_seed(1)
    w = torch.randn(4, 3, 2, generator=generator)
    low_rank = LowRank(2).for_target(w)
    nn.init.normal_(low_rank.B, generator=generator)
    product = np.einsum("or,ri->oi", low_rank.B.detach().numpy(), low_rank.A.detach().numpy())
    torch.testing.assert_close(low_rank(w).detach(), w + torch.from_numpy(product).reshape(4, 3, 2))
    for dim in range(-3, 3):
        factors = ChannelScale(dim).for_target(w)
        nn.init.normal_(factors.scale, generator=generator)
        moved = torch.movedim(w, dim, -1) * factors.scale
        torch.testing.assert_close(factors(w), torch.movedim(moved, -1, dim))
    mix = Mix(2).for_target(w)
    mix.weights.data = torch.tensor([2.0, -0.5])
    torch.testing.assert_close(mix(w, w.square()), 2 * w - 0.5 * w * w)


def test_learned_transforms_start_at_the_source() -> None:
    w = torch.randn(4, 3)
    assert torch.equal(LowRank(2).for_target(w)(w), w)
    assert torch.equal(ChannelScale().for_target(w)(w), w)


def test_reset_parameters_goes_back_to_the_start_in_place() -> None:
    w = torch.randn(4, 3)
    for module in (LowRank(2).for_target(w), ChannelScale().for_target(w)):
        before = list(module.parameters())
        for parameter in before:
            nn.init.constant_(parameter, 7.0)
        assert not torch.equal(module(w), w)
        module.reset_parameters()
        assert torch.equal(module(w), w)
        assert all(map(operator.is_, before, module.parameters()))


def test_low_rank_can_leave_its_start() -> None:
    """With B at 0 the gradient of A is 0: that of B must not be, so A may not start at 0."""
    w = torch.randn(4, 9)
    f = LowRank(3).for_target(w)
    f(w).square().sum().backward()
    assert f.B.grad is not None and f.B.grad.abs().max() > 1e-3
    assert 0 < f.A.abs().max() <= 1 / math.sqrt(9)


def test_each_target_gets_parameters_of_its_own_and_a_fitted_one_is_kept() -> None:
    w = torch.randn(4, 3)
    for f in (LowRank(1), ChannelScale()):
        assert not list(f.parameters())
        first, second = f.for_target(w), f.for_target(w)
        assert not {map(id, first.parameters())} & {map(id, second.parameters())}
        assert first.for_target(w) is first
        with pytest.raises(ValueError, match=r"\(4, 3\).*\(3, 4\)"):
            first.for_target(w.T)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_parameters_have_the_dtype_and_device_of_the_target(
    dtype: torch.dtype, device: str
) -> None:
    with FakeTensorMode():
        target = torch.empty(4, 3, dtype=dtype, device=device)
    for f in (LowRank(1), ChannelScale(), chain(neg, LowRank(2))):
        for parameter in f.for_target(target).parameters():
            assert type(parameter) is nn.Parameter and type(parameter.data) is Tensor
            assert (parameter.dtype, parameter.device.type) == (dtype, device)
            assert parameter.requires_grad


def test_learned_transforms_are_traceable(learned: tuple[nn.Module, list[Tensor]]) -> None:
    module, sources = learned
    root = root_of(module, len(sources))
    traced = fx.GraphModule(root, ShapeTracer(sources).trace(root))
    assert {name for name, _ in traced.named_parameters()} == {
        name for name, _ in root.named_parameters()
    }
    assert torch.equal(traced(*sources), module(*sources))


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
