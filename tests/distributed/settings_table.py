"""The tables of docs/distributed.md.

In: outcomes of tests marked `setting`, by kind of tie, and rows that tests noted for a table of
`HEADERS`. Out: these as Markdown, between the marks of that page.
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


def write(path: Path, found: list[tuple[dict, tuple[str, str | None]]]) -> None:
    """Put what a run has found (see `outcomes.py`) into the page."""
    settings: dict[str, dict[str, set[str]]] = {}
    for properties, (word, _) in found:
        (name,), parameters = properties.get("setting", ((None,), {}))
        if kind := parameters.get("kind"):
            words = settings.setdefault(name.format(**parameters), {})
            words.setdefault(kind, set()).add(word)
    cells = [
        [setting, *(", ".join(sorted(words.get(kind, ()))) for kind in KINDS)]
        for setting, words in sorted(settings.items())
    ]
    tables = {"settings": tabulate(cells, ["setting", *KINDS], "github")}
    for name, headers in HEADERS.items():
        rows = [row for properties, _ in found for row in properties.get(name, ())]
        tables[name] = tabulate(rows, headers, "github", floatfmt=".4f")
    page = path.read_text(encoding="utf-8")
    for name, table in tables.items():
        page = _put(page, name, table)
    path.write_text(page, encoding="utf-8")


def _put(page: str, name: str, table: str) -> str:
    begin, end = f"<!-- {name}: written by the tests -->", f"<!-- end of {name} -->"
    pattern = re.compile(f"{re.escape(begin)}.*?{re.escape(end)}", re.DOTALL)
    assert pattern.search(page), f"no {begin}"
    return pattern.sub(lambda _: f"{begin}\n\n{table}\n\n{end}", page)
