"""Which layers could share weights: what goes together, and what is left alone."""

import torch
from blocks import Blocks
from suggested import Autoencoder, Language, convolutional, dense, rules
from three_convs import Net as Convs
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

import fxtie
from fxtie.looking.suggest import suggest


def test_autoencoders_are_mirrored():
    assert rules(dense())["transposed"] == [
        "Rule('decoder.2', 'encoder.0', weight=transpose(), bias=None)",
        "Rule('decoder.0', 'encoder.2', weight=transpose(), bias=None)",
    ]
    assert rules(convolutional())["transposed"] == [
        "Rule('decoder.0', 'encoder.1', bias=None)",
        "Rule('decoder.1', 'encoder.0', bias=None)",
    ]


def test_layers_of_one_shape_mirror_each_other_in_order():
    layers = [nn.Conv2d(4, 4, 3), nn.Conv2d(4, 4, 3), *(nn.ConvTranspose2d(4, 4, 3) for _ in "ab")]
    assert rules(Autoencoder(*layers))["transposed"] == [
        "Rule('decoder.0', 'encoder.1', bias=None)",
        "Rule('decoder.1', 'encoder.0', bias=None)",
    ]


def test_a_convolution_back_needs_a_turned_kernel():
    model = nn.Sequential(nn.Conv2d(3, 5, 3), nn.Conv2d(5, 3, 3))
    assert rules(model)["transposed"] == [
        "Rule('1', '0', weight=chain(transpose(), flip(-2, -1)), bias=None)"
    ]
    x = torch.randn(1, 5, 6, 6)
    (group,) = suggest(model)
    tied = fxtie.transform(model, group.rules)
    torch.testing.assert_close(
        nn.functional.conv2d(x, tied[1].weight, padding=2),
        nn.functional.conv_transpose2d(x, model[0].weight),
    )


def test_groups_can_only_be_shared_as_they_are():
    back = nn.Conv2d(4, 8, 3, groups=2), nn.Conv2d(8, 4, 3, groups=2)
    assert "transposed" not in rules(nn.Sequential(*back))
    mirrored = nn.Conv2d(4, 8, 3, groups=2), nn.ConvTranspose2d(8, 4, 3, groups=2)
    assert rules(nn.Sequential(*mirrored)) == {"transposed": ["Rule('1', '0', bias=None)"]}


def test_heads_are_tied_to_embeddings():
    assert rules(Language()) == {"transposed": ["Rule('head', 'embed', bias=None)"]}


def test_alike_layers_beside_each_other():
    assert rules(Convs()) == {"alike": ["Rule('conv_2', 'conv_1')"]}


def test_tiles_leave_biases_alone_where_there_are_any():
    sizes = (4, 8, 16)
    convs = [nn.Conv2d(n, n, 3, bias=n == 16) for n in sizes]
    model = nn.Sequential(*(nn.ModuleDict({"conv": conv}) for conv in convs))
    assert rules(model)["tiled"] == [
        "Rule('1.conv', '0.conv', weight=tile(), bias=None)",
        "Rule('2.conv', '1.conv', weight=tile(), bias=None)",
    ]


def test_a_tile_is_no_single_value_repeated():
    assert rules(nn.Sequential(nn.Linear(1, 1), nn.Linear(1, 64))) == {}


def test_what_cannot_be_derived():
    hooked, normed, shared, wide = Convs(), Convs(), Convs(), Convs()
    hooked.conv_2.register_forward_hook(lambda *_: None)
    weight_norm(normed.conv_2)
    shared.conv_2.weight = shared.conv_1.weight
    wide.conv_2 = wide.conv_2.double()
    for model in (
        hooked,
        normed,
        shared,
        wide,
        fxtie.transform(Convs(), fxtie.Rule("conv_2", "conv_1")),
    ):
        assert rules(model) == {}


def test_one_module_of_two_names_is_one_layer():
    model = Blocks()
    model.again = model.blocks[1]
    assert rules(model)["repeated"] == [
        "Rule('blocks.*.fc1', 'blocks.0.fc1')",
        "Rule('blocks.*.fc2', 'blocks.0.fc2')",
    ]


def test_lazy_modules_have_no_shape_yet():
    assert rules(nn.Sequential(nn.LazyLinear(4), nn.LazyLinear(4))) == {}
