"""derive_once: one evaluation for many calls, the same gradients, never a stale value."""

import contextlib
import copy
import io

import pytest
import torch
import torch.utils.checkpoint
from counted import CALLS, Counting, Kept, Net, assert_same, gradients, tie
from torch import nn

import fxtie
from fxtie import Rule


class Fragile(nn.Module):
    """A transform that fails when it is told to."""

    def __init__(self, state):
        super().__init__()
        self.state = state

    def forward(self, weight):
        if self.state["fails"]:
            raise RuntimeError("no luck")
        return weight / 2


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


@pytest.mark.parametrize("transform", [lambda w: w + torch.rand_like(w), nn.Dropout()])
def test_random_derived_tensors_are_drawn_apart(transform):
    net = nn.Sequential(*(nn.Linear(6, 6) for _ in range(3)))
    tied = fxtie.transform(net, Rule("*", "0", transform, None))
    with fxtie.derive_once(tied):
        assert not torch.equal(tied[1].weight, tied[2].weight)


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
