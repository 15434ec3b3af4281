"""The results of `gpu.py`: JSON lines that only grow, so that a run that is cut off loses nothing.

In: rows as they are measured. Out: `Results`, one for each device and each set of versions.

| row | what it says |
| --- | --- |
| `{"run": {...}, "commit": ...}` | on what the rows that follow were measured |
| `{"case": ..., "began": ...}` | a case begins |
| `{"case": ..., "figure": {...}}` | a figure of it |
| `{"case": ..., "test": ..., "outcome": ..., "why": ...}` | a test of it |
| `{"case": ..., "ended": ..., "seconds": ..., "log": ...}` | it is `done`, `failed`, `cut off` |
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

from figures import Figure, Ratio

DONE, FAILED, CUT_OFF = "done", "failed", "cut off"  # cases
BAD = ("failed", "not collected")  # tests


class Outcome(NamedTuple):
    """Of a test: a word, and why where it did not pass."""

    word: str
    why: str


@dataclass
class Attempt:
    """What one try at a case has found. One without an end was cut off with the whole run.

    Attributes:
        log: the end of what it has told of warnings and errors.
    """

    figures: list[Figure] = field(default_factory=list)
    tests: dict[str, Outcome] = field(default_factory=dict)
    ended: str = CUT_OFF
    seconds: float = 0.0
    log: str = ""


@dataclass
class Results:
    """All that was found on one device with one set of versions.

    Attributes:
        commits: of fxtie, in the order in which they were measured.
    """

    environment: dict[str, Any]
    commits: list[str] = field(default_factory=list)
    attempts: dict[str, list[Attempt]] = field(default_factory=dict)

    def case(self, name: str) -> Attempt | None:
        """The last try that came to its end, or the one that came furthest; tests of all tries."""
        tries = self.attempts.get(name)
        if not tries:
            return None
        done = [attempt for attempt in tries if attempt.ended == DONE]
        best = done[-1] if done else max(tries, key=lambda attempt: len(attempt.figures))
        return replace(best, tests={k: v for attempt in tries for k, v in attempt.tests.items()})

    def is_done(self, name: str) -> bool:
        return any(attempt.ended == DONE for attempt in self.attempts.get(name, ()))


def append(path: Path, row: dict[str, Any]) -> None:
    """Write one row; a line that an earlier run has left unfinished stays alone."""
    text = json.dumps(row) + "\n"
    with path.open("a+b") as file:
        if file.tell():
            file.seek(-1, 2)
            text = text if file.read() == b"\n" else "\n" + text
        file.write(text.encode())


def append_figure(path: Path, case: str, figure: Figure) -> None:
    append(path, {"case": case, "figure": asdict(figure)})


def read(path: Path) -> list[Results]:
    """By device and versions; those that were measured last come last."""
    found: dict[str, Results] = {}
    here: Results | None = None
    for row in _rows(path):
        if "run" in row:
            key = json.dumps(row["run"], sort_keys=True)
            here = found.pop(key, None) or Results(row["run"])
            found[key] = here
            if row["commit"] not in here.commits:
                here.commits.append(row["commit"])
        elif here is not None:
            _add(here.attempts.setdefault(row["case"], []), row)
    return list(found.values())


def _rows(path: Path) -> list[dict[str, Any]]:
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:  # the run was stopped in the midst of a line
            continue
    return rows


def _add(attempts: list[Attempt], row: dict[str, Any]) -> None:
    if "began" in row:
        attempts.append(Attempt())
    elif "figure" in row:
        figure = row["figure"]
        attempts[-1].figures.append(Figure(**{**figure, "ratio": Ratio(**figure["ratio"])}))
    elif "test" in row:
        attempts[-1].tests[row["test"]] = Outcome(row["outcome"], row["why"])
    else:
        last = attempts[-1]
        last.ended, last.seconds, last.log = row["ended"], row["seconds"], row["log"]
