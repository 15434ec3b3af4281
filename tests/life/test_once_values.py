"""Values in a block of derive_once: what makes them stale, and the gradients of their sources."""

import contextlib

import pytest
import torch
import torch.utils.checkpoint
from counted import Kept, Net, assert_same, gradients, tie
from torch import nn

import fxtie
from fxtie import Rule, transforms


class Masked(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("mask", torch.ones(6, 6))

    def forward(self, w):
        return w * self.mask


def pair(transform=torch.square):
    """A source that is used by itself as well, and a tensor derived from it."""
    net = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 6))
    return fxtie.transform(net, Rule("1", "0", weight=transform, bias=None))


def replace_memory(tied):
    tied[0].weight.data = tied[0].weight.data * 2


def transpose_memory(tied):
    tied[0].weight.data = tied[0].weight.data.t()


CHANGES = {
    "p.data = x": replace_memory,
    "p.data = p.data.t()": transpose_memory,
    "to(dtype)": lambda tied: tied.to(torch.float64),
    "detach": lambda tied: tied[0].weight.detach().mul_(2),
    "set_": lambda tied: tied[0].weight.detach().set_(torch.ones(6, 6)),
    "a buffer of a transform": lambda tied: tied.get_submodule("ties").get_buffer(MASK).zero_(),
}


MASK = "1_weight.mask"


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
@pytest.mark.parametrize("call", [False, True])
def test_changes_that_are_noticed(change, call):
    tied = pair(Masked())
    told = pytest.raises(fxtie.FxtieError, match="has changed inside")
    with told, fxtie.derive_once(tied):
        change(tied)
        if call:
            tied(torch.randn(2, 6, dtype=tied[0].weight.dtype))
            raise AssertionError("not told by the call")


def test_changes_that_are_not_noticed():
    """Nothing in a tensor tells of a write by way of `.data`: see the docstring."""
    tied = pair()
    p = tied[0].weight
    before = p._version, p.data_ptr(), p.untyped_storage()._cdata
    with torch.no_grad(), fxtie.derive_once(tied):
        p.data.mul_(2)
        assert (p._version, p.data_ptr(), p.untyped_storage()._cdata) == before
    assert "p.data.mul_(2)" in fxtie.derive_once.__doc__


def test_a_parametrized_source_that_changes():
    net = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 6))
    nn.utils.parametrizations.spectral_norm(net[0])
    tied = fxtie.transform(net, fxtie.Tie("1.weight", "0.weight", torch.sin))
    with fxtie.derive_once(tied), torch.no_grad():
        net[0].bias.add_(1)  # which the weight doesn't depend on
    told = pytest.raises(fxtie.FxtieError, match=r"'original of 0.weight' has changed")
    with told, fxtie.derive_once(tied), torch.no_grad():
        net[0].parametrizations.weight.original.mul_(2)


def test_tensors_of_inference_mode():
    with torch.inference_mode():
        tied = pair(Masked())
    x = torch.randn(2, 6)
    with torch.no_grad(), fxtie.derive_once(tied):
        torch.testing.assert_close(tied(x), tied[1](tied[0](x)))


def through_bank():
    """Its templates are used by way of derived tensors only."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 6))
    rule = Rule("*", fxtie.Bank(2, (6, 6)), transforms.Mix(2), None, exclude="1")
    return fxtie.transform(net, rule)


MAKERS = {"own use": lambda: tie(Net), "kept": lambda: tie(Kept), "bank": through_bank}


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
@pytest.mark.parametrize("reset", ["optimizer", "model", "by hand"])
@pytest.mark.parametrize("at", [0, 1, 3, 4])
def test_zero_grad_in_the_block(make, reset, at):
    """It drops what the micro-batches before it have left on the leaves."""
    batches = torch.randn(4, 4, 6)
    results = []
    for once in (False, True):
        tied = make()
        optimizer = torch.optim.SGD(tied.parameters(), 0.1)
        tied(batches[0]).square().mean().backward()  # gradients from before the block
        with fxtie.derive_once(tied) if once else contextlib.nullcontext():
            for i, x in enumerate([*batches, None]):
                if i == at:
                    if reset == "by hand":
                        for p in tied.parameters():
                            p.grad = None
                    else:
                        (tied if reset == "model" else optimizer).zero_grad()
                if x is not None:
                    tied(x).square().mean().backward()
        results.append(gradients(tied))
    assert_same(*results)


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
def test_zero_grad_again_and_again(make, device):
    batches = torch.randn(6, 4, 6, device=device)
    results = []
    for once in (False, True):
        tied = make().to(device)
        with fxtie.derive_once(tied) if once else contextlib.nullcontext():
            for x in batches:
                tied.zero_grad()
                tied(x).square().mean().backward()
                tied(x).mean().backward()
        results.append(gradients(tied))
    assert_same(*results)


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
def test_gradients_add_up_over_blocks(make):
    batches = torch.randn(3, 2, 4, 6)
    results = []
    for once in (False, True):
        tied = make()
        for block in batches:
            with fxtie.derive_once(tied) if once else contextlib.nullcontext():
                for x in block:
                    tied(x).square().mean().backward()
        results.append(gradients(tied))
    assert_same(*results)
    assert all(g is None or g.norm() > 1e-6 for g in results[0])


def clip(tied):
    nn.utils.clip_grad_norm_(tied.parameters(), 1e-3)


GRADIENT_CHANGES = {
    "clip": clip,
    "zero in place": lambda tied: torch.optim.SGD(tied.parameters(), 1).zero_grad(False),
    "replace": lambda tied: [setattr(p, "grad", torch.ones_like(p)) for p in tied.parameters()],
}


@pytest.mark.parametrize("change", GRADIENT_CHANGES.values(), ids=GRADIENT_CHANGES)
@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
@pytest.mark.parametrize("again", [False, True])
def test_other_changes_of_gradients_are_told(change, make, again):
    tied, x = make(), torch.randn(4, 6)
    told = pytest.raises(fxtie.FxtieError, match="was changed inside of derive_once")
    with told, fxtie.derive_once(tied):
        tied(x).sum().backward()
        change(tied)
        if again:
            tied(x).sum().backward()
    tied.zero_grad()
    tied(x).sum().backward()  # and all is as usual again
    for p in tied.parameters():
        assert not p._backward_hooks and not p._post_accumulate_grad_hooks


def test_a_reset_of_some_sources_only_is_told():
    net = nn.Sequential(*(nn.Linear(6, 6) for _ in range(3)))
    tied = fxtie.transform(net, Rule("2", ("0", "1"), torch.mul, torch.mul))
    told = pytest.raises(fxtie.FxtieError, match=r"of '0.weight' was reset, but not .*'1.weight'")
    with told, fxtie.derive_once(tied):
        tied(torch.randn(4, 6)).sum().backward()
        tied[0].weight.grad = None


def test_what_is_left_behind():
    """Zeros stand in for gradients in the block only, and a failed block leaves none."""
    tied, x = through_bank(), torch.randn(4, 6)
    with fxtie.derive_once(tied):
        tied(x)
    assert gradients(tied) == [None] * len(list(tied.parameters()))
    with pytest.raises(ZeroDivisionError), fxtie.derive_once(tied):
        tied(x).sum().backward()
        assert not tied.ties.bank.templates[0].grad.any()
        raise ZeroDivisionError
    assert {p.grad for p in tied.ties.bank.parameters()} == {None}


def test_blocks_of_models_that_have_sources_in_common():
    x = torch.randn(4, 6)
    results = []
    for once in (False, True):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 6))
        outer = fxtie.transform(net, Rule("1", "0", weight=torch.sin))
        inner = fxtie.transform(net, Rule("1", "0", weight=torch.cos))
        with fxtie.derive_once(outer) if once else contextlib.nullcontext():
            outer(x).sum().backward()
            with fxtie.derive_once(inner) if once else contextlib.nullcontext():
                inner(x).sum().backward()
                outer(x).mean().backward()
            outer(x).sum().backward()
            net.zero_grad()
            outer(x).square().sum().backward()
        results.append(gradients(outer))
    assert_same(*results)
