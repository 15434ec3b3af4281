"""What documents say: their code, the figures they take from one another, and their links."""

import doctest
import os
import pickle
import re
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pages
import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize

import fxtie
from fxtie import transforms
from fxtie.rules.files import tomllib
from fxtie.transforms import elementwise, registry

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").rglob("*.md")])
RECIPES = sorted((ROOT / "examples/recipes").glob("*.py"))
PROTOCOLS = {"ComparesLayers", "FitsTarget", "Transform"}
HELPERS = {"bert", "digits", "llama"}  # what recipes import


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_is_short_and_stands_on_its_page(path):
    """What it prints is compared with the page by the test of all pages' code."""
    code = path.read_text(encoding="utf-8")
    assert len(code.splitlines()) < 80
    if path.stem in HELPERS:
        return
    page = ROOT / f"docs/recipes/{path.stem}.md"
    text = page.read_text(encoding="utf-8")
    shown = pages.blocks(text)[0]
    if os.environ.get("FXTIE_RENEW"):
        page.write_text(text[: shown.start] + code + text[shown.end :], encoding="utf-8")
    assert pages.blocks(page.read_text(encoding="utf-8"))[0].code == code
    assert re.search(rf"!\[.+\]\({path.stem}\.svg\)", text)
    assert f"({path.stem}.md)" in (page.parent / "index.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_code_runs_as_pasted_and_prints_what_the_page_says(page, tmp_path, monkeypatch, capsys):
    if page.name == "distributed.md" and torch.__version__ < "2.10":
        pytest.skip("torch 2.9 can't cut a tied model into stages by itself")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(ROOT / "examples/recipes")
    ran = pages.run(page, tmp_path, capsys)
    assert ran == page.read_text(encoding="utf-8").count("```python")
    pages.run_commands(page)
    for drawn in tmp_path.glob("*.svg") if page.parent.name == "recipes" else ():
        shown = page.with_name(drawn.name)
        if os.environ.get("FXTIE_RENEW"):
            shown.write_bytes(drawn.read_bytes())
        assert shown.read_bytes() == drawn.read_bytes()


def test_a_page_that_says_something_else_is_found(tmp_path, capsys):
    page = tmp_path / "page.md"
    page.write_text("```python\nx = 1\n```\n```python\nprint(x)\n```\n```text\n2\n```\n")
    with pytest.raises(AssertionError, match=r"page\.md:8 is\n1"):
        pages.run(page, tmp_path, capsys)


@pytest.fixture
def made(monkeypatch):
    """What docs/generate.py defines."""
    monkeypatch.syspath_prepend(ROOT / "docs")
    return runpy.run_path(str(ROOT / "docs/generate.py"))


def test_pages_that_are_made_from_the_source_are_up_to_date(made, tmp_path):
    made["main"](tmp_path)
    files = [path.relative_to(tmp_path) for path in tmp_path.rglob("*.*")]
    drawn = {path.stem for path in files if path.suffix == ".svg"}
    assert drawn == set(transforms.__all__) - PROTOCOLS | {"abs", "slice", "sum"}
    assert not set((ROOT / "docs/pictures").iterdir()) - {ROOT / "docs" / path for path in files}
    for path in files:
        assert (ROOT / "docs" / path).read_text(encoding="utf-8") == (tmp_path / path).read_text(
            encoding="utf-8"
        ), "run docs/generate.py"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_to_files(page):
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if not link.startswith(("https:", "#")):
            assert (page.parent / link.partition("#")[0]).exists(), link


def test_the_readme_of_the_package_has_no_link_that_leads_nowhere():
    """The index of packages has none of the files; links to the web stay, and all code does."""
    made = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    hook = made["tool"]["hatch"]["metadata"]["hooks"]["fancy-pypi-readme"]
    readme = text = (ROOT / "README.md").read_text(encoding="utf-8")
    for one in hook["substitutions"]:
        text = re.sub(one["pattern"], one["replacement"], text)
    code = re.compile("```.*?```", re.DOTALL)
    assert "](docs/" in readme and code.findall(text) == code.findall(readme)
    links = re.findall(r"\]\(([^)]*)\)", code.sub("", text))
    assert not [link for link in links if not link.startswith(("https:", "#"))]
    assert "docs/life.md does each" in text


def test_the_readme_has_the_totals_of_the_zoo():
    zoo = (ROOT / "docs/zoo.md").read_text(encoding="utf-8")
    readme = " ".join((ROOT / "README.md").read_text(encoding="utf-8").split())

    def figure(pattern: str) -> str:
        return re.search(pattern, zoo)[1]

    equal, models = figure(r"(\d+) of \d+ models tied"), figure(r"of (\d+) models tied")
    exact = figure(r"(\d+) bit for bit in eval"), figure(r"bit for bit in eval, (\d+) in train")
    assert exact == (equal, equal), "what the README says of bits is another figure then"
    graphs, stock = figure(r"(\d+) as one graph"), figure(r"(\d+) can be traced by")
    assert (
        f"{equal} of {models} models of torchvision and timm are tied and equal to the oracle bit "
        f"for bit, in eval and in train; {graphs} are one graph (`torch.fx.symbolic_trace` can "
        f"trace {stock})." in readme
    )


def test_the_readme_has_the_figures_of_the_speed_page():
    """The rows that its claims stand on, in docs/speed.md."""
    speed = (ROOT / "docs/speed.md").read_text(encoding="utf-8")
    readme = " ".join((ROOT / "README.md").read_text(encoding="utf-8").split())

    steps = re.search(
        r"^\| train step, eager +\| hand-linked .*?^\| decoder, batch 1 +\| (.*?) +\|$",
        speed,
        re.DOTALL | re.MULTILINE,
    )
    by_hand, *_, ours = re.split(r" +\| ", steps[1])
    saved = re.search(r"peak memory saved, eager +\| decoder, batch 1 +\| fxtie .*? (\S+) x", speed)
    assert f"takes {ours} of the untied one's time; linked by hand, {by_hand}." in readme
    assert f"needs {saved[1]} bytes less for each byte of weights that is gone" in readme


def test_the_site_builds_strictly(tmp_path):
    """Links, anchors, the pages in its navigation, and signatures of all that is public."""
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    built = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    page = (tmp_path / "reference/index.html").read_text(encoding="utf-8")
    missing = [n for n in fxtie.__all__ if f'id="fxtie.{n}"' not in page]
    assert missing == ["same", "transforms"]  # the first is a transform


def test_a_citation_names_the_version():
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert f"\nversion: {fxtie.__version__}\n" in citation


@pytest.mark.slow
def test_the_quickstart_prints_what_the_readme_shows(capsys):
    runpy.run_path(str(ROOT / "examples/quickstart.py"), run_name="__main__")
    (shown,) = (
        b.code
        for b in pages.blocks((ROOT / "README.md").read_text("utf-8"))
        if b.language == "text about"
    )
    printed = capsys.readouterr().out
    table = printed[printed.index("net  ") : printed.index("Mean and")]
    assert pages.is_about(table, shown), table


def test_a_message_without_a_cause_is_found(made, tmp_path, monkeypatch):
    assert made["cause_of"]("rules/rule.py:Rule.new").title == "What is no rule"
    with pytest.raises(LookupError, match=r"no cause for the messages of elsewhere\.py:new"):
        made["cause_of"]("elsewhere.py:new")
    (tmp_path / "elsewhere.py").write_text(
        "def told(name):\n    return f'{name} is new here'\n"
        "def new(name):\n    raise FxtieError(told(name))\n"
    )
    monkeypatch.setattr(sys.modules["messages"], "PACKAGE", tmp_path)
    with pytest.raises(LookupError, match=r"elsewhere\.py:new"):
        made["index"]()


def test_messages_are_read_where_they_are_made(made):
    """These raise what others have made. Any other error says its text where it is raised."""
    assert sys.modules["messages"].handed_on() == {
        "capturing/capture.py:Capture.check_plan",
        "life/convert.py:initialize",
        "life/verify.py:_Verifier.run_mode",
        "pipelines/exported.py:_refuse_splits",
        "planning/steps.py:Planner.raise_faults",
        "rules/files.py:_load",
        "rules/files.py:_read_json",
        "rules/files.py:_read_toml",
        "rules/patterns.py:Match._group",
        "rules/reader.py:Faults.tell",
        "transforms/chaining.py:chain",
    }


def test_the_errors_of_torch_that_are_quoted(tmp_path):
    """In the README, and in the page of errors, where … stands for names."""
    layer, source = nn.Linear(2, 2), torch.ones(2, 2, requires_grad=True)
    net = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    tied = fxtie.transform(net, fxtie.Rule("1", "0", weight=transforms.LowRank(1), bias=None))
    makers = (
        lambda: setattr(layer, "weight", source * 2),
        lambda: layer.register_parameter(
            "weight", nn.Parameter(source.detach(), False).mul_(source)
        ),
        lambda: net.load_state_dict(tied.state_dict()),
        lambda: parametrize.register_parametrization(tied[1], "weight", nn.Softplus()),
        lambda: nn.utils.spectral_norm(tied[1]),
        lambda: tied[1].weight.requires_grad_(False),
        lambda: torch.save(tied, tmp_path / "a.pt") or torch.load(tmp_path / "a.pt"),
    )
    told = []
    for make in makers:
        with pytest.raises(
            (TypeError, ValueError, RuntimeError, KeyError, pickle.UnpicklingError)
        ) as caught:
            make()
        told.append(f"{type(caught.value).__name__}: {caught.value}".replace('"1.', '"2.'))
    readme = " ".join((ROOT / "README.md").read_text(encoding="utf-8").split())
    quotes = re.findall(r"\*([^*]*'weight'[^*]*)\*", readme)
    assert len(quotes) == 2
    errors = (ROOT / "docs/errors.md").read_text(encoding="utf-8")
    table = errors.split("| torch says | why | what to do |\n| --- | --- | --- |\n")[1]
    rows = [row.split("`")[1] for row in table.split("\n\n")[0].splitlines()]
    for quote in (*quotes, *rows):
        begin, _, _ = quote.partition("…")
        assert any(begin in text for text in told), quote


@pytest.mark.parametrize("page", ["docs/design.md", "docs/transformers.md"])
def test_examples_print_what_they_say(page):
    failed, tried = doctest.testfile(str(ROOT / page), module_relative=False)
    assert tried and not failed


class Case(NamedTuple):
    """As in tests/helpers/transform_cases.py."""

    transform: Any
    shapes: Any
    expected: Any


def test_the_transform_of_contributing(monkeypatch):
    """The transform, its case and its test run as they stand there."""
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    transform, case, test = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    for table in ("_by_name", "_by_object"):
        monkeypatch.setattr(registry, table, dict(getattr(registry, table)))
    names = dict(vars(elementwise), fxtie=fxtie, nn=nn, np=np, W=(4, 6, 3, 3))
    names |= {"Case": Case, "to_spec": registry.to_spec, "from_spec": registry.from_spec}
    exec(transform, names)
    (compared,) = eval(f"{{{case}}}", names).values()
    x = torch.randn(compared.shapes[0])
    assert np.array_equal(compared.transform(x), compared.expected(x.numpy()))
    exec(test, names)
    names["test_clamp"]()
