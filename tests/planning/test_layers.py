"""Layers as plain data."""

from decoder import Decoder
from torch import nn

import fxtie
from fxtie.planning.layers import layers_of


def test_each_parameter_counts_once():
    for model in (Decoder(3), Decoder(3, tied=True)):
        sizes = [n for layer in layers_of(model) for n in layer.sizes.values()]
        assert sum(sizes) == sum(p.numel() for p in model.parameters())


def test_what_the_model_shares_is_named():
    *_, head = layers_of(Decoder(1, tied=True))
    assert (head.name, head.shared, head.sizes) == ("head", {"weight": "embed.weight"}, {})


def test_a_module_with_two_names_is_one_layer():
    net = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
    net.append(net[0])
    (layer,) = layers_of(net)
    assert (layer.name, layer.type, layer.aliases) == ("0", "Linear", ("2",))
    assert layer.shapes == {"weight": (2, 2), "bias": (2,)}


def test_lazy_parameters_have_no_size():
    assert layers_of(nn.Sequential(nn.LazyLinear(2))) == ()


def test_a_plan_has_them():
    model = Decoder(2)
    assert fxtie.plan(model, fxtie.Rule("layers.1", "layers.0")).layers == layers_of(model)
