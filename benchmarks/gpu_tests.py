"""The tests of one device, run by pytest: how it is called, and a plugin that writes what it finds.

In: a device, and the file of the results. Out: a command, whose run appends a row for each test as
it ends. Tests that have passed before, by the results, are not run again.

The plugin knows `--gpu-results PATH`. The command takes nothing from `pyproject.toml` that wants a
plugin of pytest; those that are installed it uses.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path
from typing import Any

import pytest
from gpu_results import append, read

CASE = "tests"
FOLDERS = ("tests",)
FEW = ("tests/tied/test_casts.py",)


def command(device: str, small: bool, results: Path) -> list[str]:
    """What runs the tests whose parameters name the device."""
    found = [sys.executable, "-m", "pytest", *(FEW if small else FOLDERS), "-k", device]
    found += ["-q", "--no-header", "--continue-on-collection-errors", "-p", "no:cacheprovider"]
    found += ["-o", "addopts=--import-mode=importlib", "-p", "gpu_tests"]
    found += ["--gpu-results", str(results)]
    if importlib.util.find_spec("pytest_timeout"):
        found += ["--timeout=100"]
    workers = (os.cpu_count() or 1) // 2
    if importlib.util.find_spec("xdist") and workers > 1:
        found += ["-n", str(workers), "--dist", "worksteal"]
    return found


# -- the plugin -----------------------------------------------------------------------------------


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--gpu-results", type=Path, help="append outcomes to this file")


def pytest_configure(config: pytest.Config) -> None:
    os.environ["TORCHINDUCTOR_COMPILE_THREADS"] = "1"  # the tests run side by side already
    if not hasattr(config, "workerinput"):  # workers report to the main process
        config.pluginmanager.register(_Writer(config.getoption("--gpu-results")))


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what an earlier try has seen pass."""
    *before, _ = read(config.getoption("--gpu-results"))[-1].attempts[CASE]
    passed = {name for a in before for name, outcome in a.tests.items() if outcome.word == "passed"}
    config.hook.pytest_deselected(items=[item for item in items if item.nodeid in passed])
    items[:] = [item for item in items if item.nodeid not in passed]


class _Writer:
    """Appends the outcome of each test."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "call" or not report.passed:
            self._append(report.nodeid, *_outcome(report))

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            self._append(report.nodeid, "not collected", _last_line(report.longrepr))

    def _append(self, test: str, outcome: str, why: str) -> None:
        append(self.path, {"case": CASE, "test": test, "outcome": outcome, "why": why})


def _outcome(report: pytest.TestReport) -> tuple[str, str]:
    if hasattr(report, "wasxfail"):
        return ("failed, as expected", report.wasxfail) if report.skipped else ("failed", "XPASS")
    if report.skipped:
        return "skipped", report.longrepr[2].removeprefix("Skipped: ")
    return ("passed", "") if report.passed else ("failed", _last_line(report.longrepr))


def _last_line(error: Any) -> str:
    crash = getattr(error, "reprcrash", None)
    text = crash.message.partition("\n")[0] if crash else str(error).strip().rpartition("\n")[2]
    return text[:300]
