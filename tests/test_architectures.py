"""Architectures that people use, whole: every group of layers of equal shape is tied."""

import pytest
import torch
from grouping import tie_groups
from oracle import assert_tied_equals_oracle
from torch import fx
from vision import import_torchvision

import fxtie

models = import_torchvision().models


def vit():
    """ViT-B/16, a third as deep and a twelfth as wide."""
    size = {"image_size": 64, "patch_size": 16, "num_layers": 4, "num_heads": 4}
    return models.VisionTransformer(**size, hidden_dim=64, mlp_dim=256)


def densenet():
    """DenseNet-121, a third as deep."""
    return models.DenseNet(block_config=(3, 4, 6, 6))


MODELS = [models.resnet18, models.mobilenet_v3_small, densenet, vit]


@pytest.mark.parametrize("make", MODELS, ids=lambda make: make.__name__)
def test_every_group_of_equal_layers(make):
    model = make()
    ties = tie_groups(model)
    tied = fxtie.transform(model, ties)
    assert isinstance(tied, fx.GraphModule) and len(ties) > 30
    for train in (False, True):
        assert_tied_equals_oracle(model, tied, ties, (torch.randn(2, 3, 64, 64),), train=train)
