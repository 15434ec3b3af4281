"""`torch.func` on tied models: functions of their stored tensors."""

import copy

import pytest
import torch
from compat.checks import Case, assert_close, oracle_function, parameters_and_buffers
from torch import nn
from torch.autograd import gradcheck, gradgradcheck
from torch.func import (
    functional_call,
    grad,
    hessian,
    jacfwd,
    jacrev,
    jvp,
    stack_module_state,
    vmap,
)

import fxtie
from fxtie import Rule
from fxtie import transforms as T

compat = pytest.mark.compat


@pytest.fixture
def functions(case):
    """Stored values, and two functions of them and of inputs: the tied model's, the oracle's."""
    case.model.double(), case.tied.double()
    parameters, buffers = parameters_and_buffers(case.tied)

    def found(values, x):
        return functional_call(case.tied, (values, buffers), (x,))

    oracle = oracle_function(case)
    return parameters, found, lambda values, x: oracle(values | buffers, x), case.x.double()


def noise(values):
    return {name: torch.randn_like(value) for name, value in values.items()}


def loss(function):
    return lambda values, x: function(values, x).square().mean()


@compat("torch.func", "functional_call with other values of the sources")
def test_functional_call(functions):
    parameters, found, expected, x = functions
    other = {name: p + 0.1 * torch.randn_like(p) for name, p in parameters.items()}
    assert not torch.allclose(found(other, x), found(parameters, x), rtol=1e-3)
    torch.testing.assert_close(found(other, x), expected(other, x))


@compat("torch.func", "functional_call with a value for a derived tensor is refused")
def test_functional_call_of_a_derived_name(tied, x):
    with pytest.raises(fxtie.FxtieError, match=r"'conv_2.weight' is derived and cannot be set"):
        functional_call(tied, {"conv_2.weight": torch.zeros(8, 8, 3, 3, device=x.device)}, (x,))
    assert torch.equal(tied.conv_2.weight, tied.conv_1.weight.sin()), "nothing is left behind"


@compat("torch.func", "grad")
def test_grad(functions):
    parameters, found, expected, x = functions
    assert_close(grad(loss(found))(parameters, x), grad(loss(expected))(parameters, x), 1e-10)


@compat("torch.func", "jvp")
def test_jvp(functions):
    parameters, found, expected, x = functions
    tangents = noise(parameters)
    _, pushed = jvp(lambda p: found(p, x), (parameters,), (tangents,))
    _, reference = jvp(lambda p: expected(p, x), (parameters,), (tangents,))
    assert reference.abs().max() > 1e-3
    torch.testing.assert_close(pushed, reference)


@compat("torch.func", "jacrev, jacfwd and hessian with respect to a source")
def test_jacobians(tied, net, x):
    tied, net, x = tied.double(), net.double(), x.double()
    parameters, buffers = parameters_and_buffers(tied)
    oracle = oracle_function(Case(net, tied, x))

    def found(weight):
        return functional_call(tied, parameters | buffers | {"fc_1.weight": weight}, (x,))

    def expected(weight):
        return oracle(parameters | buffers | {"fc_1.weight": weight}, x)

    weight = parameters["fc_1.weight"]
    reference = jacrev(expected)(weight)
    assert reference.abs().max() > 1e-2
    torch.testing.assert_close(jacrev(found)(weight), reference)
    torch.testing.assert_close(jacfwd(found)(weight), reference)
    reference = hessian(lambda w: expected(w).square().sum())(weight)
    assert reference.abs().max() > 1e-2
    torch.testing.assert_close(hessian(lambda w: found(w).square().sum())(weight), reference)


@compat("torch.func", "Hessian-vector products: jvp of grad")
def test_hessian_vector_product(functions):
    parameters, found, expected, x = functions
    vector = noise(parameters)

    def product(function):
        derivative = grad(loss(function))
        return jvp(lambda p: derivative(p, x), (parameters,), (vector,))[1]

    assert_close(product(found), product(expected), 1e-9)


@compat("autograd", "second derivatives: grad of grad, as a gradient penalty takes them")
def test_grad_of_grad(functions):
    parameters, found, expected, x = functions

    def penalty_gradients(function):
        leaves = {name: p.clone().requires_grad_() for name, p in parameters.items()}
        first = torch.autograd.grad(
            loss(function)(leaves, x), leaves.values(), create_graph=True, materialize_grads=True
        )
        penalty = sum(g.square().sum() for g in first)
        second = torch.autograd.grad(penalty, leaves.values(), materialize_grads=True)
        return dict(zip(leaves, second, strict=True))

    assert_close(penalty_gradients(found), penalty_gradients(expected), 1e-9)


@compat("autograd", "gradcheck and gradgradcheck through a transform, forward mode too")
def test_gradgradcheck(device):
    net = nn.Sequential(nn.Conv2d(1, 2, 2), nn.Tanh(), nn.Conv2d(2, 1, 2)).to(device).double()
    rule = Rule("2", "0", weight=T.chain(torch.sin, T.transpose()), bias=None)
    tied = fxtie.transform(net, rule)
    x = torch.randn(1, 1, 3, 3, device=device, dtype=torch.float64)

    def function(weight):
        return functional_call(tied, {"0.weight": weight}, (x,))

    weight = torch.randn(2, 1, 2, 2, device=device, dtype=torch.float64, requires_grad=True)
    assert gradcheck(function, (weight,), check_forward_ad=True)
    assert gradgradcheck(function, (weight,))


@compat("torch.func", "vmap of grad: gradients for each sample")
def test_gradients_for_each_sample(functions):
    parameters, found, expected, x = functions

    def of_sample(function):
        return grad(lambda p, sample: function(p, sample[None]).square().mean())

    found = vmap(of_sample(found), (None, 0))(parameters, x)
    one_by_one = [of_sample(expected)(parameters, sample) for sample in x]
    stacked = {name: torch.stack([g[name] for g in one_by_one]) for name in parameters}
    assert_close(found, stacked, 1e-9)


# --- Ensembles --------------------------------------------------------------------------------


def copies(case):
    return [copy.deepcopy(case.tied) for _ in range(2)]


def tied_one_by_one(case):
    """By rules of their own each, with learnable transforms that start alike."""
    members = [fxtie.transform(copy.deepcopy(case.model), case.rules()) for _ in range(2)]
    for member in members:
        member.load_state_dict(case.tied.state_dict())
    return members


def vary(members):
    """Give each member values of its own."""
    with torch.no_grad():
        for member in members:
            for parameter in member.parameters():
                parameter += 0.1 * torch.randn_like(parameter)


@compat("torch.func", "vmap over an ensemble (stack_module_state): copies, or tied one by one")
@pytest.mark.parametrize("make", [copies, tied_one_by_one])
def test_ensemble(case, make):
    members = [member.double() for member in make(case)]
    vary(members)
    x = case.x.double()
    parameters, buffers = stack_module_state(members)
    base = copy.deepcopy(case.tied).to("meta")

    def call(values, others):
        return functional_call(base, (values, others), (x,))

    found = vmap(call)(parameters, buffers)
    expected = torch.stack([member(x) for member in members])
    assert not torch.allclose(expected[0], expected[1], rtol=1e-2)
    torch.testing.assert_close(found, expected)

    weights = torch.randn_like(found)
    (found * weights).mean().backward()
    (expected * weights).mean().backward()
    found = {name: value.grad for name, value in parameters.items()}
    stacked = {
        name: torch.stack([member.get_parameter(name).grad for member in members])
        for name in parameters
    }
    assert_close(found, stacked, 1e-9)


def test_models_tied_by_other_rules_are_no_ensemble(net):
    """They are of another class, as torch.fx.GraphModules are."""
    rules = [Rule("conv_2", "conv_1", weight=transform) for transform in (torch.sin, torch.cos)]
    with pytest.raises(RuntimeError, match="same class"):
        stack_module_state([fxtie.transform(net, rule) for rule in rules])


def edit(member):
    (node,) = (n for n in member.graph.nodes if n.target is torch.sin)
    node.target = torch.cos
    member.recompile()


@pytest.mark.parametrize("of", [0, 1], ids=["the original", "a copy"])
def test_deep_copies_part_when_one_is_changed(tied, x, of):
    """What is done to one of several alike is not done to the others."""
    pair = [tied, copy.deepcopy(tied)]
    changed, other = pair[of], pair[1 - of]
    assert type(changed) is type(other)
    before = other(x)
    with fxtie.derive_once(changed):
        assert torch.equal(changed(x), before)
        assert torch.equal(other(x), before)
        with torch.no_grad():
            other.conv_1.weight.add_(1)  # one in the block would refuse to be called
        assert not torch.allclose(other(x), before)
        with torch.no_grad():
            other.conv_1.weight.copy_(changed.conv_1.weight)
    assert torch.equal(other(x), before) and torch.equal(changed(x), before)
    edit(changed)
    assert torch.equal(other(x), before) and not torch.allclose(changed(x), before)
    assert type(changed) is not type(other)
