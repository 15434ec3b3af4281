"""How the package is built: its names, its files, its private names of torch."""

import ast
import importlib
import inspect
import pathlib
import pkgutil
import subprocess
import sys
import types

import pytest
import torch

import fxtie
import fxtie.distributed
from fxtie import _torch

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


def test_tests_are_in_folders_like_those_of_the_package():
    folders = {path.parent.relative_to(PACKAGE) for path in FILES}
    assert not [folder for folder in folders if not list((TESTS / folder).glob("test_*.py"))]
    lines = {path: len(path.read_text("utf-8").splitlines()) for path in TESTS.rglob("*.py")}
    assert not [path for path, count in lines.items() if count > MOST_LINES_OF_A_TEST]


# -- private names of torch ------------------------------------------------------------------------


def chains(tree):
    """The dotted names that begin with one of torch's modules, as torch names them."""
    modules = {"torch": "torch", "nn": "torch.nn", "fx": "torch.fx", "F": "torch.nn.functional"}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "torch":
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Attribute):
            text = ast.unparse(node)
            first, _, rest = text.partition(".")
            if first in modules and text.replace(".", "").replace("_", "").isalnum():
                yield f"{modules[first]}.{rest}"


def is_private(name):
    return any(part.startswith("_") and not part.startswith("__") for part in name.split("."))


# Not private, though they look like it: torch documents them.
DOCUMENTED = {"torch._assert"}


@pytest.mark.parametrize(
    "path", [p for p in FILES if p.name != "_torch.py"], ids=lambda p: str(p.relative_to(PACKAGE))
)
def test_private_names_of_torch_are_in_one_file(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    assert not {name for name in chains(tree) if is_private(name)} - DOCUMENTED


def test_private_names_of_torch_are_there():
    """Says which of them a release of torch has lost."""
    names = {name for name in chains(ast.parse(inspect.getsource(_torch))) if is_private(name)}
    assert len(names) > 20
    gone = []
    for name in sorted(names):
        module, _, attribute = name.rpartition(".")
        try:
            found = importlib.import_module(module)
        except ImportError:
            found = torch
            for part in module.split(".")[1:]:
                found = getattr(found, part, None)
        try:
            is_module = importlib.util.find_spec(name) is not None
        except (ImportError, ValueError):
            is_module = False
        if not (hasattr(found, attribute) or is_module):
            gone.append(name)
    for made, attributes in _torch.ATTRIBUTES.items():
        thing = eval(made, {"torch": torch})
        gone += [f"{made}.{name}" for name in attributes if not hasattr(thing, name)]
    assert not gone
