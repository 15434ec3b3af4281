"""Where clicks lead."""

import re

import pytest
from torch import nn

import fxtie
from fxtie import Rule
from fxtie.looking.picturing import svg, views


def rows(n):
    """`n` rows of eight blocks of two layers."""

    def block(width):
        return nn.ModuleDict({"up": nn.Linear(width, 1), "down": nn.Linear(width, 2)})

    return nn.ModuleDict(
        {f"row{'abcdef'[i]}": nn.Sequential(*map(block, [i + 1] * 8)) for i in range(n)}
    )


def found(n):
    """Of each view, how many layers it has and where clicks lead."""
    scene = fxtie.picture(fxtie.plan(rows(n), Rule("rowa.1.up", "rowa.0.up"))).scene
    drawn = views.tie_views(scene)
    return [
        (one.count('class="layer"'), {*map(int, re.findall(r'data-view="(\d+)"', one))})
        for one in drawn
    ]


def test_each_row_unfolds_by_itself():
    """The first has blocks 0 and 1 beside the six that are alike."""
    assert found(2) == [(8, {1, 2}), (18, {3, 0}), (22, {0, 3}), (32, {2, 1})]


def test_tips_say_what_a_click_does():
    scene = fxtie.picture(fxtie.plan(rows(2), Rule("rowa.1.up", "rowa.0.up"))).scene
    folded, one, *_ = views.tie_views(scene)
    assert "rowb.0…7\nclick to unfold" in folded and "click to fold" not in folded
    assert "click to fold" in one and "click to unfold" in one
    assert (
        "click"
        not in fxtie.picture(fxtie.plan(rows(2), Rule("rowa.1.up", "rowa.0.up")))._repr_svg_()
    )


def test_of_many_views_the_last_has_all_unfolded():
    every = found(6)
    layers, leads = zip(*every, strict=True)
    assert len(every) == 13 and layers[-1] == 96 == max(layers) and leads[-1] == {0}
    assert leads[0] == {1, 2, 3, 4, 5, 6} and set().union(*leads) == {*range(13)}
    assert all(12 in some for some in leads[7:-1]), "what no view shows is shown by the last"


@pytest.mark.parametrize("most", [30, 18, 7])
def test_a_page_is_not_too_long(most, monkeypatch):
    monkeypatch.setattr(views, "MOST_COLUMNS", most)
    monkeypatch.setattr(svg, "MOST_COLUMNS", most)
    monkeypatch.setattr(svg, "_MOST_UNFOLDED", 7)
    layers, leads = zip(*found(2), strict=True)
    assert layers == {30: (8, 18), 18: (8, 18), 7: (8,)}[most]
    assert leads[0] <= {*range(len(layers))}
