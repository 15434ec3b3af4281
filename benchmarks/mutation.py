"""Break the tracer at random places, and see whether its tests notice.

    python benchmarks/mutation.py --count 40 --seed 1

Each mutant changes one expression or statement of `fxtie/tracing`, or of what traces modules in
`fxtie/capturing`: a comparison or a condition is turned round, a `raise Stop` or a call whose
result is unused is left out. The tests of tests/tracing and tests/capturing that run its line run
on it, but for the random programs. Prints what became of each mutant, and the share that is killed.
"""

from __future__ import annotations

import argparse
import ast
import copy
import os
import random
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
import torch._dynamo  # noqa: F401
from coverage import Coverage
from vision import import_torchvision

ROOT = Path(__file__).resolve().parents[1]
CAPTURING = ("attempt", "module_attributes", "module_tracer", "reach", "reads", "unseen_calls")
FILES = [
    *sorted((ROOT / "fxtie/tracing").glob("*.py")),
    *(ROOT / f"fxtie/capturing/{name}.py" for name in CAPTURING),
]
TESTS = ["tests/tracing", "tests/capturing"]
SELECTED = "not random and not planted and not each_change and not False"
TURNED = {
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
    ast.Lt: ast.GtE,
    ast.Gt: ast.LtE,
}


def places(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Where a tree can be broken, and how: indices in the order of `ast.walk`."""
    for i, node in enumerate(ast.walk(tree)):
        if isinstance(node, ast.Compare) and type(node.ops[0]) in TURNED:
            yield i, "turns a comparison"
        elif isinstance(node, ast.BoolOp):
            yield i, "swaps and and or"
        elif isinstance(node, ast.If | ast.IfExp):
            yield i, "turns a condition"
        elif isinstance(node, ast.Raise) and "Stop(" in ast.unparse(node):
            yield i, "leaves out a Stop"
        elif isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
            yield i, "leaves out a call"


def broken(tree: ast.Module, place: int) -> tuple[ast.Module, int, str]:
    """A tree with one change, its line and the code there."""
    tree = copy.deepcopy(tree)
    node = list(ast.walk(tree))[place]
    shown = ast.unparse(node).partition("\n")[0][:80]
    if isinstance(node, ast.Compare):
        node.ops[0] = TURNED[type(node.ops[0])]()
    elif isinstance(node, ast.BoolOp):
        node.op = ast.Or() if isinstance(node.op, ast.And) else ast.And()
    elif isinstance(node, ast.If | ast.IfExp):
        node.test = ast.UnaryOp(ast.Not(), node.test)
    else:
        for parent in ast.walk(tree):
            for body in (getattr(parent, name, None) for name in ("body", "orelse")):
                if isinstance(body, list) and node in body:
                    body[body.index(node)] = ast.Pass()
    return ast.fix_missing_locations(tree), node.lineno, shown


def survives(folder: Path, tests: Sequence[str], measured: Coverage | None = None) -> bool:
    """Whether all of some tests pass with the package in a folder.

    They run in a fork, which has torch already: importing it takes longer than most tests.

    Args:
        folder: where the package is.
        tests: folders, or ids of tests.
        measured: saves which test runs which line.
    """
    if child := os.fork():
        return os.waitpid(child, 0)[1] == 0
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.dup2(nowhere, 2)
    os.chdir(ROOT)
    sys.path.insert(0, str(folder))
    options = ["-x", "-p", "no:cacheprovider", "--timeout=300", "-k", SELECTED]
    if measured is None:
        os._exit(pytest.main([*options, *tests]))
    measured.start()
    code = pytest.main([*options, *tests], plugins=[Contexts(measured)])
    measured.stop()
    measured.save()
    os._exit(code)


class Contexts:
    """Tells `coverage` which test runs."""

    def __init__(self, measured: Coverage) -> None:
        self.measured = measured

    def pytest_runtest_setup(self, item: pytest.Item) -> None:
        self.measured.switch_context(item.nodeid)


def tests_by_line(folder: Path) -> Callable[[Path, int], Sequence[str]]:
    """The tests that run a line of a file; all of them if it runs at import, or never in a test."""
    data = str(folder / "coverage")
    measured = Coverage(data, include=[str(folder / "fxtie/*")], config_file=False)
    assert survives(folder, TESTS, measured), "the tests fail on the code as it is"
    measured.load()
    found = measured.get_data()

    def tests(file: Path, line: int) -> Sequence[str]:
        contexts = found.contexts_by_lineno(str(file)).get(line, [])
        return sorted(contexts) if contexts and "" not in contexts else TESTS

    return tests


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=40)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    import_torchvision()
    trees = {file: ast.parse(file.read_text(encoding="utf-8")) for file in FILES}
    candidates = [(file, *place) for file, tree in trees.items() for place in places(tree)]
    chosen = random.Random(options.seed).sample(candidates, options.count)
    killed = 0
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        copied = folder / "fxtie"
        shutil.copytree(ROOT / "fxtie", copied)
        tests = tests_by_line(folder)
        for file, place, kind in chosen:
            tree, line, shown = broken(trees[file], place)
            target = copied / file.relative_to(ROOT / "fxtie")
            target.write_text(ast.unparse(tree), encoding="utf-8")
            is_killed = not survives(folder, tests(target, line))
            killed += is_killed
            verdict = "killed" if is_killed else "survives"
            print(f"{verdict}: {file.relative_to(ROOT)}:{line} {kind}: {shown}", flush=True)
            shutil.copy(file, target)
    print(f"{killed} of {options.count} mutants killed, of {len(candidates)} places")


if __name__ == "__main__":
    main()
