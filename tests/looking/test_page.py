"""Pages: what stands in them, that nothing of a model gets out of its text, what they need."""

from html.parser import HTMLParser

import pytest
import torch
from torch import nn

import fxtie
from fxtie.looking.diff_page import diff_page
from fxtie.words import cut

EVIL = [
    "<script>alert(1)</script>",
    "a&b",
    'quote"s',
    "back\\slash\\N",
    "</style>",
    "</title>",
    "{{ 7 * 7 }}",
    "größe-層",
]


def evil_net():
    net = nn.Module()
    net.first = nn.Linear(4, 4)
    for i, name in enumerate(EVIL):
        net.add_module(name.replace(".", "_") or str(i), nn.Linear(4, 4))

    def forward(self, x):
        for child in self.children():
            x = child(x)
        return x

    net.__class__ = type("Net", (nn.Module,), {"forward": forward})
    return net


def small():
    net = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4))
    rules = [fxtie.Rule("2", "0", weight=torch.square), fxtie.Rule("4", "0", bias=None)]
    return net, rules


class Elements(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.found, self.texts = [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.texts.append(data.strip())


def written(thing, tmp_path):
    path = tmp_path / "page.html"
    thing.html(path)
    return path.read_text(encoding="utf-8")


def pages(net, rules):
    tied = fxtie.transform(net, rules)
    return [fxtie.plan(net, rules), fxtie.report(tied), fxtie.diff(net, tied)]


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


def test_shapes_need_inputs_and_compute_nothing(tmp_path):
    net, rules = small()
    tied = fxtie.transform(net, rules)
    without, with_inputs = fxtie.diff(net, tied), fxtie.diff(net, tied, torch.randn(7, 4))
    assert "(7, 4)" not in written(without, tmp_path)
    assert "(7, 4)" in written(with_inputs, tmp_path)
    with pytest.raises(fxtie.FxtieError):
        fxtie.diff(net, tied, torch.randn(7, 5))


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


def test_a_page_says_what_its_colours_mean(tmp_path):
    net, rules = small()
    diff = fxtie.diff(net, fxtie.transform(net, rules))
    elements = Elements(written(diff, tmp_path))
    classes = [attrs.get("class", "") for _, attrs in elements.found]
    kinds = {c.removeprefix("box").strip() for c in classes if c.startswith("box")}
    explained = {c.removeprefix("swatch").strip() for c in classes if c.startswith("swatch")}
    assert kinds <= explained


def test_text_of_a_model_stays_text(tmp_path):
    net = evil_net()
    rules = [fxtie.Tie(f"{name}.weight", "first.weight", torch.neg) for name in net._modules][1:]
    for thing in pages(net, rules):
        html = written(thing, tmp_path)
        elements = Elements(html)
        assert [tag for tag, _ in elements.found].count("script") == 1
        assert [tag for tag, _ in elements.found].count("style") == 1
        assert "<script>alert(1)" not in html
        shown = " ".join(elements.texts)
        for name in EVIL:
            assert cut(name, 44)[:12] in shown, name


def test_a_page_asks_for_nothing(tmp_path):
    net, rules = small()
    for thing in pages(net, rules):
        html = written(thing, tmp_path)
        assert "default-src 'none'" in html
        assert "http://" not in html and "https://" not in html
        for tag, attrs in Elements(html).found:
            assert tag not in ("link", "img", "iframe", "object")
            assert "src" not in attrs
            assert not any(name.startswith("on") for name in attrs)
            assert attrs.get("href", "#").startswith("#")


def test_notebooks_get_a_frame():
    net, rules = small()
    for thing in (*pages(net, rules), fxtie.transform(net, rules)):
        found = thing._repr_html_()
        assert found.startswith("<iframe srcdoc=") and found.count("<") == 2
        (frame,) = (attrs for tag, attrs in Elements(found).found if tag == "iframe")
        assert {"60", "24"} <= set(Elements(frame["srcdoc"]).texts), "the numbers of parameters"


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
