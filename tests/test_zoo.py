"""The zoo: small models of transformers, and how results are kept and shown."""

import json
import sys

import pytest
import zoo
from zoo_models import NotTried
from zoo_transformers import SMALL, make, names, small


@pytest.mark.parametrize("kind", ["mixtral", "t5", "vit"])
def test_a_small_model_is_tied_and_compared(kind):
    row = zoo.measure(f"transformers/{kind}")
    assert row["ok"], row
    assert row["all_ties"] > row["pair_ties"] == 1
    assert max(row["all_parameters"]) < 10**6


def test_the_models_are_those_of_automodel():
    assert len(names()) == len(set(names())) > 200
    assert {f"transformers/{kind}" for kind in ("bert", "llama", "vit", "whisper")} <= {*names()}


def test_numbers_of_a_configuration_are_made_small():
    config = {
        "hidden_size": 4096,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "depths": [3, 3, 27, 1],
        "image_token_id": 151655,
        "use_cache": True,
        "rope_theta": 10000,
        "text_config": {"model_type": "llama", "vocab_size": 32000, "hidden_act": "silu"},
    }
    assert small(config, SMALL) == {
        "hidden_size": 64,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "depths": [2, 2, 2, 1],
        "image_token_id": 151655 % 128,
        "use_cache": False,
        "text_config": {"model_type": "llama", "vocab_size": 128},
    }


def test_what_has_no_small_form_is_not_tried():
    with pytest.raises(NotTried, match="backbone"):
        make("transformers/detr")
    assert "backbone" in zoo.measure("transformers/detr")["not_tried"]


def run(monkeypatch, *arguments):
    """What the command exits with."""
    monkeypatch.setattr(sys, "argv", ["zoo.py", *map(str, arguments)])
    return zoo.main()


def test_results_are_kept_and_shown(monkeypatch, tmp_path, capsys):
    rows = {
        "transformers/bert": zoo.measure("transformers/bert"),
        "transformers/beit": {"model": "transformers/beit", "not_tried": "too | large"},
    }
    measured = []

    def measure_apart(name, timeout):
        measured.append(name)
        return rows[name]

    monkeypatch.setattr(zoo, "measure_apart", measure_apart)
    arguments = ("--transformers", "--only", "/be(rt|it)$", "--out", tmp_path / "rows.jsonl")
    assert run(monkeypatch, *arguments, "--jobs", "0", "--docs", tmp_path / "zoo.md") == 1
    assert "2 more have not been run yet." in (tmp_path / "zoo.md").read_text() and not measured
    assert run(monkeypatch, *arguments) == 0
    assert run(monkeypatch, *arguments, "--docs", tmp_path / "zoo.md") == 0
    assert sorted(measured) == sorted(rows)  # once each
    assert len((tmp_path / "rows.jsonl").read_text().splitlines()) == 2
    page = (tmp_path / "zoo.md").read_text()
    assert "1 of 1 models tied and equal to the oracle." in page and "not been run" not in page
    assert page.index("## Not tried") < page.index("transformers/beit")
    assert "`too / large`" in page  # a cell of a table
    assert "1 were not tried." in capsys.readouterr().out


def test_a_model_that_differs_is_told(monkeypatch, tmp_path, capsys):
    wrong = {"model": "transformers/bert", "ok": False, "error": "exit code -11"}
    (tmp_path / "rows.jsonl").write_text(json.dumps(wrong) + "\n")
    arguments = ("--transformers", "--only", "/bert$", "--out", tmp_path / "rows.jsonl")
    assert run(monkeypatch, *arguments) == 1
    assert "exit code -11" in capsys.readouterr().out


def test_a_model_that_fails_loses_one_row():
    assert "Unknown model" in zoo.measure_apart("torchvision/no such model", 300)["error"]
