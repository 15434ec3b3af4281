"""The private names of torch that the package uses: in one file, and there in this release."""

import ast
import importlib
import inspect
import pathlib

import pytest
import torch

import fxtie
from fxtie import _torch

PACKAGE = pathlib.Path(fxtie.__file__).parent
FILES = sorted(PACKAGE.rglob("*.py"))


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
