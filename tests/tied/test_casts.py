"""Casts of derived tensors under autocast."""

import copy

import pytest
import torch
from oracle import assert_tied_equals_oracle
from torch import fx, nn
from torch.utils._python_dispatch import TorchDispatchMode

import fxtie
from fxtie import Rule
from fxtie.tied.casts import _FUNCTIONS, cast_once


class Casts(TorchDispatchMode):
    """Counts the casts of matrices."""

    count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        is_cast = function is torch.ops.aten._to_copy.default
        self.count += is_cast and args[0].ndim == 2 and args[0].dtype is torch.float32
        return function(*args, **(kwargs or {}))


class Net(nn.Module):
    """One derived weight in four products, in a norm, and in a module of the user's."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(6, 6)
        self.others = nn.ModuleList(nn.Linear(6, 6) for _ in range(3))
        self.norm = nn.LayerNorm((6, 6), bias=False)

    def forward(self, x):
        for layer in self.others:
            x = torch.tanh(layer(x))
        x = self.others[0].weight @ torch.tanh(x)
        return self.norm(x)


RULES = [
    Rule("others.*", "fc", weight=torch.sin),
    Rule("norm", "fc", weight=torch.sin, bias=None),
]


def low_precision(device):
    return torch.autocast(device.type, torch.bfloat16)


def test_cast_once_however_often_used(device):
    net = Net().to(device)
    tied = fxtie.transform(net, RULES)
    x = torch.randn(6, 6, device=device, dtype=torch.bfloat16)
    with low_precision(device), torch.no_grad(), Casts() as casts:
        tied(x)
    assert casts.count == 1
    (layer_norm,) = (n for n in tied.graph.nodes if n.target is nn.functional.layer_norm)
    assert layer_norm.args[2].meta["derived"], "norms get the full precision"


@pytest.mark.parametrize("train", [False, True])
def test_numbers_under_autocast(device, train):
    net = Net().to(device)
    tied = fxtie.transform(net, RULES)
    x = torch.randn(6, 6, device=device)
    assert_tied_equals_oracle(net, tied, fxtie.report(tied).plan.ties, (x,), train=train)
    values = {
        tie.target: torch.sin(net.fc.weight) if tie.target.endswith("weight") else net.fc.bias
        for tie in fxtie.report(tied).plan.ties
    }
    for module in (net, tied):
        module.train(train)
    with low_precision(device):
        expected = torch.func.functional_call(net, values, (x,))
        found = tied(x)
    assert torch.equal(found, expected)
    weights = torch.randn_like(found)
    gradients = [
        torch.autograd.grad((y * weights).sum(), (net.fc.weight, net.fc.bias))
        for y in (found, expected)
    ]
    for a, b in zip(*gradients, strict=True):
        # Gradients of the uses add up in bfloat16, which has 8 bits.
        assert ((a - b).norm() / b.norm()) < 2**-6


@pytest.mark.parametrize("dtype", [torch.float64, torch.int64, torch.bfloat16])
def test_what_autocast_leaves_alone(dtype):
    x = torch.ones(3, dtype=dtype)
    assert cast_once(x) is x
    with torch.autocast("cpu", torch.bfloat16):
        assert cast_once(x) is x
    meta = torch.ones(3, device="meta")
    with torch.autocast("cpu", torch.bfloat16):
        assert cast_once(meta) is meta


def test_a_second_trace_records_the_cast():
    tied = fxtie.transform(Net(), RULES)
    again = fx.symbolic_trace(tied)
    assert len(again.graph.find_nodes(op="call_function", target=cast_once)) == 1
    x = torch.randn(6, 6)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(again(x), tied(x))
        assert torch.equal(copy.deepcopy(tied)(x), tied(x))


def test_inside_derive_once():
    tied = fxtie.transform(Net(), RULES)
    x = torch.randn(6, 6)
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        expected = tied(x)
        with fxtie.derive_once(tied):
            assert torch.equal(tied(x), expected)


@pytest.mark.parametrize("function", sorted(_FUNCTIONS, key=str), ids=lambda f: f.__name__)
def test_these_run_in_low_precision(function):
    """That the casts change no value: autocast itself would make them."""
    shape = {"conv1d": 3, "conv2d": 4, "conv3d": 5}.get(function.__name__.replace("_transpose", ""))
    if shape:
        args = [torch.ones((2,) * shape)] * 2
    else:
        dims = 3 if "b" in function.__name__.replace("addmm", "") else 2
        args = [torch.ones((2,) * dims)] * (3 if "add" in function.__name__ else 2)
        if function is torch.addbmm:
            args[0] = torch.ones(2, 2)
    with torch.autocast("cpu", torch.bfloat16):
        assert function(*args).dtype is torch.bfloat16
