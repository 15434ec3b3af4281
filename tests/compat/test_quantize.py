"""torchao's weight-only quantisation of tied models."""

import copy

import pytest
import torch
from torch import nn

import fxtie
from fxtie import Rule
from fxtie.errors import FxtieError

torchao = pytest.importorskip("torchao", reason="torchao is an optional package")
pytest.importorskip(
    "torchao.quantization", reason="this torchao is for another torch", exc_type=ImportError
)
from torchao.quantization import Int8WeightOnlyConfig, quantize_  # noqa: E402

compat = pytest.mark.compat


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc_1, self.fc_2, self.fc_3 = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x):
        return self.fc_3(torch.tanh(self.fc_2(torch.tanh(self.fc_1(x)))))


@pytest.fixture
def net(device):
    return Net().to(device).eval()


@pytest.fixture
def x(device):
    return torch.randn(4, 8, device=device)


def quantized(model, *names):
    quantize_(
        model,
        Int8WeightOnlyConfig(),
        filter_fn=lambda module, name: name in names if names else isinstance(module, nn.Linear),
    )
    return model


def is_quantized(tensor):
    return isinstance(tensor, torchao.utils.TorchAOBaseTensor)


@compat("torchao", "int8 weight-only quantize_ of the materialised model", "torchao", "torch")
def test_materialized(net, x):
    tied = fxtie.transform(net, Rule("fc_2", "fc_1", weight=torch.sin))
    plain = quantized(fxtie.materialize(tied))
    assert all(is_quantized(layer.weight) for layer in (plain.fc_1, plain.fc_2, plain.fc_3))
    torch.testing.assert_close(plain(x), tied(x), rtol=0.05, atol=0.05)
    assert not torch.equal(plain(x), tied(x))


@compat("torchao", "int8 weight-only quantize_ of a tied model's other layers", "torchao", "torch")
def test_other_layers(net, x):
    """On a copy, since a tied model shares the layers that no rule touches with the untied one."""
    tied = fxtie.transform(net, Rule("fc_2", "fc_1", weight=torch.sin))
    found = quantized(copy.deepcopy(tied), "fc_3")
    assert is_quantized(found.fc_3.weight) and not is_quantized(net.fc_3.weight)
    assert torch.equal(found.fc_2.weight, tied.fc_2.weight)
    torch.testing.assert_close(found(x), tied(x), rtol=0.05, atol=0.05)
    assert not torch.equal(found(x), tied(x))


def test_layers_are_shared(net):
    tied = fxtie.transform(net, Rule("fc_2", "fc_1", weight=torch.sin))
    quantized(tied, "fc_3")
    assert is_quantized(net.fc_3.weight)


@compat("torchao", "quantize_ of a source, for `same`: its layer stays tied", "torchao", "torch")
def test_source_of_same(net, x):
    tied = copy.deepcopy(fxtie.transform(net, Rule("fc_2", "fc_1")))
    expected = tied(x)
    quantized(tied, "fc_1")
    assert tied.fc_2.weight is tied.fc_1.weight and is_quantized(tied.fc_2.weight)
    torch.testing.assert_close(tied(x), expected, rtol=0.05, atol=0.05)
    assert not torch.equal(tied(x), expected)


@compat("torchao", "quantize_ of a source, for a transform: torchao's error", "torchao", "torch")
def test_source_of_a_transform(net, x):
    tied = copy.deepcopy(fxtie.transform(net, Rule("fc_2", "fc_1", weight=torch.sin)))
    quantized(tied, "fc_1")
    for use in (lambda: tied(x), lambda: tied.fc_2.weight, lambda: fxtie.materialize(tied)):
        with pytest.raises(NotImplementedError, match=r"aten\.sin"):
            use()


@compat("torchao", "quantize_ of a derived layer: refused", "torchao", "torch")
def test_derived_layer(net):
    tied = copy.deepcopy(fxtie.transform(net, Rule("fc_2", "fc_1", weight=torch.sin)))
    with pytest.raises(
        FxtieError, match=r"'fc_2.weight' is derived and cannot be set.*materialize"
    ):
        quantized(tied, "fc_2")
