"""How the package is built: its names, its files, and where their tests are."""

import ast
import importlib
import inspect
import pathlib
import pkgutil
import re
import subprocess
import sys
import types

import pytest

import fxtie
import fxtie.distributed

PACKAGE = pathlib.Path(fxtie.__file__).parent
FILES = sorted(PACKAGE.rglob("*.py"))
TESTS = pathlib.Path(__file__).parent
MOST_LINES = 400
MOST_LINES_OF_A_TEST = 600
MOST_LINES_OF_A_FUNCTION = 40


def modules():
    return [m.name for m in pkgutil.walk_packages(fxtie.__path__, "fxtie.")]


def members(cls):
    """The names of methods and properties that a public class itself has."""
    for name, value in vars(cls).items():
        if not name.startswith("_") and (inspect.isroutine(value) or isinstance(value, property)):
            yield name


def test_the_public_names_are_those_of_all():
    assert [name for name in dir(fxtie) if not name.startswith("_")] == sorted(fxtie.__all__)
    assert sorted(fxtie.__all__, key=str) == fxtie.__all__


@pytest.mark.parametrize("name", [n for n in modules() if not n.endswith("__main__")])
def test_importing_a_module_by_its_path_gives_a_module(name):
    found = fxtie
    importlib.import_module(name)
    for part in name.split(".")[1:]:
        found = getattr(found, part)
    assert isinstance(found, types.ModuleType)
    assert found.__name__ == name


def test_importing_does_not_import_the_compiler():
    code = (
        "import sys, torch, fxtie; from torch import nn\n"
        "net = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))\n"
        "assert 'torch._dynamo' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


PUBLIC = [
    (package, name)
    for package in (fxtie, fxtie.transforms, fxtie.distributed)
    for name in package.__all__
    if name not in ("transforms", "Transform")  # a package, a type alias
]


@pytest.mark.parametrize(("package", "name"), PUBLIC, ids=[name for _, name in PUBLIC])
def test_what_is_public_is_documented(package, name):
    value = getattr(package, name)
    assert inspect.getdoc(value)
    if inspect.isclass(value):
        missing = [n for n in members(value) if not inspect.getdoc(getattr(value, n))]
        assert not missing
    elif inspect.isfunction(value):
        parameters = inspect.signature(value).parameters.keys() - {"source"}  # of transforms
        told = inspect.getdoc(value)
        assert not [p for p in parameters if f"{p}:" not in told and f"{p}, " not in told]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_files_and_functions_can_be_taken_in(path):
    """A long function says in its docstring why it is not two."""
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= MOST_LINES
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef):
            told = ast.get_docstring(node) or ""
            body = node.body[1:] if told else node.body
            length = body[-1].end_lineno - body[0].lineno + 1 if body else 0
            assert length <= MOST_LINES_OF_A_FUNCTION or "In one piece" in told, node.name


WITHOUT_A_TEST = {
    "__main__.py": "tests/test_cli.py runs it",
    "life/verifying/results.py": "data classes, which tests/life/test_verify.py reads",
    "looking/grouping.py": "one loop, in each diff and picture",
    "planning/spec.py": "a data class",
    "tied/dtensors.py": "two calls of torch, made by fsdp.py and recompute.py",
    "tied/fsdp.py": "takes processes: tests/distributed/test_fsdp.py",
    "tied/placed.py": "takes processes: tests/distributed/test_tensor_parallel.py",
    "tied/sharded.py": "takes processes: tests/distributed/test_tensor_parallel.py",
    "tracing/namespace.py": "a dict with a name, in pickles of tests/tracing/test_beliefs.py",
    "tracing/stops.py": "an exception",
    "tracing/user_class.py": "two look-ups",
    "transforms/factors.py": "a row of each table in tests/transforms/test_catalogue.py",
    "transforms/merging.py": "a row of each table in tests/transforms/test_catalogue.py",
}
"""Modules that have no file of tests of their own, and why they need none."""


def test_each_module_has_its_tests():
    """`planning/resolve.py` has `tests/planning/test_resolve.py`."""
    modules = [p.relative_to(PACKAGE) for p in FILES if p.name != "__init__.py"]
    files = {path: TESTS / path.with_name(f"test_{path.name}") for path in modules}
    without = {str(path) for path, tests in files.items() if not tests.exists()}
    assert without == WITHOUT_A_TEST.keys(), "write its tests, or say here why it needs none"
    named = re.findall(r"tests/\S+", " ".join(WITHOUT_A_TEST.values()))
    assert not [path for path in named if not (TESTS.parent / path).exists()]


def test_tests_can_be_taken_in():
    lines = {path: len(path.read_text("utf-8").splitlines()) for path in TESTS.rglob("*.py")}
    assert not [path for path, count in lines.items() if count > MOST_LINES_OF_A_TEST]
