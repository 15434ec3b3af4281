"""What print and notebooks show."""

from blocks import Blocks
from html_pages import Elements, pages, small
from torch import nn

import fxtie
from fxtie.looking.suggest import suggest
from fxtie.shown import Printed


def test_notebooks_get_a_frame():
    net, rules = small()
    for thing in (*pages(net, rules), fxtie.transform(net, rules)):
        found = thing._repr_html_()
        assert found.startswith("<iframe srcdoc=") and found.count("<") == 2
        (frame,) = (attrs for tag, attrs in Elements(found).found if tag == "iframe")
        assert {"60", "24"} <= set(Elements(frame["srcdoc"]).texts), "the numbers of parameters"


def test_notebooks_show_a_table():
    page = suggest(Blocks(4), "adjacent")._repr_html_()
    assert page.startswith('<table><thead><tr><th align="left">layers</th><th align="right">n</th>')
    assert '<td align="left">blocks.{0 // 2 * 2}</td>' in page
    assert page.count("<tr>") == 2 and len(page) < 900
    odd = suggest(nn.ModuleDict({"<b>": Blocks(3)}), "repeat")
    assert "<b>" not in odd._repr_html_() and "&lt;b&gt;" in odd._repr_html_()
    assert suggest(nn.Linear(2, 2))._repr_html_().startswith("<p>no two layers")


class Odd(Printed):
    def summary(self):
        return "odd"


def test_text_is_no_markup(monkeypatch):
    monkeypatch.setattr("fxtie.shown.parts", lambda shown: ["a <b>", "c"])
    assert Odd()._repr_html_() == "<p>a &lt;b&gt;</p><p>c</p>"
    assert repr(Odd()) == "<Odd: odd>"
