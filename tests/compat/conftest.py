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
    return Case(model, tied, torch.randn(shape, device=device))


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
    if path is not None:
        if config.getoption("numprocesses", default=None):
            raise pytest.UsageError("--compat-table wants the tests in one process: add -n 0")
        config.pluginmanager.register(_Table(Path(path)))


class _Table:
    """Gathers the outcomes of a run. Parametrised cases make one row."""

    def __init__(self, path):
        self.path = path
        self.rows = {}  # (tool, version, what) -> outcomes, each once, in order

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self, item, call):
        report = yield
        marker = item.get_closest_marker("compat")
        if marker is not None and (report.when == "call" or not report.passed):
            tool, what, *packages = marker.args
            versions = ", ".join(map(_version, packages or ("torch",)))
            self.rows.setdefault((tool, versions, what), {})[_outcome(report)] = None
        return report

    def pytest_sessionfinish(self, session):
        rows = [(*row, "; ".join(outcomes)) for row, outcomes in self.rows.items()]
        table = tabulate(
            rows, ("tool", "version", "what", "result"), tablefmt="github", disable_numparse=True
        )
        devices = "the CPU and CUDA" if torch.cuda.is_available() else "the CPU"
        self.path.write_text(
            f"# What fxtie works with\n\n"
            f"Written by `pytest tests/compat -n 0 --compat-table {self.path.as_posix()}`, not by "
            f"hand. This run was on {devices}.\n\n{table}\n",
            encoding="utf-8",
        )


def _version(package):
    try:
        return f"{package} {importlib.metadata.version(package)}"
    except importlib.metadata.PackageNotFoundError:
        return f"{package} (not installed)"


def _outcome(report):
    if hasattr(report, "wasxfail"):
        return f"does not: {report.wasxfail}" if report.skipped else "works against expectation"
    if report.skipped:
        return f"skipped: {report.longrepr[2].removeprefix('Skipped: ')}"
    return "works" if report.passed else "FAILS"
