"""Architectures that people use, whole: every group of layers of equal shape is tied."""

import pytest
import torch
from grouping import tie_groups
from oracle import assert_tied_equals_oracle
from torch import fx
from vision import import_torchvision

import fxtie

MODELS = ["resnet18", "mobilenet_v3_small", "densenet121", "vit_b_16"]


@pytest.mark.parametrize("name", MODELS)
def test_every_group_of_equal_layers(name):
    size = {"image_size": 64} if name == "vit_b_16" else {}  # the others take any
    model = import_torchvision().models.get_model(name, weights=None, **size)
    ties = tie_groups(model)
    tied = fxtie.transform(model, ties)
    assert isinstance(tied, fx.GraphModule) and len(ties) > 30
    for train in (False, True):
        assert_tied_equals_oracle(model, tied, ties, (torch.randn(2, 3, 64, 64),), train=train)
