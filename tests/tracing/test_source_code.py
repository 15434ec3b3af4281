"""A syntax tree is handed out only if it is what runs."""

import itertools
import linecache
import sys
import types

import pytest
import torch
from elsewhere import Two

import fxtie
from fxtie.tracing.source_code import function_node
from fxtie.tracing.stops import Stop

NUMBERS = itertools.count()
RULE = fxtie.Rule("b", "a", weight=torch.square)


def defined(source, name="f", lines=None):
    """A function made of source code, of which a file shows these lines."""
    filename = f"<source {next(NUMBERS)}>"
    lines = (source if lines is None else lines).splitlines(keepends=True)
    linecache.cache[filename] = (1, None, lines, filename)
    module = types.ModuleType("made")
    exec(compile(source, filename, "exec"), vars(module))
    return vars(module)[name]


def test_the_tree_of_a_function():
    node = function_node(defined("def f(x):\n    return x + 1\n"))
    assert node.name == "f" and node.lineno == 1


@pytest.mark.parametrize(
    "shown",
    [
        "def f(x):\n    return x + 2\n",  # edited since
        "\ndef f(x):\n    return x + 1\n",  # moved since
        "",  # nothing to be found
        "def f(x):\n",  # not Python
    ],
)
def test_other_source_is_not_believed(shown):
    function = defined("def f(x):\n    return x + 1\n", lines=shown)
    with pytest.raises(Stop, match="source code is not found"):
        function_node(function)


def test_lambdas_on_one_line():
    source = "f, g = lambda x: x + 1, lambda x: x + 2\n"
    for name, number in (("f", 1), ("g", 2)):
        function = defined(source, name)
        if sys.version_info < (3, 11):  # whose code objects don't tell where on a line they begin
            with pytest.raises(Stop):
                function_node(function)
        else:
            assert function_node(function).body.right.value == number


def test_a_forward_without_source_is_kept():
    """As one that is typed at Python's prompt, or made by `exec`."""
    forward = defined("def forward(self, x):\n    return self.b(self.a(x))\n", "forward", lines="")
    model = type("Model", (Two,), {"forward": forward})()
    tied = fxtie.transform(model, RULE)
    (kept, *_) = fxtie.report(tied).kept
    assert kept.reason.startswith("runs forward, whose source code is not found")
    fxtie.verify(model, tied, torch.randn(3, 4))


def test_decorated_and_nested_functions():
    source = (
        "import functools\n"
        "def wrap(function):\n"
        "    @functools.wraps(function)\n"
        "    def wrapped(*args):\n"
        "        return function(*args) * 2\n"
        "    return wrapped\n"
        "@wrap\n"
        "def f(self, x):\n"
        "    return self.b(self.a(x))\n"
    )
    forward = defined(source)
    assert function_node(forward).name == "wrapped"
    assert function_node(forward.__wrapped__).name == "f"
    model = type("Model", (Two,), {"forward": forward})()
    tied = fxtie.transform(model, RULE)
    assert not fxtie.report(tied).kept
    fxtie.verify(model, tied, torch.randn(3, 4))
