"""The compatibility tests' net, and the table that their run writes.

In: tests marked `compat(tool, what, *packages)`. Out: with `--compat-table PATH`, a file of what
this run found and a Markdown table of all such files (`table.py`).
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from compat.checks import Case
from compat.nets import CASES, Net, rules
from compat.table import RESULTS, Run, markdown

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
    parser.addoption(
        "--compat-table",
        metavar="PATH",
        help="keep what works in tests/compat/results, and write all results to a Markdown file",
    )


def pytest_configure(config):
    config.addinivalue_line(
        "markers",
        "compat(tool, what, *packages): a row of docs/compat.md, and the packages besides torch "
        "whose versions matter for it",
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
            parameters = getattr(item, "callspec", None)
            device = parameters.params.get("device", "cpu") if parameters else "cpu"
            item.user_properties.append(("compat", (tool, what, device, packages)))


class _Table:
    """Gathers the outcomes of a run. Parametrised cases make one row."""

    def __init__(self, path):
        self.path = path
        self.packages = set()
        self.outcomes = {}  # (tool, what, device) -> outcomes of tests

    def pytest_runtest_logreport(self, report):
        row = dict(report.user_properties).get("compat")
        if row is not None and (report.when == "call" or not report.passed):
            *key, packages = row
            self.packages.update(packages)
            self.outcomes.setdefault(tuple(key), set()).add(_outcome(report))

    def pytest_sessionfinish(self, session):
        if not self.outcomes:  # a run that only collects
            return
        Run.here(self.packages, self.outcomes).write(RESULTS)
        runs = [Run.read(path) for path in sorted(RESULTS.glob("*.json"))]
        self.path.write_text(markdown(runs), encoding="utf-8")


def _outcome(report):
    """One word, and why where it needs a reason."""
    if hasattr(report, "wasxfail"):
        return ("does not", report.wasxfail) if report.skipped else ("works, unexpectedly", None)
    if report.skipped:
        return "not tried", report.longrepr[2].removeprefix("Skipped: ")
    return ("works" if report.passed else "FAILS"), None
