"""How fast tied models and the pass are: each figure measured beside what it is compared with.

    python benchmarks/speed.py                     everything, about 20 minutes
    python benchmarks/speed.py --only train        some of it, by name; see --list
    python benchmarks/speed.py --docs              ... and write docs/speed.md with its plots
    python benchmarks/speed.py --count             instructions of the pass, against the committed

Figures go to a JSON-lines file; measuring one again replaces what is there. Nothing depends on
absolute times: ratios are medians over pairs that run in turn (see `measure.py`). Where a goal is
missed the table says so; only `--count` fails.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import warnings
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "benchmarks"))

import instructions  # noqa: E402
import torch  # noqa: E402
from figures import Figure, Ratio  # noqa: E402
from speed_figures import compiled, inference, memory, micro_batches, train  # noqa: E402
from speed_jax import equinox  # noqa: E402
from speed_models import Options  # noqa: E402
from speed_pass import compile_time, growth, imports, passes, several_targets  # noqa: E402
from speed_report import table, write_docs  # noqa: E402
from speed_ways import ways  # noqa: E402

BENCHMARKS = {
    function.__name__: function
    for function in (
        *(train, inference, compiled, equinox, micro_batches, memory, ways),
        *(passes, growth, several_targets, compile_time, imports),
    )
}


def read(path: Path) -> dict[str, list[Figure]]:
    """The figures of a results file, by benchmark."""
    found: dict[str, list[Figure]] = {}
    if path.exists():
        for line in path.read_text().splitlines():
            row = json.loads(line)
            name, ratio = row.pop("benchmark"), Ratio(**row.pop("ratio"))
            found.setdefault(name, []).append(Figure(**row, ratio=ratio))
    return found


def write(path: Path, results: dict[str, list[Figure]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [
        json.dumps({"benchmark": name, **asdict(figure)})
        for name, figures in results.items()
        for figure in figures
    ]
    path.write_text("\n".join(rows) + "\n")


def measure_all(names: Iterable[str], options: Options, out: Path) -> dict[str, list[Figure]]:
    """Run benchmarks one after the other; results are written after each."""
    results = read(out)
    for name in names:
        print(f"-- {name}", flush=True)
        results[name] = []
        for figure in BENCHMARKS[name](options):
            results[name].append(figure)
            print(table([figure], "plain", headers=False), flush=True)
        write(out, results)
    return {name: results[name] for name in BENCHMARKS if results.get(name)}


def count(update: bool) -> int:
    """Count instructions of the pass. Returns the exit code."""
    found, before = instructions.counts(), instructions.committed()
    for name, value in found.items():
        was = f" (committed: {before[name]:,})" if name in before else ""
        print(f"{name}: {value:,}{was}")
    if update:
        instructions.update(found)
        return 0
    if not before:
        print(f"skipped: no counts are committed for {instructions.versions()}")
    grown = instructions.grown(found)
    for line in grown:
        print(f"GROWN {line}")
    return 1 if grown else 0


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", metavar="REGEX", help="benchmarks whose name matches")
    parser.add_argument("--list", action="store_true", help="tell the benchmarks' names")
    parser.add_argument("--quick", action="store_true", help="little of everything, to try it out")
    parser.add_argument("--seconds", type=float, default=15, help="time for one comparison")
    parser.add_argument("--out", type=Path, default=ROOT / "out" / "speed.jsonl")
    parser.add_argument("--docs", action="store_true", help="write docs/speed.md and its plots")
    parser.add_argument("--count", action="store_true", help="count instructions, nothing else")
    parser.add_argument("--update", action="store_true", help="with --count: commit to the counts")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.manual_seed(0)
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)  # what a tie computes must not change what its numbers cost
    names = [name for name in BENCHMARKS if re.search(options.only or "", name)]
    if options.list:
        print(*names, sep="\n")
        return 0
    if options.count:
        return count(options.update)
    amount = Options(0.5, quick=True) if options.quick else Options(options.seconds)
    results = measure_all(names, amount, options.out)
    figures = [figure for found in results.values() for figure in found]
    print(table([figure for figure in figures if figure.goal is not None], "simple"))
    if options.docs:
        write_docs(figures, ROOT / "docs")
    return 0


if __name__ == "__main__":
    sys.exit(main())
