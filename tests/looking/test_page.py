"""Pages: what stands in them, that nothing of a model gets out of its text, what they need."""

import torch
from html_pages import Elements, pages, small, written
from torch import nn

import fxtie
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
