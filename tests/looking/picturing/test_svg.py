"""The SVG itself."""

import xml.etree.ElementTree as ET

import torch
from decoder import Decoder
from drawn_ties import SVG, drawn, linears, texts, with_class
from torch import nn

import fxtie
from fxtie import Rule
from fxtie import transforms as T
from fxtie.looking.picturing.palette import style_sheet
from fxtie.looking.picturing.scene import scene_of
from fxtie.looking.picturing.svg import row_items, tie_svg
from fxtie.planning.layers import layers_of
from fxtie.planning.plan import Plan


def test_it_says_what_matters():
    root = drawn(Decoder(12), Rule("layers.*", "layers.0"))
    told = "66 ties, 15.1% of the parameters stored, layers as defined"
    assert texts(root)[:2] == ["1.1k → 164", told]
    assert {"stored", "derived", "same ×66"} <= set(texts(root))
    assert "layers.1…11 ×11" in texts(root)


def test_the_legend_stands_beside_what_is_told():
    root = drawn(nn.Sequential(nn.Linear(4, 1), nn.Linear(4, 1)), Rule("1", "0"))
    headline, subtitle, first = [*root.iter(f"{SVG}text")][:3]
    assert first.text == "stored"
    room = float(first.get("x")) - float(subtitle.get("x"))
    assert room > 6.5 * len(subtitle.text) > 6.5 * len("".join(headline.itertext()))


def test_blocks_in_blocks_in_blocks_tell_their_number():
    def block():
        return nn.ModuleDict({f"conv_{i}": nn.Linear(4, 4) for i in (1, 2)})

    def stage(width):
        return nn.Sequential(*(block() for _ in range(4)), nn.Linear(4, width))

    net = nn.ModuleDict({"stage_1": stage(3), "stage_2": stage(5), "head": linears(20)})
    found = texts(drawn(net, Rule("re:head.[1-3]", "head.0")))
    assert [text[-2:] for text in found].count("×2") == 2, found


def test_tips_give_shape_transform_and_saving():
    root = drawn(linears(3), Rule("1", "0", torch.square))
    tips = [e.text for e in root.iter(f"{SVG}title")]
    assert "1: Linear\nweight 4x4 = square(0.weight)\nbias 4 = 0.bias\nsaves 20 parameters" in tips
    assert "1.weight = square(0.weight)\nsaves 16 parameters" in tips


def test_what_is_derived_is_hollow():
    root = drawn(linears(3), Rule("1", "0", T.LowRank(1), bias=None))
    kinds = [[e.get("class") for e in g.iter(f"{SVG}rect")] for g in with_class(root, "layer")]
    assert kinds == [["stored"], ["derived t0", "stored", "t0 learned"], ["stored"]]


def test_few_columns_are_never_folded_and_very_many_always():
    rule = Rule("layers.*.up", "layers.0.up", bias=None)
    for blocks, folded, unfolded in ((8, 26, 26), (9, 8, 29), (666, 8, 2000), (667, 8, 8)):
        with torch.device("meta"):
            scene = fxtie.picture(fxtie.plan(Decoder(blocks), rule)).scene
        found = [
            sum(1 for item in row_items(scene, folded=fold) for _ in item.columns())
            for fold in (True, False)
        ]
        assert found == [folded, unfolded]


def test_names_of_a_model_stay_text():
    evil = '<script>alert("1")</script>&amp;\x0b'
    net = nn.Sequential()
    net.add_module(evil, nn.Linear(4, 4))
    net.add_module("b", nn.Linear(4, 4))
    root = drawn(net, fxtie.Tie("b.weight", f"{evil}.weight", torch.neg))
    assert not list(root.iter(f"{SVG}script")) and not list(root.iter("script"))
    shown = evil.replace("\x0b", "\ufffd")
    assert any(shown in (e.text or "") for e in root.iter(f"{SVG}title"))


def test_nothing_tied_and_nothing_there():
    for model, numbers in ((linears(1), "20 → 20"), (nn.ReLU(), "0 → 0")):
        size = sum(p.numel() for p in model.parameters())
        scene = scene_of(Plan((), parameters=size, layers=layers_of(model)))
        assert texts(ET.fromstring(tie_svg(scene, style_sheet("light"))))[0] == numbers
