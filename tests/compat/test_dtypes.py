"""Precisions, memory formats and devices without data."""

import copy

import pytest
import torch
from compat.checks import Case, assert_equals_oracle
from compat.nets import CASES, Net, rules
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.func import functional_call

import fxtie
from fxtie import Rule

compat = pytest.mark.compat
DTYPES = [torch.float64, torch.float16, torch.bfloat16]


def tolerance(dtype):
    """Of gradients: where a tensor is derived at each use, they add up in another order."""
    return max(torch.finfo(dtype).eps, 1e-12)


@compat("dtypes", "double, half and bfloat16: `.to(dtype)` of a tied model")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("train", [False, True], ids=["eval", "train"])
def test_tied_then_converted(case, dtype, train):
    tied = case.tied.to(dtype)
    assert {p.dtype for p in tied.parameters()} == {dtype}
    case = Case(case.model.to(dtype), tied, case.x.to(dtype))
    assert_equals_oracle(case, train=train, tolerance=tolerance(dtype))


@compat("dtypes", "double, half and bfloat16: a model that is so already")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_converted_then_tied(net, x, dtype):
    net, x = net.to(dtype), x.to(dtype)
    plan = fxtie.plan(net, rules())
    tied = fxtie.transform(net, plan)
    assert tied.conv_2.weight.dtype == dtype
    assert_equals_oracle(Case(net, tied, x), train=False, tolerance=tolerance(dtype))


@compat("dtypes", "complex numbers: outputs and gradients")
@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128], ids=str)
@pytest.mark.parametrize("transform", [torch.sin, torch.adjoint], ids=["sin", "adjoint"])
def test_complex(device, dtype, transform):
    first, second = (nn.Linear(4, 4, device=device, dtype=dtype) for _ in range(2))
    net = nn.Sequential(first, nn.Tanh(), second)
    tied = fxtie.transform(net, Rule("2", "0", weight=transform))
    x = torch.randn(3, 4, device=device, dtype=dtype)
    weights = torch.randn(3, 4, device=device, dtype=dtype)
    found = tied(x)
    found_gradients = torch.autograd.grad((found * weights).real.sum(), tied.parameters())
    values = {"2.weight": transform(net[0].weight), "2.bias": net[0].bias}
    expected = functional_call(net, values, (x,), tie_weights=False)
    gradients = torch.autograd.grad((expected * weights).real.sum(), net[0].parameters())
    assert found.dtype == dtype and found.imag.abs().max() > 1e-2
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(found_gradients, gradients)


# --- Memory formats ---------------------------------------------------------------------------


@compat("channels_last", "outputs and gradients, and outputs in the same format")
@pytest.mark.parametrize("train", [False, True], ids=["eval", "train"])
def test_channels_last(case, train):
    tied = case.tied.to(memory_format=torch.channels_last)
    x = case.x.to(memory_format=torch.channels_last)
    model = copy.deepcopy(case.model).to(memory_format=torch.channels_last)
    assert_equals_oracle(Case(model, tied, x), train=train)


@compat("channels_last", "a transform element by element keeps the format")
def test_channels_last_of_derived(tied, x):
    def is_channels_last(tensor):
        return tensor.is_contiguous(memory_format=torch.channels_last)

    tied.to(memory_format=torch.channels_last)
    assert is_channels_last(tied.conv_1.weight) and is_channels_last(tied.conv_2.weight)
    assert not tied.conv_2.weight.is_contiguous()
    outputs = []
    with torch.no_grad():
        tied.gate.register_forward_pre_hook(lambda module, args: outputs.append(args[0]))
        tied(x.to(memory_format=torch.channels_last))
    assert is_channels_last(outputs[0]) and not outputs[0].is_contiguous()


# --- Devices without data ---------------------------------------------------------------------


@compat("meta device", "plan, transform and forward of a model without data")
@pytest.mark.parametrize("name", CASES)
def test_meta(name):
    make, rules, shape = CASES[name]
    with torch.device("meta"):
        model = make()
        tied = fxtie.transform(model, rules())
        x = torch.empty(shape)
    for train in (False, True):
        output = tied.train(train)(x)
        assert output.is_meta and output.shape == model.train(train)(x).shape
    assert all(tensor.is_meta for tensor in (*tied.parameters(), *tied.buffers()))
    real = fxtie.transform(make(), rules())
    assert tied.state_dict().keys() == real.state_dict().keys()
    assert str(fxtie.report(tied)) == str(fxtie.report(real))


@compat("meta device", '`.to("meta")` of a tied model, and back by to_empty and load_state_dict')
def test_to_meta_and_back(case):
    state = copy.deepcopy(case.tied.state_dict())
    expected = case.tied(case.x)
    tied = copy.deepcopy(case.tied).to("meta")
    assert tied(case.x.to("meta")).is_meta
    tied.to_empty(device=case.x.device).load_state_dict(state)
    assert torch.equal(tied(case.x), expected)


@compat("FakeTensorMode", "transform and forward inside of the mode; a real model in the mode")
def test_fake(tied, x):
    with FakeTensorMode():
        made = fxtie.transform(Net(), rules())
        assert made(torch.randn(2, 3, 8, 8)).shape == (2, 8)
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        output = tied(mode.from_tensor(x))
        assert isinstance(output, FakeTensor)
        assert output.shape == (2, 8) and output.device == x.device
