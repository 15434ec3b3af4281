"""Where squares, brackets and arcs stand."""

import itertools

import pytest
import torch
from decoder import Decoder
from torch import nn

import fxtie
from fxtie import Rule
from fxtie.looking.picturing.row import WIDTH, Row
from fxtie.looking.picturing.svg import row_items


def row(model, *rules, folded=True):
    return Row(row_items(fxtie.picture(fxtie.plan(model, rules)).scene, folded=folded))


def linears(n, size=4):
    return nn.Sequential(*(nn.Linear(size, size) for _ in range(n)))


@pytest.mark.parametrize("n", [5, 50, 500])
def test_squares_stand_apart_within_the_width(n):
    found = row(linears(n), Rule("*", "0"), folded=False)
    assert len(found.squares) == n
    ends = [(square.x, square.x + square.side) for square in found.squares]
    assert all(a[1] < b[0] for a, b in itertools.pairwise(ends))
    assert ends[0][0] >= 0 and ends[-1][1] - 1e-6 <= found.width <= 2 * WIDTH


def test_areas_are_numbers_of_parameters():
    net = nn.Sequential(nn.Linear(30, 20), nn.Linear(20, 20), nn.Linear(20, 5))
    squares = row(net, Rule("1.bias", "0.bias")).squares
    density = [
        square.side**2 / sum(p.numel() for p in layer.parameters())
        for square, layer in zip(squares, net, strict=True)
    ]
    assert density == pytest.approx([density[0]] * 3)


def test_shares_of_a_square():
    whole, partly, none = row(linears(3), Rule("1.weight", "0.weight"), Rule("2", "0")).squares
    assert (whole.stored, partly.stored, none.stored) == (1, 4 / 20, 0)


def test_arcs_lead_from_source_to_target_by_transform():
    rules = Rule("2", "0", torch.square), Rule("1.weight", "2.weight", torch.neg)
    found = [(arc.tail, arc.head, arc.kind) for arc in row(linears(3), *rules).arcs]
    assert sorted(found) == [(0, 2, "same"), (0, 2, "square"), (2, 1, "neg")]


def test_an_arc_goes_over_those_inside_of_it():
    arcs = row(linears(9), Rule("*", "0", bias=None)).arcs
    heights = {abs(arc.head - arc.tail): arc.height for arc in arcs}
    assert [*heights] == sorted(heights, reverse=True)
    assert [*heights.values()] == sorted(heights.values(), reverse=True)
    first, second = row(linears(2), Rule("1", "0", torch.square)).arcs
    assert (first.kind, second.kind) == ("square", "same"), "what saves more is above"
    assert first.height > second.height > 0


def test_ties_within_a_folded_block_are_loops():
    rule = Rule("layers.*.up", "layers.{0 - 1}.up", torch.neg, bias=None, exclude="layers.0.up")
    found = row(Decoder(12), rule)
    ((tail, head), loop) = sorted((arc.tail, arc.head) for arc in found.arcs)
    assert loop == (head, head) and tail < head
    assert [len(arc.ties) for arc in found.arcs] == [1, 10]


def test_arcs_from_what_is_no_layer():
    """Free tensors have a square, even without parameters; a buffer of another module has none."""
    net = nn.Sequential(*linears(2), nn.BatchNorm1d(4, affine=False))
    net.scale = nn.Parameter(torch.ones(1))
    frozen = fxtie.Tensors(A=(4, 4), frozen="A")
    rules = Rule("0.weight", frozen, torch.neg), fxtie.Tie("1.bias", "2.running_mean")
    found = row(net, *rules)
    assert [square.label for square in found.squares] == ["(root)", "ties.tensors", "0", "1"]
    assert [(arc.tail, arc.head) for arc in found.arcs] == [(1, 2)]


def test_squares_of_one_size_have_their_names_alike():
    net = nn.ModuleDict({"a": nn.Linear(9, 9), "a_long_name_for_a_layer": nn.Linear(9, 9)})
    net["b"] = nn.Linear(20, 20)
    found = row(net, Rule("a.bias", "a_long_name_for_a_layer.bias")).squares
    assert [square.is_label_across for square in found] == [False, False, True]


def test_names_need_room():
    for n, has_labels in ((5, True), (50, True), (500, False)):
        assert row(linears(n), Rule("1", "0"), folded=False).has_labels == has_labels
