"""derive_once: one evaluation for many calls, the same gradients, never a stale value."""

import contextlib
import copy
import io

import pytest
import torch
import torch.utils.checkpoint
from torch import nn

import fxtie
from fxtie import Rule, transforms

CALLS = []


class Counting(nn.Module):
    """A learnable transform that counts how often it is evaluated."""

    def __init__(self):
        super().__init__()
        self.gain = nn.Parameter(torch.rand(6, 1) + 0.5)

    def forward(self, w):
        CALLS.append(1)
        return self.gain * w


class Fragile(nn.Module):
    """A transform that fails when it is told to."""

    def __init__(self, state):
        super().__init__()
        self.state = state

    def forward(self, weight):
        if self.state["fails"]:
            raise RuntimeError("no luck")
        return weight / 2


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = nn.Linear(6, 6)
        self.b = nn.Sequential(nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 6))
        self.c = nn.Linear(6, 6)

    def forward(self, x):
        return self.c(self.b(self.b(self.a(x))))


class Kept(Net):
    def forward(self, x):
        return super().forward(x) if x.sum() < 1e9 else x


def tie(cls):
    torch.manual_seed(0)
    rules = [
        Rule("b.0", "a", Counting(), torch.neg),
        Rule("b.2", "b.0", transforms.flip(0)),
        Rule("c", "c", lambda w: w - w.mean()),
    ]
    return fxtie.transform(cls(), rules)


@pytest.mark.parametrize("cls", [Net, Kept])
def test_gradients_of_micro_batches_and_evaluations(cls):
    plain, once = tie(cls), tie(cls)
    batches = torch.randn(8, 4, 6)
    for x in batches:
        plain(x).square().mean().backward()
    CALLS.clear()
    with fxtie.derive_once(once):
        for x in batches:
            once(x).square().mean().backward()
        assert once.a.weight.grad is not None  # of its own use; the derived ones come at exit
    assert len(CALLS) == 1
    for (name, p), q in zip(plain.named_parameters(), once.parameters(), strict=True):
        assert p.grad.norm() > 1e-4, name
        torch.testing.assert_close(p.grad, q.grad, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("cls", [Net, Kept])
def test_inference(cls):
    tied = tie(cls).eval()
    x = torch.randn(4, 6)
    with torch.no_grad():
        expected = tied(x)
        CALLS.clear()
        with fxtie.derive_once(tied):
            assert all(torch.equal(tied(x), expected) for _ in range(5))
        assert len(CALLS) == 1
    assert torch.equal(tied(x), expected)  # as before
    tied.train()
    file = io.BytesIO()
    with fxtie.derive_once(tied):
        torch.save(tied, file)
        assert torch.equal(copy.deepcopy(tied)(x), expected)
    assert torch.equal(tied(x), expected)


def test_equal_derivations_are_one():
    net = nn.Sequential(*(nn.Linear(6, 6) for _ in range(5)))
    CALLS.clear()
    tied = fxtie.transform(net, Rule("*", "0", Counting()))
    CALLS.clear()
    with fxtie.derive_once(tied):
        tied(torch.randn(2, 6)).sum().backward()
    assert len(CALLS) == 1 and net[0].weight.grad.abs().sum() > 0


@pytest.mark.parametrize("cls", [Net, Kept])
def test_no_stale_values(cls):
    tied = tie(cls)
    x = torch.randn(4, 6)
    optimizer = torch.optim.SGD(tied.parameters(), 0.1)
    tied(x).sum().backward()
    before = copy.deepcopy(tied.state_dict())
    with pytest.raises(fxtie.FxtieError, match="optimizer step"), fxtie.derive_once(tied):
        optimizer.step()
    with pytest.raises(fxtie.FxtieError, match="Loading inside"), fxtie.derive_once(tied):
        tied.load_state_dict(before)
    for key, value in tied.state_dict().items():
        assert torch.equal(value, before[key])
    changed = pytest.raises(fxtie.FxtieError, match=r"'a\.weight' has changed")
    with changed, fxtie.derive_once(tied):
        with torch.no_grad():
            tied.a.weight.mul_(2)
        tied(x)
    optimizer.step()  # and all is as usual again
    tied(x).sum().backward()


def test_misuse_is_told():
    tied = tie(Net)
    x = torch.randn(4, 6)
    with pytest.raises(fxtie.FxtieError, match="not a tied model"), fxtie.derive_once(nn.ReLU()):
        pass
    nested = (fxtie.derive_once(tied), fxtie.derive_once(tied))
    with pytest.raises(fxtie.FxtieError, match="already in force"), nested[0], nested[1]:
        pass
    cached = (torch.no_grad(), fxtie.derive_once(tied), torch.enable_grad())
    with pytest.raises(fxtie.FxtieError, match="under no_grad"), cached[0], cached[1], cached[2]:
        tied(x)
    assert tied(x).requires_grad


def test_a_failure_in_the_block_leaves_the_model_as_it_was():
    tied = tie(Net)
    x = torch.randn(4, 6)
    expected = tied(x)
    with pytest.raises(ZeroDivisionError), fxtie.derive_once(tied):
        tied(x).sum().backward()
        raise ZeroDivisionError
    assert torch.equal(tied(x), expected)
    code = tied.code
    with fxtie.derive_once(tied):
        assert tied.code != code and "neg" not in tied.code
    assert tied.code == code


def test_a_transform_that_fails_leaves_the_model_as_it_was():
    net = Net()
    state = {"fails": False}

    tied = fxtie.transform(net, [Rule("b.0", "a", torch.neg), Rule("b.2", "a", Fragile(state))])
    x = torch.randn(2, 6)
    expected = tied(x)
    state["fails"] = True
    with pytest.raises(RuntimeError, match="no luck"), fxtie.derive_once(tied):
        pass
    state["fails"] = False
    assert torch.equal(tied(x), expected)
    with fxtie.derive_once(tied):
        assert torch.equal(tied(x), expected)


@pytest.mark.parametrize("again", [False, True])
def test_parts_that_were_tied_by_themselves(again):
    """Their derived tensors have the same names, and are not the same."""

    def part(transform):
        net = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 6))
        return fxtie.transform(net, Rule("1", "0", weight=transform))

    model = nn.Sequential(part(torch.sin), part(torch.neg), nn.Linear(6, 6))
    x = torch.randn(4, 6)
    expected = model(x)
    assert not torch.allclose(expected, nn.Sequential(model[0], model[0], model[2])(x))
    if again:
        rule = Rule("2", "0.0", weight=torch.cos)
        model = fxtie.transform(model, rule)
        expected = nn.functional.linear(
            model[:2](x), torch.cos(model[0][0].weight), model[0][0].bias
        )
        torch.testing.assert_close(model(x), expected)
    with fxtie.derive_once(model):
        torch.testing.assert_close(model(x), expected)


def test_parametrized_sources_are_told_apart():
    """They are computed when they are read: their values must not be taken for one another."""
    net = nn.Sequential(*(nn.Linear(6, 6) for _ in range(4)))
    for layer in net[:2]:
        nn.utils.parametrizations.weight_norm(layer)
    rules = [fxtie.Tie(f"{i + 2}.weight", f"{i}.weight", torch.sin) for i in range(2)]
    tied = fxtie.transform(net, rules)
    x = torch.randn(4, 6)
    with torch.no_grad():
        expected = tied(x)
        with fxtie.derive_once(tied):
            assert torch.equal(tied(x), expected)


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


@pytest.mark.parametrize("transform", [lambda w: w + torch.rand_like(w), nn.Dropout()])
def test_random_derived_tensors_are_drawn_apart(transform):
    net = nn.Sequential(*(nn.Linear(6, 6) for _ in range(3)))
    tied = fxtie.transform(net, Rule("*", "0", transform, None))
    with fxtie.derive_once(tied):
        assert not torch.equal(tied[1].weight, tied[2].weight)


# -- gradients in the block ----------------------------------------------------------------------


def gradients(tied):
    return [None if p.grad is None else p.grad.clone() for p in tied.parameters()]


def assert_same(found, expected):
    for a, b in zip(found, expected, strict=True):
        assert (a is None) == (b is None)
        if a is not None:
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-7)


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


def test_compiled_models_and_checkpoints():
    """Hooks on sources must not keep compiled code from running."""
    batches = [torch.randn(n, 6) for n in (4, 4, 5)]
    results = []
    for once in (False, True):
        torch._dynamo.reset()
        tied = tie(Net)
        fast = torch.compile(tied, backend="aot_eager", fullgraph=True) if once else tied
        with fxtie.derive_once(fast) if once else contextlib.nullcontext():
            for i, x in enumerate(batches):
                if i == 1:
                    tied.zero_grad()
                fast(x).square().mean().backward()
                torch.utils.checkpoint.checkpoint(
                    tied, x.requires_grad_(), use_reentrant=True
                ).sum().backward()
        results.append(gradients(tied))
    assert_same(*results)
