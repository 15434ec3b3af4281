"""What the page of a diff says."""

import torch
from html_pages import Elements, small, written
from torch import nn

import fxtie
from fxtie.looking.diff_page import diff_page


def test_a_diff_shows_both_sides(tmp_path):
    net, rules = small()
    diff = fxtie.diff(net, fxtie.transform(net, rules), torch.randn(2, 4))
    elements = Elements(written(diff, tmp_path))
    boxes = [attrs["class"].split()[-1] for tag, attrs in elements.found if tag == "g"]
    assert boxes.count("removed") == 2
    assert boxes.count("derived") == 1  # the square; sharing as it is needs no node
    assert "(2, 4)" in " ".join(elements.texts)
    captions = [text for text in elements.texts if text in ("before", "after")]
    assert captions == ["before", "after"] * 2
    assert diff.summary() in elements.texts


def test_a_page_says_what_its_colours_mean(tmp_path):
    net, rules = small()
    diff = fxtie.diff(net, fxtie.transform(net, rules))
    elements = Elements(written(diff, tmp_path))
    classes = [attrs.get("class", "") for _, attrs in elements.found]
    kinds = {c.removeprefix("box").strip() for c in classes if c.startswith("box")}
    explained = {c.removeprefix("swatch").strip() for c in classes if c.startswith("swatch")}
    assert kinds <= explained


def test_pages_show_no_internals(tmp_path):
    net = nn.Sequential(*(nn.Linear(4, 4) for _ in range(4)))
    tied = fxtie.transform(net, fxtie.Rule("re:[123]", "0", weight=torch.square))
    assert "cast_once" in tied.code, "or this shows nothing"
    diff = fxtie.diff(net, tied)
    for text in (written(diff, tmp_path), str(diff), diff.code()):
        assert "cast_once" not in text and "square" in text


def test_nothing_to_draw():
    net, _ = small()
    assert "no difference" in diff_page(fxtie.diff(net, net)).html()
