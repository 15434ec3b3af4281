"""Derived tensors in a call of a forward that was kept: computed once."""

import copy
import gc
import threading

import pytest
import torch
from loops import Loop, inputs, tie
from oracle import assert_tied_equals_oracle
from torch import nn
from torch.func import functional_call, vmap
from torch.utils.checkpoint import checkpoint

import fxtie
from fxtie import Rule


def check(net, tied, plan, transform, count, x=None):
    """As the oracle in both modes, and with so many evaluations in a call."""
    x = inputs() if x is None else x
    tied(x)
    assert transform.count == count
    for train in (False, True):
        assert_tied_equals_oracle(net, tied, plan.ties, (x,), train=train)


def test_a_cell_in_a_loop():
    check(*tie(), count=1)


@pytest.mark.parametrize("grad", [True, False])
def test_layers_that_are_derived_alike(grad):
    """Once for each: a transform that is not known to give the same again may be random."""
    net, tied, plan, transform = tie(rules=lambda t: Rule("re:cell|out", "a", weight=t))
    check(net, tied, plan, transform, 2)
    transform.values.clear()
    with torch.set_grad_enabled(grad):
        tied(inputs())
    assert transform.count == 2


def test_without_gradients_one_value_is_alive_at_a_time():
    """To hold on to all would take the memory that tying has saved."""
    _, tied, _, transform = tie(rules=lambda t: Rule("cell", "a", weight=t))
    alive = []
    tied.out.register_forward_pre_hook(lambda *_: alive.extend(v() for v in transform.values))
    with torch.no_grad():
        tied(inputs())
    assert transform.count == 4 and alive == [None] * 4


def test_nothing_outlives_the_call():
    _, tied, _, transform = tie()
    tied(inputs()).sum().backward()
    gc.collect()
    assert [value() for value in transform.values] == [None]
    tied(inputs())
    assert transform.count == 2

    tied.out.register_forward_pre_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        tied(inputs())
    gc.collect()
    assert not any(value() is not None for value in transform.values)
    assert tied.cell.weight is not tied.cell.weight, "computed at each read, outside of calls"


def test_a_chain():
    def rules(transform):
        return [Rule("cell", "a", weight=transform), Rule("out", "cell", weight=torch.neg)]

    check(*tie(rules=rules), count=1)


class Steps(Loop):
    """The first step runs as it is, the others as `run` does."""

    def run(self, x):
        return self.step(x)

    def forward(self, x):
        h = self.step(self.a(x[0]))
        for part in x:
            h = self.run(h + part)
        return self.out(h)


class Checkpointed(Steps):
    def run(self, x):
        return checkpoint(self.step, x, use_reentrant=False)


class Reentrant(Steps):
    def run(self, x):
        return checkpoint(self.step, x, use_reentrant=True)


@pytest.mark.parametrize("cls", [Checkpointed, Reentrant])
def test_checkpoints(cls):
    """What is recomputed must find all that it saved: it derives for itself."""
    net, tied, plan, _ = tie(cls)
    _, plain, _, transform = tie(Steps)
    plain.load_state_dict(tied.state_dict())
    transform.values.clear()
    x = inputs().requires_grad_()
    y = x.detach().clone().requires_grad_()
    tied(x).square().sum().backward()
    plain(y).square().sum().backward()
    assert transform.count == 1
    torch.testing.assert_close(x.grad, y.grad)
    for name, p in tied.named_parameters():
        torch.testing.assert_close(p.grad, plain.get_parameter(name).grad)
    if cls is Checkpointed:  # the other goes twice through what the oracle has derived
        for train in (False, True):
            assert_tied_equals_oracle(net, tied, plan.ties, (x.detach(),), train=train)


def test_a_checkpoint_around_the_call():
    _, tied, _, _ = tie()
    x = inputs().requires_grad_()
    (found,) = torch.autograd.grad(checkpoint(tied, x, use_reentrant=False).square().sum(), x)
    (expected,) = torch.autograd.grad(tied(x).square().sum(), x)
    torch.testing.assert_close(found, expected)


class Contexts(Loop):
    """Reads without gradients first, under autocast next, and then as it is."""

    def forward(self, x):
        with torch.no_grad():
            scale = self.step(x[0]).abs().mean()
        with torch.autocast("cpu", torch.bfloat16):
            low = self.step(x[1])
        return self.step(x[2] * scale), low


def test_contexts_have_values_of_their_own():
    net = Contexts()
    tied = fxtie.transform(net, Rule("re:cell|out", "a", weight=lambda w: w @ w.T))
    x = inputs().float()
    found, low = tied(x)

    def step(part):
        return torch.tanh(nn.functional.linear(part, net.a.weight @ net.a.weight.T, net.a.bias))

    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(low, step(x[1])) and low.dtype is torch.bfloat16
    expected = step(x[2] * step(x[0]).abs().mean().detach())
    assert torch.equal(found, expected)
    (found,) = torch.autograd.grad(found.square().sum(), net.a.weight)
    (expected,) = torch.autograd.grad(expected.square().sum(), net.a.weight)
    torch.testing.assert_close(found, expected)


class Swapping(Loop):
    """Calls a part of itself with other values."""

    def forward(self, x):
        before = self.out(self.step(x[0]))
        other = {name: 2 * p for name, p in self.named_parameters()}
        again = functional_call(self, other, (x, True)) if x.shape[0] == 4 else self.step(x[0])
        return before + again + self.out(self.step(x[1]))

    def __call__(self, x, inner=False):
        return self.out(self.step(x[2])) if inner else super().__call__(x)


def test_other_values_in_a_call():
    _, tied, _, transform = tie(Swapping)
    x = inputs()

    def run(source, out, part):
        cell = nn.functional.linear(part, torch.sin(source.weight), source.bias)
        return nn.functional.linear(torch.tanh(cell), out.weight, out.bias)

    doubled = copy.deepcopy([tied.a, tied.out])
    with torch.no_grad():
        for p in (*doubled[0].parameters(), *doubled[1].parameters()):
            p *= 2
    expected = run(tied.a, tied.out, x[0]) + run(*doubled, x[2]) + run(tied.a, tied.out, x[1])
    torch.testing.assert_close(tied(x), expected)
    assert transform.count == 2


class Training(Loop):
    """Takes a step, and a backward, in its forward."""

    def forward(self, x):
        for part in x:
            self.step(part).square().sum().backward()
            with torch.no_grad():
                for p in self.parameters():
                    p -= 0.1 * p.grad if p.grad is not None else 0
        for part in x:  # no step in between, so that the values could be the same
            self.step(part).square().sum().backward()
        return self.out(x)


def test_a_backward_in_a_call():
    """It frees what a value was computed with: the next read computes it again."""
    _, tied, _, transform = tie(Training)
    expected = fxtie.materialize(tied)  # the same steps, by hand
    source = expected.a
    x = inputs()
    for part, train in zip([*x, *x], [True] * 4 + [False] * 4, strict=True):
        cell = nn.functional.linear(part, torch.sin(source.weight), source.bias)
        torch.tanh(cell).square().sum().backward()
        if train:
            with torch.no_grad():
                for p in source.parameters():
                    p -= 0.1 * p.grad
    transform.values.clear()
    tied(x)
    assert transform.count == 8
    torch.testing.assert_close(tied.a.weight, source.weight)
    torch.testing.assert_close(tied.a.weight.grad, source.weight.grad)


class Scaling(Loop):
    """Changes a source in place between two reads."""

    def forward(self, x):
        before = self.step(x[0])
        with torch.no_grad():
            self.a.weight.mul_(2)
        return before, self.step(x[0])


def test_a_change_in_a_call():
    _, tied, _, transform = tie(Scaling)
    weight, bias = copy.deepcopy((tied.a.weight, tied.a.bias))
    x = inputs()
    with torch.no_grad():  # in backward, autograd would tell of the change
        before, after = tied(x)
    transform.values.clear()

    def step(weight):
        return torch.tanh(nn.functional.linear(x[0], torch.sin(weight), bias))

    torch.testing.assert_close(before, step(weight))
    torch.testing.assert_close(after, step(2 * weight))
    tied(x)
    assert transform.count == 2


class TrainingLow(Loop):
    def forward(self, x):
        for part in x:
            with torch.autocast("cpu", torch.bfloat16):
                self.step(part).square().sum().backward()
            with torch.no_grad():
                self.a.weight -= 0.1 * self.a.weight.grad
        return self.out(x)


def test_casts_of_values_that_are_gone():
    net = TrainingLow()
    tied = fxtie.transform(net, Rule("cell", "a", weight=torch.sin))
    source = copy.deepcopy(net.a)
    x = inputs().float()
    tied(x)
    for part in x:
        with torch.autocast("cpu", torch.bfloat16):
            cell = nn.functional.linear(part, torch.sin(source.weight), source.bias)
            torch.tanh(cell).square().sum().backward()
        with torch.no_grad():
            source.weight -= 0.1 * source.weight.grad
    torch.testing.assert_close(tied.a.weight, source.weight)


class Mapped(Loop):
    def forward(self, x):
        first = vmap(lambda part: self.step(part))(x)
        second = vmap(lambda part: self.step(part))(first)
        return self.out(self.step(second[0]))


def test_vmap_in_a_call():
    net, tied, plan, _ = tie(Mapped)
    x = torch.randn(4, 3, 6, dtype=torch.float64)
    for train in (False, True):
        assert_tied_equals_oracle(net, tied, plan.ties, (x,), train=train)


def test_a_random_transform_is_drawn_once_a_call():
    def rules(_):
        return Rule("cell", "a", weight=nn.Dropout(0.5))

    net, tied, plan, _ = tie(rules=rules)
    assert_tied_equals_oracle(net, tied, plan.ties, (inputs(),), train=True)


def test_a_parametrized_source():
    """It is computed at each read, so that there is nothing to remember."""

    class Net(Loop):
        def __init__(self):
            super().__init__()
            nn.utils.parametrizations.weight_norm(self.a)

    def rules(transform):
        return [
            Rule("cell.weight", "a.weight", transform),
            Rule("out.weight", "a.weight", transform),
        ]

    net, tied, plan, transform = tie(Net, rules)
    assert_tied_equals_oracle(net, tied, plan.ties, (inputs(),), train=True)
    transform.values.clear()
    alive = []
    tied.out.register_forward_pre_hook(lambda *_: alive.extend(v() for v in transform.values))
    with torch.no_grad():
        tied(inputs())
    assert alive == [None] * 4


class Threads(Loop):
    """Runs a step in a thread of its own."""

    def forward(self, x):
        results = []
        thread = threading.Thread(target=lambda: results.append(self.step(x[0])))
        here = self.step(x[1])
        thread.start()
        thread.join()
        return self.out(here + results[0])


def test_threads():
    net, tied, plan, transform = tie(Threads)
    tied(inputs())
    assert transform.count == 2, "a thread derives for itself"
    assert "makes a Thread" in fxtie.report(tied).kept[0].reason
    assert_tied_equals_oracle(net, tied, plan.ties, (inputs(),), train=True)


# --- What changes between two reads -----------------------------------------------------------


class Block(nn.Module):
    """Two layers that are derived alike, in a forward that no graph holds."""

    def __init__(self):
        super().__init__()
        self.q, self.k = nn.Linear(6, 6), nn.Linear(6, 6)

    def forward(self, x):
        return x + torch.tanh(self.q(x)) * torch.sigmoid(self.k(x)) if x.sum() < 1e9 else x


class Blocks(nn.Module):
    def __init__(self):
        super().__init__()
        self.blocks, self.source = nn.ModuleList([Block(), Block()]), nn.Linear(6, 6)

    def forward(self, x):
        for block in self.blocks:
            x = checkpoint(block, x, use_reentrant=False) if x.sum() < 1e9 else x
        return self.source(x)


def test_checkpointed_blocks_in_a_kept_root():
    """In backward each is called by itself, and must derive as often as it did in the forward."""
    net = Blocks().double()
    plan = fxtie.plan(net, Rule("blocks.*.*", "source", weight=torch.sin))
    tied = fxtie.transform(net, plan)
    assert len(fxtie.report(tied).kept) == 3
    x = torch.randn(4, 6, dtype=torch.float64)
    for train in (False, True):
        assert_tied_equals_oracle(net, tied, plan.ties, (x,), train=train)


def test_a_backward_in_a_call_through_a_reentrant_checkpoint():
    class Net(Loop):
        def forward(self, x):
            y = self.step(x[0])
            z = checkpoint(self.step, y, use_reentrant=True)
            z.sum().backward()
            return z.detach()

    _, tied, _, _ = tie(Net)
    x = inputs().requires_grad_()
    tied(x)
    found = tied.a.weight.grad.clone()
    weight = torch.sin(source := tied.a.weight.detach().clone().requires_grad_())
    y = torch.tanh(nn.functional.linear(x[0], weight, tied.a.bias))
    torch.tanh(nn.functional.linear(y, weight, tied.a.bias)).sum().backward()
    torch.testing.assert_close(found, source.grad)


def test_a_frozen_model_holds_one_value_at_a_time():
    _, tied, _, transform = tie()
    tied.requires_grad_(False)
    alive = []
    tied.out.register_forward_pre_hook(lambda *_: alive.extend(v() for v in transform.values))
    tied(inputs())
    assert alive == [None] * 4


def test_an_edited_graph_runs():
    """Below a forward that was kept, and inside of derive_once, as by itself."""
    _, tied, _, _ = tie(rules=lambda _: Rule("re:cell|out", "a", weight=torch.sin))
    (node,) = (n for n in tied.cell.graph.nodes if n.target is torch.sin)
    node.target = torch.cos
    tied.cell.recompile()
    x = inputs()
    h = tied.a(x[0])
    for part in x:
        h = torch.tanh(tied.cell(h + part))
    weight = torch.cos(tied.a.weight)
    torch.testing.assert_close(tied.cell(x[0]), nn.functional.linear(x[0], weight, tied.a.bias))
    torch.testing.assert_close(tied(x), tied.out(h))
    with fxtie.derive_once(tied):
        torch.testing.assert_close(tied(x), tied.out(h))
