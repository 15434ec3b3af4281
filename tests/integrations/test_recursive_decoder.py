"""examples/recursive_decoder.py, cut short; and what its page says of the figures on it."""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs/recursive_decoder.md"
ROW = re.compile(r"^\| (\w.*?) +\| +([\d,]+) \| +([\d.]+) \| +([\d.]+) \|$", re.MULTILINE)


@pytest.fixture
def example(monkeypatch):
    """Its module, with little to measure."""
    spec = importlib.util.spec_from_file_location("decoder", ROOT / "examples/recursive_decoder.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "HELD_OUT", module.HELD_OUT[:2])
    return module


def rows_of(text):
    """Parameters, perplexity and spread of each model in a table."""
    return {
        name: (int(size.replace(",", "")), float(mean), float(spread))
        for name, size, mean, spread in ROW.findall(text)
    }


def test_it_trains_saves_and_writes_its_page_and_goes_on_where_it_was_cut_off(
    example, tmp_path, monkeypatch, capsys
):
    shutil.copy(PAGE, tmp_path)
    out = tmp_path / "results.json"

    def run(seeds):
        command = f"decoder --seeds {seeds} --steps 1 --out {out} --docs {tmp_path}"
        monkeypatch.setattr(sys, "argv", command.split())
        example.main()

    run(seeds=1)
    (first,) = json.loads(out.read_text()).values()
    # The second seed takes as long: what it would train is made up, but not that it is another.
    assert not torch.equal(example.llama(0).lm_head.weight, example.llama(1).lm_head.weight)
    made_up = {name: (size, perplexity + 1) for name, (size, perplexity) in first.items()}
    monkeypatch.setattr(example, "compare", lambda steps, seed: {1: made_up}[seed])
    run(seeds=2)
    written = (tmp_path / PAGE.name).read_text(encoding="utf-8")
    above, below = written.split("<!-- written by the example -->")
    assert PAGE.read_text(encoding="utf-8").startswith(above)
    assert below.strip() in capsys.readouterr().out
    assert "<svg" in (tmp_path / "recursive_decoder.svg").read_text(encoding="utf-8")

    rows = rows_of(below)
    assert rows.keys() == rows_of(PAGE.read_text(encoding="utf-8")).keys()
    relaxed, small = rows["relaxed"][0], rows["small, from scratch"][0]
    assert rows["recursive"][0] < relaxed <= small < 1.01 * relaxed < rows["untied"][0]
    assert all(spread > 0 for _, _, spread in rows.values())

    monkeypatch.setattr(example, "compare", None)  # nothing is left to train
    run(seeds=2)
    assert (tmp_path / PAGE.name).read_text(encoding="utf-8") == written


def test_the_page_says_what_its_table_says():
    """Those that are better by more than the seeds differ; and the order of the best on average."""
    rows = rows_of(PAGE.read_text(encoding="utf-8"))
    clearly_better = [
        ("relaxed", "small, half the steps"),
        ("recursive", "small, half the steps"),
        ("small, from scratch", "relaxed"),
        ("relaxed", "recursive"),
    ]
    for one, other in clearly_better:
        (_, better, spread), (_, worse, other_spread) = rows[one], rows[other]
        assert better + max(spread, other_spread) < worse, (one, other)
    means = {name: mean for name, (_, mean, _) in rows.items()}
    order = ("untied", "small, from scratch", "relaxed, from scratch", "relaxed")
    assert sorted(means, key=means.get)[:5] == [*order, "relaxed, fit to the mean"]
