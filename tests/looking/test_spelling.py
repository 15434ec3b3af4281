"""Layers by name, and the rule that one would write for them."""

from blocks import Blocks
from suggested import check, rules
from torch import nn
from vision import import_torchvision


def test_blocks_are_one_rule_each():
    assert rules(Blocks()) == {
        "repeated": [
            "Rule('blocks.*.fc1', 'blocks.0.fc1')",
            "Rule('blocks.*.fc2', 'blocks.0.fc2')",
        ],
    }


def test_a_thousand_layers_are_few_rules():
    assert len(check(Blocks(500)).rules) == 2


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


def test_names_that_no_pattern_can_say():
    assert rules(nn.ModuleDict({"a*": nn.Linear(2, 2), "b": nn.Linear(2, 2)})) == {}
