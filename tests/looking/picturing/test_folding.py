"""Which blocks share their columns."""

import pytest
import torch
from decoder import Decoder
from torch import nn

import fxtie
from fxtie import Rule
from fxtie.looking.picturing.folding import Block, items_of


def row(model, *rules, folded=True):
    return items_of(fxtie.picture(fxtie.plan(model, rules)).scene, folded=folded)


def blocks(items):
    return [
        (item.names[0], item.names[-1], item.times) for item in items if isinstance(item, Block)
    ]


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("layers.0", [("layers.0", "layers.0", 1), ("layers.1", "layers.7", 7)]),
        ("layers.{0 - 1}", [("layers.0", "layers.0", 1), ("layers.1", "layers.7", 7)]),
        ("layers.{0 // 2 * 2}", [("layers.0", "layers.7", 4)]),
        ("layers.{0 % 2}", [("layers.0", "layers.1", 2), ("layers.2", "layers.7", 3)]),
    ],
)
def test_blocks_that_are_tied_alike_fold(source, expected):
    exclude = "layers.0" if "- 1" in source else None
    items = row(Decoder(8), Rule("layers.*", source, exclude=exclude))
    assert blocks(items) == expected


def test_a_unit_of_several_blocks_has_them_inside():
    items = row(Decoder(8), Rule("layers.*", "layers.{0 // 2 * 2}"))
    (unit,) = (item for item in items if isinstance(item, Block))
    names = [block.names for block in unit.items]
    assert names == [[f"layers.{i}" for i in (0, 2, 4, 6)], [f"layers.{i}" for i in (1, 3, 5, 7)]]
    up = [[layer.name for layer in column.layers] for column in unit.columns()][1]
    assert up == ["layers.0.up", "layers.2.up", "layers.4.up", "layers.6.up"]


def test_blocks_that_differ_do_not_fold():
    other_shape = Decoder(4)
    other_shape.layers[2].up = nn.Linear(4, 8, bias=False)
    other_type = Decoder(4)
    other_type.layers[2].norm = nn.GroupNorm(1, 4)
    for model in (other_shape, other_type):
        found = blocks(row(model, Rule("head.weight", "embed.weight")))
        assert found[-2:] == [("layers.2", "layers.2", 1), ("layers.3", "layers.3", 1)]
    rules = [Rule(f"layers.{i}.up", "layers.0.up", f) for i, f in ((2, torch.neg), (3, torch.abs))]
    found = blocks(row(Decoder(4), *rules))
    assert [times for *_, times in found] == [2, 1, 1]


def test_a_block_without_a_number_does_not_fold():
    def pair():
        return nn.ModuleDict({"up": nn.Linear(4, 4), "down": nn.Linear(4, 4)})

    model = nn.ModuleDict({"block0": pair(), "block1": pair(), "block": pair()})
    items = row(model, Rule("block1", "block0"), Rule("block", "block0"))
    assert blocks(items) == [("block0", "block0", 1), ("block1", "block1", 1)]


def test_each_layer_and_each_tie_is_in_one_column():
    model = Decoder(6)
    scene = fxtie.picture(fxtie.plan(model, Rule("layers.*", "layers.{0 // 3 * 3}"))).scene
    for folded in (True, False):
        columns = [c for item in items_of(scene, folded=folded) for c in item.columns()]
        layers = [layer for column in columns for layer in column.layers]
        assert sorted(layers, key=lambda layer: layer.name) == sorted(
            scene.layers, key=lambda layer: layer.name
        )
        ties = [tie for column in columns for tie in column.all_ties]
        assert len(ties) == sum(map(len, scene.ties.values())) == 24
    assert all(len(column.layers) == 1 for column in columns)


def test_blocks_inside_of_blocks_fold():
    class Experts(nn.Module):
        def __init__(self):
            super().__init__()
            self.gate = nn.Linear(4, 3)
            self.experts = nn.ModuleList(nn.Linear(4, 4) for _ in range(3))

    model = nn.Module()
    model.layers = nn.ModuleList(Experts() for _ in range(5))
    rule = Rule("layers.*.experts.*", "layers.{0}.experts.0", exclude="layers.*.experts.0")
    (outer,) = row(model, rule)
    assert (outer.times, [c.title for c in outer.columns()]) == (5, ["gate", "experts.0", "1"])
    inner = outer.items[-1]
    assert (inner.names, inner.times) == (["layers.0.experts.1", "layers.0.experts.2"], 2)
    assert len(next(inner.columns()).layers) == 10
