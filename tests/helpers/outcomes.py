"""Hooks of pytest that write what works to a page of the docs.

In: tests marked `compat(tool, what, *packages)`. Out: with `--compat-table docs/PAGE.md`, a file of
what this run found, in the folder `results` beside the tests, and a Markdown table of all such
files (`compat/table.py`).
"""

from __future__ import annotations

from pathlib import Path

from compat.table import PAGES, Run, markdown


def pytest_addoption(parser):
    parser.addoption(
        "--compat-table",
        metavar="PATH",
        help="keep what works in the results beside the tests, and write all results to Markdown",
    )


def pytest_configure(config):
    config.addinivalue_line(
        "markers",
        "compat(tool, what, *packages): a row of a page in docs/, and the packages besides torch "
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
        page = PAGES[self.path.stem]
        results = page.folder / "results"
        Run.here(self.packages, self.outcomes).write(results)
        runs = [Run.read(path) for path in sorted(results.glob("*.json"))]
        self.path.write_text(markdown(runs, page), encoding="utf-8")


def _outcome(report):
    """One word, and why where it needs a reason."""
    if hasattr(report, "wasxfail"):
        return ("does not", report.wasxfail) if report.skipped else ("works, unexpectedly", None)
    if report.skipped:
        return "not tried", report.longrepr[2].removeprefix("Skipped: ")
    return ("works" if report.passed else "FAILS"), None
