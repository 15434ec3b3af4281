"""Hooks of pytest that write what works to a page of the docs, given `--table docs/PAGE.md`.

In: tests marked `compat` or `setting`, and what they note by `record_property`. Out: the tables of
that page, by the function `write` of the module that knows it.
"""

from __future__ import annotations

import importlib
from pathlib import Path

WRITERS = {
    "compat": "compat.table",
    "integrations": "compat.table",
    "distributed": "settings_table",
}
"""Modules, by the name of a page."""

MARKERS = {
    "compat": "(tool, what, *packages): a row of docs/compat.md or docs/integrations.md, and the "
    "packages besides torch whose versions matter for it",
    "setting": "(name): a row of docs/distributed.md; {units} stands for a parameter of the test",
}


def pytest_addoption(parser):
    parser.addoption("--table", metavar="PATH", type=Path, help="write what works to this page")


def pytest_configure(config):
    for name, meaning in MARKERS.items():
        config.addinivalue_line("markers", name + meaning)
    path = config.getoption("--table", default=None)
    if path is not None and not hasattr(config, "workerinput"):  # workers report to the main one
        config.pluginmanager.register(_Outcomes(path))


def pytest_collection_modifyitems(items):
    """Reports carry marks and parameters, so that they reach the main process from any other."""
    for item in items:
        parameters = item.callspec.params if hasattr(item, "callspec") else {}
        texts = {name: value for name, value in parameters.items() if isinstance(value, str)}
        for marker in filter(None, map(item.get_closest_marker, MARKERS)):
            item.user_properties.append((marker.name, (marker.args, texts)))


class _Outcomes:
    """Gathers what the reports of a run carry, each with its outcome."""

    def __init__(self, path):
        self.path, self.found = path, []

    def pytest_runtest_logreport(self, report):
        if report.user_properties and (report.when == "call" or not report.passed):
            self.found.append((dict(report.user_properties), _outcome(report)))

    def pytest_sessionfinish(self):
        if self.found:  # else a run that only collects
            importlib.import_module(WRITERS[self.path.stem]).write(self.path, self.found)


def _outcome(report):
    """One word, and why where it needs a reason."""
    if hasattr(report, "wasxfail"):
        return ("does not", report.wasxfail) if report.skipped else ("works, unexpectedly", None)
    if report.skipped:
        return "not tried", report.longrepr[2].removeprefix("Skipped: ")
    return ("works" if report.passed else "FAILS"), None
