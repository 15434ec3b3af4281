"""Suggested rules: that they can be carried out, what they say, what they leave alone."""

import pytest
import timm
import torch
from blocks import Blocks
from hypothesis import given, settings
from hypothesis import strategies as st
from suggested import Language, check, convolutional, dense
from three_convs import Net as Convs
from torch import nn
from vision import import_torchvision

import fxtie
from fxtie.looking.suggest import suggest

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


# -- what is left alone ---------------------------------------------------------------------------


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
