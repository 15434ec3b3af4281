"""`fxtie.freeze`: nothing is left to derive."""

import pytest
import torch
from programs import reloaded
from torch import nn
from torch.export import export

import fxtie
from fxtie import Rule
from fxtie import transforms as T
from fxtie.errors import FxtieError
from fxtie.pipelines.freeze import freeze

aten = torch.ops.aten


@pytest.fixture
def net(device):
    """A Sequential, whose forward calls its argument `input`."""
    return (
        nn.Sequential(
            nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 6), nn.BatchNorm1d(6), nn.Linear(6, 6)
        )
        .to(device)
        .eval()
    )


@pytest.fixture
def x(device):
    return torch.randn(3, 6, device=device)


def rules():
    """A chain, a transform of several outputs' parts, and a view."""
    return [
        Rule("2", "0", weight=torch.sin),
        Rule("4", "2", weight=T.transpose()),
        Rule("0", "0", weight=T.standardize(), bias=None),
    ]


def targets(program):
    return [node.target for node in program.graph.nodes if node.op == "call_function"]


# --- Models -----------------------------------------------------------------------------------


@pytest.mark.parametrize("compiled", [False, True])
def test_model(net, x, compiled):
    tied = fxtie.transform(net, rules()).train()
    tied(x)
    frozen = freeze(torch.compile(tied) if compiled else tied)
    assert type(frozen) is nn.Sequential
    assert frozen.state_dict().keys() == net.state_dict().keys()
    assert not any(module.training for module in frozen.modules())
    assert not any(parameter.requires_grad for parameter in frozen.parameters())
    assert torch.equal(frozen(x), tied.eval()(x))
    with torch.no_grad():
        before = frozen(x)
        tied[0].bias.add_(1)
    assert torch.equal(frozen(x), before), "it shares nothing with the tied model"


def test_model_stays(net, x):
    tied = fxtie.transform(net, rules()).train()
    freeze(tied)
    assert tied.training and all(parameter.requires_grad for parameter in tied.parameters())


def test_untied_model(net):
    with pytest.raises(FxtieError, match="not a tied model, but Sequential"):
        freeze(net)


# --- Programs ---------------------------------------------------------------------------------


# As of any tensor that is not contiguous; here that is what a transposed weight was.
@pytest.mark.filterwarnings("ignore:No complete tensor found in the group:UserWarning")
@pytest.mark.parametrize("decomposed", [False, True])
@pytest.mark.parametrize("how", ["of a tied model", "tied as a program"])
def test_program(net, x, how, decomposed):
    tied = fxtie.transform(net, rules())
    program = export(tied if how == "of a tied model" else net, (x,))
    if decomposed:
        program = program.run_decompositions()
    if how == "tied as a program":
        program = fxtie.transform(program, rules())
    before = program.graph_module.code
    frozen = freeze(program)
    frozen.validate()
    frozen.graph.lint()
    assert program.graph_module.code == before, "the program that was given is not changed"
    assert {aten.sin.default, aten.rsqrt.default} <= set(targets(program))
    transforms = {aten.sin.default, aten.rsqrt.default, aten.var_mean.correction}
    assert transforms.isdisjoint(targets(frozen))
    assert "0.weight" not in frozen.state_dict, "only what was derived from it was read"
    torch.testing.assert_close(frozen.module()(x), tied(x))
    if not decomposed:
        assert torch.equal(frozen.module()(x), tied(x))

    again = freeze(frozen)
    assert targets(again) == targets(frozen)
    assert torch.equal(again.module()(x), frozen.module()(x))
    assert torch.equal(reloaded(frozen).module()(x), frozen.module()(x))
    assert torch.equal(torch.export.unflatten(frozen)(x), frozen.module()(x))


def test_constants_are_values(net, x):
    """Also a view becomes a tensor of its own."""
    program = fxtie.transform(export(net, (x,)), Rule("4", "2", weight=T.transpose()))
    frozen = freeze(program)
    (constant,) = frozen.constants.values()
    assert torch.equal(constant, net[2].weight.T)
    assert not constant.requires_grad
    with torch.no_grad():
        before = frozen.module()(x)
        constant_before = constant.clone()
        net[2].weight.zero_()
    assert torch.equal(constant, constant_before)
    assert not torch.equal(frozen.module()(x), before), "stored tensors are the program's own"


class Parts(nn.Module):
    """What may be computed beforehand, and what may not."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(6))
        self.register_buffer("count", torch.zeros(()))

    def forward(self, x):
        self.count.add_(1)
        noise = torch.rand(6, device=x.device) * self.weight
        noisy_weight = torch.rand_like(self.weight)
        steps = torch.arange(6, device=x.device)
        return x * self.weight.exp() + noise + self.count.cos() + noisy_weight + steps.neg()


@pytest.mark.filterwarnings("ignore:.*Attribute .* is being mutated")
def test_what_stays(x, device):
    net = Parts().to(device)
    frozen = freeze(export(net, (x,)))
    left = targets(frozen)
    assert aten.exp.default not in left
    assert left.count(aten.rand.default) == left.count(aten.rand_like.default) == 1
    assert aten.cos.default in left, "the program updates the buffer"
    assert aten.arange.start_step in left or aten.arange.default in left, "not from a tensor"
    assert list(frozen.constants) == ["frozen.exp"]
    module = frozen.module()
    for count in (1, 2):
        torch.manual_seed(0)
        noise, noisy_weight = torch.rand(6, device=device), torch.rand(6, device=device)
        steps = torch.arange(6, device=device)
        expected = x * net.weight.exp() + noise * net.weight - steps + noisy_weight
        torch.manual_seed(0)
        expected = expected + torch.tensor(float(count), device=device).cos()
        torch.testing.assert_close(module(x), expected)


def test_output_that_is_derived(x, device):
    class Both(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc_1, self.fc_2 = nn.Linear(6, 6), nn.Linear(6, 6)

        def forward(self, x):
            return self.fc_2(self.fc_1(x)), self.fc_2.weight

    net = Both().to(device)
    tied = fxtie.transform(net, Rule("fc_2", "fc_1", weight=torch.square))
    frozen = freeze(export(tied, (x,)))
    assert aten.square.default not in targets(frozen) and aten.pow.Tensor_Scalar not in targets(
        frozen
    )
    for found, expected in zip(frozen.module()(x), tied(x), strict=True):
        assert torch.equal(found, expected)
