"""The tables of docs/distributed.md.

In: tests marked `setting(...)`, by kind of tie, and rows that `record_property` noted for a table
of `HEADERS`. Out: with `--distributed-table PATH`, these as Markdown, between the marks of that
page.
"""

from __future__ import annotations

import re
from pathlib import Path

from decoders import KINDS
from tabulate import tabulate

HEADERS = {
    "sent": ["model", "ranks", "collectives", "MB sent and received by a rank"],
    "memory": ["model", "ranks", "MB of parameters", "MB at the peak of a step"],
}


class Tables:
    """Gathers the outcomes of a run."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.settings: dict[str, dict[str, bool]] = {}
        self.rows: dict[str, list[tuple]] = {name: [] for name in HEADERS}

    def pytest_runtest_logreport(self, report):
        properties = dict(report.user_properties)
        if report.when == "call" and "setting" in properties:
            setting, kind = properties["setting"]
            outcomes = self.settings.setdefault(setting, {})
            outcomes[kind] = outcomes.get(kind, True) and report.passed
        if report.when == "call" and report.passed:
            for name, rows in self.rows.items():
                rows += properties.get(name, [])

    def pytest_sessionfinish(self):
        if not self.settings:
            return
        rows = [
            [setting, *({True: "works", False: "FAILS"}.get(found.get(kind), "") for kind in KINDS)]
            for setting, found in sorted(self.settings.items())
        ]
        page = self.path.read_text(encoding="utf-8")
        page = _put(page, "settings", tabulate(rows, ["setting", *KINDS], "github"))
        for name, table in self.rows.items():
            page = _put(page, name, tabulate(table, HEADERS[name], "github", floatfmt=".4f"))
        self.path.write_text(page, encoding="utf-8")


def _put(page: str, name: str, table: str) -> str:
    begin, end = f"<!-- {name}: written by the tests -->", f"<!-- end of {name} -->"
    pattern = re.compile(f"{re.escape(begin)}.*?{re.escape(end)}", re.DOTALL)
    assert pattern.search(page), f"no {begin}"
    return pattern.sub(lambda _: f"{begin}\n\n{table}\n\n{end}", page)
