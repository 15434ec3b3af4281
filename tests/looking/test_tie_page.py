"""Pages of plans and reports."""

import torch
from html_pages import Elements, pages, written
from torch import nn

import fxtie


def test_a_plan_and_a_report_show_the_picture_and_folded_ties(tmp_path):
    net = nn.Sequential(*(nn.Linear(4, 4) for _ in range(9)))
    rules = fxtie.Rule("re:[1-8]", "0", weight=torch.neg, bias=None)
    for thing in pages(net, rules)[:2]:
        elements = Elements(written(thing, tmp_path))
        assert thing.summary() in elements.texts
        assert ("svg", "ties") in [(tag, attrs.get("class")) for tag, attrs in elements.found]
        assert {"180", "52", "neg ×8"} <= set(elements.texts)
        assert "1…8.weight" in elements.texts
        assert ("td", {"align": "right"}) in elements.found, "numbers are aligned to the right"
