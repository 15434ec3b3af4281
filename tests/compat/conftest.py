"""The compatibility tests' net, and the table that their run writes.

In: tests marked `compat(tool, what, *packages)`. Out: with `--compat-table PATH`, a Markdown table
with a row for each tool and thing that was tried with it.
"""

from __future__ import annotations

import importlib.metadata
from pathlib import Path

import pytest
import torch
from compat.checks import Case
from compat.nets import CASES, Net, rules
from tabulate import tabulate

import fxtie


@pytest.fixture
def net(device):
    """The untied net, in `eval()`."""
    return Net().to(device).eval()


@pytest.fixture
def tied(net):
    """The tied net, of one graph and one kept part."""
    tied = fxtie.transform(net, rules())
    assert [kept.name for kept in fxtie.report(tied).kept] == ["gate"]
    randomize(tied)
    return tied


@pytest.fixture(params=CASES)
def case(request, device):
    """Each net: untied, tied, and an input, all in `eval()`."""
    make, rules, shape = CASES[request.param]
    model = make().to(device).eval()
    tied = fxtie.transform(model, rules())
    randomize(tied)
    return Case(model, tied, torch.randn(shape, device=device), rules)


def randomize(tied):
    """Give learnable transforms values: fresh ones add nothing."""
    for parameter in tied.ties.parameters():
        torch.nn.init.normal_(parameter, std=0.3)


@pytest.fixture
def x(device):
    return torch.randn(2, 3, 8, 8, device=device)


# --- The table --------------------------------------------------------------------------------


def pytest_addoption(parser):
    parser.addoption("--compat-table", metavar="PATH", help="write what works to a Markdown file")


def pytest_configure(config):
    config.addinivalue_line(
        "markers",
        "compat(tool, what, *packages): a row of docs/compat.md; the versions shown are those of "
        "the packages, of torch if none is named",
    )
    path = config.getoption("--compat-table", default=None)
    if path is not None and not hasattr(
        config, "workerinput"
    ):  # workers report to the main process
        config.pluginmanager.register(_Table(Path(path)))


def pytest_collection_modifyitems(items):
    """Reports carry the rows, so that they reach the main process wherever a test runs."""
    for item in items:
        marker = item.get_closest_marker("compat")
        if marker is not None:
            tool, what, *packages = marker.args
            versions = ", ".join(map(_version, packages or ("torch",)))
            parameters = getattr(item, "callspec", None)
            device = parameters.params.get("device", "cpu") if parameters else "cpu"
            item.user_properties.append(("compat", (tool, versions, what, device)))


class _Table:
    """Gathers the outcomes of a run. Parametrised cases make one row."""

    def __init__(self, path):
        self.path = path
        self.outcomes = {}  # (tool, versions, what, device) -> outcomes of tests

    def pytest_runtest_logreport(self, report):
        row = dict(report.user_properties).get("compat")
        if row is not None and (report.when == "call" or not report.passed):
            self.outcomes.setdefault(tuple(row), set()).add(_outcome(report))

    def pytest_sessionfinish(self, session):
        notes = {}  # reason -> number
        rows = sorted({row[:-1] for row in self.outcomes}, key=lambda row: (row[0].lower(), row))
        cells = [
            (*row, *(_cell(self.outcomes.get((*row, device)), notes) for device in ("cpu", "cuda")))
            for row in rows
        ]
        header = ("tool", "version", "what", "CPU", "CUDA")
        table = tabulate(cells, header, tablefmt="github", disable_numparse=True)
        listed = "\n".join(f"{number}. {reason}" for reason, number in notes.items())
        self.path.write_text(
            f"# What fxtie works with\n\n"
            f"Written by `pytest tests/compat --compat-table {self.path.as_posix()}`, not by hand. "
            f"Numbers stand for the notes below.\n\n{table}\n\n## Notes\n\n{listed}\n",
            encoding="utf-8",
        )


def _version(package):
    try:
        return f"{package} {importlib.metadata.version(package)}"
    except importlib.metadata.PackageNotFoundError:
        return f"{package} (not installed)"


def _outcome(report):
    """One word, and why where it needs a reason."""
    if hasattr(report, "wasxfail"):
        return ("does not", report.wasxfail) if report.skipped else ("works, unexpectedly", None)
    if report.skipped:
        return "not tried", report.longrepr[2].removeprefix("Skipped: ")
    return ("works" if report.passed else "FAILS"), None


def _cell(outcomes, notes):
    if outcomes is None:
        return "-"
    words = []
    for word, reason in sorted(outcomes, key=str):
        note = "" if reason is None else f" ({notes.setdefault(reason, len(notes) + 1)})"
        words.append(word + note)
    return ", ".join(words)
