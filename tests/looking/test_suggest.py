"""Suggested rules: that they can be carried out, what they say, what they leave alone."""

import json

import pytest
import timm
import torch
from blocks import Blocks
from hypothesis import given, settings
from hypothesis import strategies as st
from three_convs import Net as Convs
from torch import nn
from torch.nn.utils.parametrizations import weight_norm
from vision import import_torchvision

import fxtie
from fxtie.looking.suggest import Suggestions, suggest
from fxtie.rules.reader import read_rules


def check(model: nn.Module) -> Suggestions:
    """Each suggestion is a good set of rules by itself, and those chosen are one together."""
    found = suggest(model)
    for group in found:
        plan = fxtie.plan(model, group.rules)
        assert plan.parameters - plan.parameters_after == group.saved > 0
        assert {tie.target.rpartition(".")[0] for tie in plan.ties} == set(group.targets)
    if found:
        plan = fxtie.plan(model, found.rules)
        assert plan.parameters == found.parameters
        assert plan.parameters - plan.parameters_after == found.saved
    assert list(found) == sorted(found, key=lambda group: -group.saved)
    return found


def rules(model: nn.Module) -> dict[str, list[str]]:
    """The suggested rules as text, by kind."""
    by_kind: dict[str, list[str]] = {}
    for group in check(model):
        by_kind.setdefault(group.kind, []).extend(map(repr, group.rules))
    return by_kind


class Language(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.head = nn.Embedding(50, 8), nn.Linear(8, 50)

    def forward(self, tokens):
        return self.head(self.embed(tokens))


class Autoencoder(nn.Module):
    def __init__(self, *layers: nn.Module):
        super().__init__()
        half = len(layers) // 2
        self.encoder, self.decoder = nn.Sequential(*layers[:half]), nn.Sequential(*layers[half:])

    def forward(self, x):
        return self.decoder(self.encoder(x))


def dense():
    return Autoencoder(
        nn.Linear(12, 8), nn.Tanh(), nn.Linear(8, 2), nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 12)
    )


def convolutional():
    return Autoencoder(
        nn.Conv2d(1, 4, 3, 2),
        nn.Conv2d(4, 6, 3, 2),
        nn.ConvTranspose2d(6, 4, 3, 2),
        nn.ConvTranspose2d(4, 1, 3, 2),
    )


MODELS = {
    "blocks": (Blocks, lambda: torch.randn(2, 8)),
    "language model": (Language, lambda: torch.randint(50, (2, 5))),
    "autoencoder": (dense, lambda: torch.randn(3, 12)),
    "convolutional autoencoder": (convolutional, lambda: torch.randn(2, 1, 15, 15)),
    "convolutions": (Convs, lambda: torch.randn(2, 4, 8, 8)),
    "transformer": (
        lambda: nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, 0.0), 3),
        lambda: torch.randn(5, 2, 8),
    ),
    "resnet18": (
        lambda: import_torchvision().models.resnet18(weights=None),
        lambda: torch.randn(2, 3, 64, 64),
    ),
    "vit": (
        lambda: timm.create_model("vit_tiny_patch16_224", img_size=32, depth=3),
        lambda: torch.randn(2, 3, 32, 32),
    ),
}


@pytest.mark.parametrize("make, inputs", MODELS.values(), ids=MODELS)
def test_what_is_suggested_can_be_carried_out(make, inputs):
    model = make()
    found = check(model)
    fxtie.verify(model, fxtie.transform(model, found.rules), inputs())


# -- which layers, and how it is said -------------------------------------------------------------


def test_blocks_are_one_rule_each():
    assert rules(Blocks()) == {
        "repeated": [
            "Rule('blocks.*.fc1', 'blocks.0.fc1')",
            "Rule('blocks.*.fc2', 'blocks.0.fc2')",
        ],
    }


def test_a_thousand_layers_are_few_rules():
    assert len(check(Blocks(500)).rules) == 2


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


def test_tensors_of_other_names():
    model = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16), 3)
    expected = (
        "Rule('layers.*.self_attn', 'layers.0.self_attn', exclude=['layers.*.self_attn.out_proj'])"
    )
    assert expected in rules(model)["repeated"]


def test_layers_between_blocks_of_another_shape():
    resnet = import_torchvision().models.resnet50(weights=None)
    found = rules(resnet)
    assert "Rule('layer3.*.conv2', 'layer3.0.conv2')" in found["repeated"]
    assert (
        "Rule('layer3.*.conv1', 'layer3.1.conv1', exclude=['layer3.0.conv1'])" in found["repeated"]
    )
    assert "Rule('layer3.0.conv2', 'layer2.0.conv2', weight=tile())" in found["tiled"]


def test_where_no_pattern_says_it():
    vgg = import_torchvision().models.vgg11(weights=None)
    assert rules(vgg)["repeated"] == [
        "Rule('features.16', 'features.13')",
        "Rule('features.18', 'features.13')",
    ]


def test_tiles_are_a_last_resort():
    net = nn.Sequential(nn.Linear(8, 16), nn.Linear(16, 4), nn.Linear(4, 16), nn.Linear(16, 8))
    chosen = [group for group in check(net) if group.chosen]
    assert {group.kind for group in chosen} == {"transposed"}
    assert any(group.kind == "tiled" for group in suggest(net))


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


# -- what is left alone ---------------------------------------------------------------------------


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


def test_names_that_no_pattern_can_say():
    assert rules(nn.ModuleDict({"a*": nn.Linear(2, 2), "b": nn.Linear(2, 2)})) == {}


def test_lazy_modules_have_no_shape_yet():
    assert rules(nn.Sequential(nn.LazyLinear(4), nn.LazyLinear(4))) == {}


def test_nothing_to_suggest():
    found = suggest(nn.Linear(2, 2))
    assert (len(found), found.rules, found.saved) == (0, [], 0)
    assert str(found) == "no two layers go together: nothing to suggest"


def test_only_modules():
    with pytest.raises(fxtie.FxtieError, match=r"is a torch.nn.Module, not dict"):
        suggest({})


def test_compiled_models_are_looked_into():
    assert suggest(torch.compile(Blocks(), backend="eager")).rules


LAYERS = (
    lambda: nn.Linear(4, 8),
    lambda: nn.Linear(8, 4),
    lambda: nn.Linear(4, 4, bias=False),
    lambda: nn.Embedding(8, 4),
    lambda: nn.Conv1d(4, 8, 3),
    lambda: nn.Conv1d(8, 4, 3),
    lambda: nn.ConvTranspose1d(8, 4, 3),
    lambda: nn.BatchNorm1d(4),
    lambda: nn.MultiheadAttention(4, 2),
)


NAMES = ("0", "1", "2", "fc", "fc1", "block0", "block1", "encoder")


@settings(max_examples=100, deadline=None)
@given(
    st.recursive(
        st.sampled_from(LAYERS),
        lambda inner: st.dictionaries(st.sampled_from(NAMES), inner, min_size=1),
        max_leaves=16,
    )
)
def test_any_tree_of_layers(tree):
    def build(node):
        if isinstance(node, dict):
            return nn.ModuleDict({name: build(inner) for name, inner in node.items()})
        return node()

    with torch.device("meta"):
        check(build(tree))


# -- how alike ------------------------------------------------------------------------------------


def pair(own: torch.Tensor, source: torch.Tensor) -> nn.Sequential:
    model = nn.Sequential(*(nn.Linear(16, 16, bias=False, dtype=own.dtype) for _ in "ab"))
    with torch.no_grad():
        model[0].weight.copy_(source)
        model[1].weight.copy_(own)
    return model


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_scaled_copies(dtype, device):
    source = torch.randn(16, 16, dtype=dtype)
    (group,) = suggest(pair(2 * source, source).to(device))
    assert group.closeness.distance == pytest.approx(0.5, rel=1e-5)
    assert group.closeness.scale == pytest.approx(2.0, rel=1e-5)
    assert group.closeness.scaled_distance == pytest.approx(0.0, abs=1e-3)


def test_small_distances_are_not_rounded_away():
    source = torch.randn(16, 16)
    (group,) = suggest(pair(source * (1 + 1e-4), source))
    assert group.closeness.distance == pytest.approx(1e-4, rel=0.01)


def test_the_best_scale_is_the_best():
    model = nn.Sequential(nn.Linear(6, 4), nn.Linear(4, 6))
    own, derived = model[1].weight.detach(), model[0].weight.detach().T
    (group,) = suggest(model)
    left = [((s * derived - own).norm() / own.norm()).item() for s in (0.99, 1.0, 1.01)]
    near = group.closeness
    assert near.distance == pytest.approx(left[1], rel=1e-4)
    at_best = ((near.scale * derived - own).norm() / own.norm()).item()
    assert near.scaled_distance == pytest.approx(at_best, rel=1e-4)
    assert at_best <= min(left)


def test_no_values():
    meta = suggest(Blocks().to("meta"))
    assert all(group.closeness is None for group in meta)
    assert "distance" not in str(meta)
    (zero,) = suggest(pair(torch.zeros(16, 16), torch.zeros(16, 16)))
    assert str(zero.closeness.distance) == "nan"
    assert zero.to_dict()["closeness"] == {"distance": None, "scale": None, "scaled_distance": None}


# -- text and data --------------------------------------------------------------------------------


def test_plain_data():
    model = Blocks()
    data = json.loads(json.dumps(suggest(model).to_dict()))
    assert data["parameters"]["before"] == sum(p.numel() for p in model.parameters())
    first = data["suggestions"][0]
    assert (first["kind"], first["chosen"], first["block"]) == ("repeated", True, "blocks.*")
    (rule,), _ = read_rules({"rule": first["rules"]})
    assert repr(rule) == repr(suggest(model)[0].rules[0])


def test_suggestions_are_a_sequence():
    found = suggest(Blocks())
    assert found[0] is next(iter(found))
    assert len(found[:2]) == 2


def test_ties_that_are_there_already_are_told_and_not_doubled():
    assert suggest(Language()).known == ()
    net = nn.ModuleList([Language() for _ in range(5)])
    for part in net:
        part.head.weight = part.embed.weight
    found = suggest(net)
    known = [(f"{i}.head.weight", f"{i}.embed.weight") for i in range(5)]
    assert [(tie.target, *tie.sources) for tie in found.known] == known
    assert found.to_dict()["known"] == [[*pair] for pair in known]
    assert not any("head" in target or "embed" in target for one in found for target in one.targets)
    told = ", ".join(" = ".join(pair) for pair in known[:3])
    assert f"tied already: {told}, … 2 more" in str(found)
