"""Tables that fit."""

import pytest
import torch
from torch import nn

import fxtie
from fxtie.looking.tables import Table


def plan():
    with torch.device("meta"):
        net = nn.Sequential(*(nn.Sequential(nn.Linear(9, 9), nn.Linear(9, 9)) for _ in range(12)))
    rules = [fxtie.Rule(f"re:([1-9]|10|11)[.]{i}", f"0.{i}", torch.square) for i in (0, 1)]
    return fxtie.plan(net, rules)


@pytest.fixture
def terminal(monkeypatch):
    monkeypatch.delenv("COLUMNS", raising=False)
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    return lambda columns: monkeypatch.setenv("COLUMNS", str(columns))


@pytest.mark.parametrize("columns", [60, 80])
def test_tables_fit_the_terminal_and_lose_nothing(terminal, columns):
    whole = str(plan())
    assert max(map(len, whole.splitlines())) > 80
    terminal(columns)
    narrow = str(plan())
    assert max(map(len, narrow.splitlines())) <= columns
    letters = [sorted(text.replace(" ", "").replace("-", "")) for text in (whole, narrow)]
    assert [c for c in letters[0] if c not in "\n"] == [c for c in letters[1] if c not in "\n"]


def test_a_table_that_fits_is_as_it_is(terminal):
    whole = str(plan())
    terminal(400)
    assert str(plan()) == whole


def test_a_file_is_no_terminal(monkeypatch):
    monkeypatch.setenv("COLUMNS", "60")
    assert max(map(len, str(plan()).splitlines())) > 80


def test_html_is_escaped_and_aligned():
    html = Table(("name", "n"), [("heading <b>",), ("a & b\nc", "1")], numbers=("n",)).html()
    assert '<th colspan="2" align="left">heading &lt;b&gt;</th>' in html
    assert '<td align="left">a &amp; b<br>c</td><td align="right">1</td>' in html


def test_what_prints_a_table_is_one_in_a_notebook():
    net = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4))
    tied = fxtie.transform(net, fxtie.Rule("2", "0"))
    fit = fxtie.fit(net, fxtie.Rule("2", "0"))
    for thing in (fit, fxtie.verify(net, tied, torch.randn(2, 4)), fxtie.suggest(net)):
        assert "<table>" in thing._repr_html_() and "</table>" in thing._repr_html_()


def test_reprs_are_one_line():
    net = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4))
    rule = fxtie.Rule("2", "0")
    tied = fxtie.transform(net, rule)
    half = "parameters 40 -> 20 (50.0%)"
    found = [
        (fxtie.plan(net, rule), f"<Plan: 2 ties, {half}>"),
        (fxtie.report(tied), f"<Report: {half}, 2 ties, 1 region, 0 kept>"),
        (fxtie.diff(net, tied), f"<GraphDiff: 1 layer changed (nodes: -1 +3), {half}>"),
        (fxtie.suggest(net), f"<Suggestions: 1 rule together: {half}>"),
        (fxtie.suggest(net)[0], "<Suggestion: repeated, 2, saves 20>"),
        (fxtie.fit(net, rule), "<Fit: 2 targets, largest error "),
        (fxtie.verify(net, tied, torch.randn(2, 4)), "<Verification: 6 calls compared, largest "),
        (fxtie.TiePass(rule), "TiePass([Rule('2', '0')])"),
        (fxtie.Bank(2, (4, 4)), "Bank(2, (4, 4))"),
        (fxtie.Tensors(A=(2, 3)), "Tensors(A=(2, 3))"),
    ]
    for thing, text in found:
        assert repr(thing).startswith(text) and "\n" not in repr(thing)
