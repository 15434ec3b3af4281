"""Automatic mixed precision: `torch.autocast` and `GradScaler`."""

import pytest
import torch
from compat.checks import Case, assert_close, assert_equals_oracle, oracle_function
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import fxtie
from fxtie import Rule

compat = pytest.mark.compat


@pytest.fixture(params=[torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
def autocast(request, device):
    """Contexts of autocast in each dtype."""
    return lambda: torch.autocast(device.type, request.param)


@compat("torch.amp", "autocast in bfloat16 and float16: outputs and gradients")
@pytest.mark.parametrize("train", [False, True], ids=["eval", "train"])
def test_autocast(case, autocast, train):
    assert_equals_oracle(case, train=train, context=autocast, tolerance=1e-5)


class Casts(TorchDispatchMode):
    """Counts what is cast down to a low precision, by shape."""

    def __init__(self):
        super().__init__()
        self.shapes = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        if function is torch.ops.aten._to_copy.default and result.dtype is torch.bfloat16:
            self.shapes.append(tuple(result.shape))
        return result


class Shared(nn.Module):
    """A weight that is used by two layers, and twice by one of them."""

    def __init__(self):
        super().__init__()
        self.source, self.first = nn.Linear(5, 7), nn.Linear(7, 5, bias=False)
        self.second = nn.Linear(7, 5, bias=False)

    def forward(self, x):
        x = torch.tanh(self.first(self.source(x)))
        x = torch.tanh(self.second(self.source(x)))
        return self.first(self.source(x))


class KeptShared(Shared):
    def forward(self, x):
        with torch.no_grad():
            scale = x.square().mean().rsqrt()
        return super().forward(x * scale)


def casts_of(make, device):
    """How often a derived weight that three calls read is cast in a forward."""
    rule = Rule("re:first|second", "source", weight=torch.t)
    tied = fxtie.transform(make().to(device), rule)
    x = torch.randn(4, 5, device=device)
    with torch.autocast(device.type, torch.bfloat16), Casts() as casts:
        tied(x)
    return casts.shapes.count((5, 7))


@compat("torch.amp", "a derived weight is cast once per forward, however many layers use it")
@pytest.mark.parametrize("make", [Shared, KeptShared])
@pytest.mark.parametrize("grad", [True, False])
def test_cast_once(device, make, grad):
    with torch.set_grad_enabled(grad):
        assert casts_of(make, device) == 1


@compat("torch.amp", "training with autocast and GradScaler, over a step that overflows")
def test_grad_scaler(net, tied, device, autocast):
    """As the oracle trains: the untied net as a function of tensors that are derived each time."""
    net.train(), tied.train()
    oracle = oracle_function(Case(net, tied))
    start = {name: p.detach().clone() for name, p in tied.named_parameters()}
    leaves = {name: p.clone().requires_grad_() for name, p in start.items()}
    batches = torch.randn(4, 4, 3, 8, 8, device=device)
    batches[1] = torch.inf
    target = torch.randn(4, 8, device=device)

    def train(call, parameters):
        optimizer = torch.optim.SGD(parameters, 0.1)
        scaler = torch.amp.GradScaler(device.type, init_scale=64.0)
        for batch in batches:
            optimizer.zero_grad()
            with autocast():
                loss = (call(batch).float() - target).square().mean()
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
        assert scaler.get_scale() == 32.0, "one step was left out"

    train(tied, tied.parameters())
    train(lambda batch: oracle(leaves, batch), leaves.values())
    moved = {name: p - start[name] for name, p in tied.named_parameters()}
    assert_close(moved, {name: leaf - start[name] for name, leaf in leaves.items()}, 1e-3)


@compat("torch.amp", "autocast inside of derive_once")
def test_derive_once(tied, x, device):
    with torch.no_grad(), torch.autocast(device.type, torch.bfloat16):
        expected = tied(x)
        with fxtie.derive_once(tied):
            assert torch.equal(tied(x), expected)
