"""What the picture says: the numbers of parameters add up, however the model is tied."""

import math
from dataclasses import replace

import pytest
import torch
from decoder import Decoder
from torch import nn

import fxtie
from fxtie import Rule
from fxtie import transforms as T
from fxtie.looking.picturing.row import Row
from fxtie.looking.picturing.scene import SHARED
from fxtie.looking.picturing.svg import row_items


def linears(n):
    return nn.Sequential(*(nn.Linear(4, 4) for _ in range(n)))


def shared_module():
    net = linears(2)
    net.append(net[0])
    return net


CASES = {
    "weights and biases": (lambda: linears(3), [Rule("1", "0", torch.square)]),
    "biases stay": (lambda: linears(3), [Rule("1", "0", torch.square, bias=None)]),
    "a model that shares": (lambda: Decoder(3, tied=True), [Rule("layers.*", "layers.0")]),
    "both that are shared": (
        lambda: Decoder(2, tied=True),
        [Rule("head.weight", "layers.0.up.weight", T.tile()), Rule("embed", "head")],
    ),
    "a module under two names": (shared_module, [Rule("2", "1")]),
    "learned": (lambda: linears(3), [Rule("1", "0", T.LowRank(1))]),
    "learned, of its own": (lambda: linears(3), [Rule("*", "{0}", T.LowRank(1), bias=None)]),
    "a bank": (lambda: linears(3), [Rule("*.weight", fxtie.Bank(2, (4, 4)), T.Mix(2))]),
    "frozen tensors": (
        lambda: linears(3),
        [Rule("*.weight", fxtie.Tensors(A=(4, 4), frozen="A"), torch.neg)],
    ),
    "from nothing": (lambda: linears(2), [fxtie.Tie("1.bias", None, lambda: torch.zeros(4))]),
}


def stored_and_whole(scene):
    """Numbers of parameters: of what is solid in the unfolded picture, and of all squares."""
    squares = Row(row_items(scene, folded=False)).squares
    layers = [square.column.layers[0] for square in squares]
    learned = [sum(tie.learned for tie in square.column.ties) for square in squares]
    own = [sum(map(math.prod, layer.shapes.values())) for layer in layers]
    solid = (
        (square.stored + square.learned) * (n + more)
        for square, n, more in zip(squares, own, learned, strict=True)
    )
    return round(sum(solid)), sum(own)


@pytest.mark.parametrize("case", CASES)
def test_what_is_solid_is_what_the_tied_model_stores(case):
    make, rules = CASES[case]
    net = make()
    tied = fxtie.transform(net, rules)
    scene = fxtie.picture(tied).scene
    after = sum(p.numel() for p in tied.parameters())
    assert scene.parameters == (sum(p.numel() for p in net.parameters()), after)
    assert stored_and_whole(scene)[0] == after


def test_a_plan_a_report_and_a_tied_model_give_the_same():
    net, rules = linears(3), [Rule("2", "0", T.scale(2))]
    plan = fxtie.plan(net, rules)
    tied = fxtie.transform(net, plan)
    scene = fxtie.picture(plan).scene
    assert fxtie.picture(fxtie.report(tied)).scene == scene
    assert fxtie.picture(tied).scene == replace(scene, order="as called")
    kept = fxtie.transform(net, plan, trace=False)
    assert fxtie.picture(kept).scene == scene, "it has no graph"


def test_a_model_tied_twice_shows_all_ties():
    net = linears(4)
    tied = fxtie.transform(fxtie.transform(net, Rule("1", "0")), Rule("3", "2", torch.neg))
    scene = fxtie.picture(tied).scene
    assert [*scene.ties] == ["1", "3"]
    assert scene.parameters == (80, 40)


def test_what_the_model_shares_is_no_tie_of_ours():
    scene = fxtie.picture(fxtie.plan(Decoder(2, tied=True), Rule("layers.1", "layers.0"))).scene
    (tie,) = scene.ties["head"]
    assert (tie.transform, tie.sources, tie.saved, tie.formula) == (
        SHARED,
        ("embed.weight",),
        0,
        "embed.weight",
    )


def test_what_the_model_shares_and_is_tied_is_a_tie_of_ours():
    make, rules = CASES["both that are shared"]
    scene = fxtie.picture(fxtie.plan(make(), rules)).scene
    assert [tie.kind for tie in scene.ties["head"]] == ["tile"]


@pytest.mark.parametrize("thing", [linears(2), "plan", None])
def test_anything_else_has_no_picture(thing):
    with pytest.raises(fxtie.FxtieError, match="not a tied model"):
        fxtie.picture(thing)
