"""The tables of docs/compat.md and docs/integrations.md.

In: outcomes of tests marked `compat`. Out: a JSON file of them in `results` beside the tests, one
for each torch and Python, and Markdown of all such files, with a column for each torch version.
"""

from __future__ import annotations

import importlib.metadata
import json
import platform
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tabulate import tabulate


@dataclass(frozen=True)
class Page:
    """A page with a table.

    Attributes:
        title: its title.
        tests: the folder of the tests whose outcomes it shows.
        about: what else it says above the table.
    """

    title: str
    tests: str
    about: str = ""

    @property
    def folder(self) -> Path:
        return Path(__file__).parents[2] / self.tests


PAGES = {
    "compat": Page("What fxtie works with", "tests/compat"),
    "integrations": Page(
        "In the tools that people train and share with",
        "tests/integrations",
        " Rows of transformers are tried with a BERT, a Llama, a T5, a ViT and a Mixtral where "
        "they concern all models, and else with a Llama; all are small.",
    ),
}
"""By the name of its file in `docs/`, without the suffix."""

# (tool, what, device) -> (word, reason) of each test of the row
Outcomes = dict[tuple[str, str, str], set[tuple[str, str | None]]]


class Run:
    """What one run of the tests found, and the versions of Python and of the packages."""

    def __init__(self, versions: dict[str, str], outcomes: Outcomes) -> None:
        self.versions = versions
        self.outcomes = outcomes

    @classmethod
    def here(cls, packages: Iterable[str], outcomes: Outcomes) -> Run:
        """A run in this environment."""
        found = {package: _version(package) for package in sorted({*packages, "torch"})}
        return cls({"Python": platform.python_version(), **found}, outcomes)

    @classmethod
    def read(cls, path: Path) -> Run:
        data = json.loads(path.read_text(encoding="utf-8"))
        rows = data["rows"]
        return cls(data["versions"], {tuple(key): {tuple(o) for o in found} for key, found in rows})

    def write(self, folder: Path) -> Path:
        """The file that was written. It replaces that of an earlier run of the same versions."""
        python, _, _ = self.versions["Python"].rpartition(".")
        path = folder / f"torch-{self.torch}-python-{python}.json"
        rows = [[list(key), sorted(found, key=str)] for key, found in sorted(self.outcomes.items())]
        lines = ",\n".join(map(json.dumps, rows))
        folder.mkdir(parents=True, exist_ok=True)
        text = f'{{"versions": {json.dumps(self.versions)},\n"rows": [\n{lines}\n]}}\n'
        path.write_text(text, encoding="utf-8")
        return path

    @property
    def torch(self) -> str:
        """The release, without the kind of build."""
        return self.versions["torch"].partition("+")[0]


def write(path: Path, found: list[tuple[dict, tuple[str, str | None]]]) -> None:
    """Keep what a run has found (see `outcomes.py`), and write the page. Cases make one row."""
    packages: set[str] = set()
    outcomes: Outcomes = {}
    for properties, outcome in found:
        if "compat" in properties:
            (tool, what, *needed), parameters = properties["compat"]
            packages.update(needed)
            device = parameters.get("device", "cpu")
            outcomes.setdefault((tool, what, device), set()).add(outcome)
    page = PAGES[path.stem]
    results = page.folder / "results"
    Run.here(packages, outcomes).write(results)
    runs = [Run.read(path) for path in sorted(results.glob("*.json"))]
    path.write_text(markdown(runs, page), encoding="utf-8")


def markdown(runs: Iterable[Run], page: Page) -> str:
    """The page: a row for each thing that was tried, a column for each torch version and device."""
    by_torch: dict[str, list[Run]] = {}
    for run in sorted(
        runs, key=lambda run: (_numbers(run.torch), _numbers(run.versions["Python"]))
    ):
        by_torch.setdefault(run.torch, []).append(run)
    everything = [run for same in by_torch.values() for run in same]
    rows = sorted({key[:2] for run in everything for key in run.outcomes}, key=_row_order)
    columns = [
        (torch, device)
        for torch in by_torch
        for device in ("cpu", "cuda")
        if device == "cpu" or any(_was_tried(run, device) for run in by_torch[torch])
    ]
    notes: dict[str, int] = {}
    cells = [
        [*row, *(_cell(by_torch[torch], (*row, device), notes) for torch, device in columns)]
        for row in rows
    ]
    header = ["tool", "what", *(f"torch {torch}, {device.upper()}" for torch, device in columns)]
    listed = "".join(f"{number}. {reason}\n" for reason, number in notes.items())
    told = f"## Notes\n\n{listed}\n" if notes else ""
    untried = "" if any(device == "cuda" for _, device in columns) else " None had a CUDA device."
    return (
        f"# {page.title}\n\n"
        f"Written by `pytest {page.tests} --table docs/{_name(page)}.md`, not by hand, from "
        f"the runs in `{page.tests}/results`.{untried}{page.about} "
        f"Numbers stand for the notes below.\n\n{_table(cells, header)}\n\n{told}## Versions\n\n"
        f"{_versions(by_torch)}\n"
    )


def _name(page: Page) -> str:
    return next(name for name, other in PAGES.items() if other is page)


def _row_order(row: tuple[str, ...]) -> Any:
    return row[0].lower(), row


def _was_tried(run: Run, device: str) -> bool:
    return any(
        word != "not tried"
        for key, found in run.outcomes.items()
        for word, _ in found
        if key[2] == device
    )


def _cell(runs: list[Run], key: tuple[str, str, str], notes: dict[str, int]) -> str:
    outcomes = {outcome for run in runs for outcome in run.outcomes.get(key, ())}
    if not outcomes:
        return "-"
    words = []
    for word, reason in sorted(outcomes, key=str):
        note = "" if reason is None else f" ({notes.setdefault(reason, len(notes) + 1)})"
        words.append(word + note)
    return ", ".join(words)


def _versions(by_torch: dict[str, list[Run]]) -> str:
    """For each column, what else was installed."""
    packages = dict.fromkeys(
        name for runs in by_torch.values() for r in runs for name in r.versions
    )
    cells = [
        [
            name,
            *(_joined(run.versions.get(name, "-") for run in runs) for runs in by_torch.values()),
        ]
        for name in packages
    ]
    return _table(cells, ["", *(f"torch {torch}" for torch in by_torch)])


def _joined(words: Iterable[str]) -> str:
    return ", ".join(dict.fromkeys(words))


def _table(cells: list[list[str]], header: list[str]) -> str:
    return tabulate(cells, header, tablefmt="github", disable_numparse=True)


def _numbers(version: str) -> list[int]:
    return [int(part) for part in version.split(".") if part.isdigit()]


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"
