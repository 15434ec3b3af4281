"""Python functions -> their syntax trees, proved to be what runs.

In: a code object. Out: the syntax tree of the function it was compiled from. The file is compiled
again, and only a tree whose code is equal to the given one is handed out: a file that has changed
since it was imported, or code that a tool has rewritten, has no tree.
"""

from __future__ import annotations

import ast
import functools
import linecache
import sys
from collections import defaultdict
from collections.abc import Iterator
from types import CodeType, FunctionType
from typing import Any

from fxtie.tracing.stops import Stop

FunctionNode = ast.FunctionDef | ast.Lambda

FIXED_PACKAGES = frozenset({"torch", "fxtie", "enum"})
"""Packages whose functions and classes are taken to stay what they are: they need no guards."""

_FUTURE = 0x1FF0000  # the flags of `from __future__ import ...`


def function_node(function: FunctionType) -> FunctionNode:
    """The syntax tree of a function.

    Raises:
        Stop: if there is no source that is sure to be what runs.
    """
    code = function.__code__
    flags = code.co_flags & _FUTURE
    node = _functions(code.co_filename, flags).get(code)
    if node is None:
        linecache.checkcache(code.co_filename)  # the file, or the cell, may be new
        _functions.cache_clear()
        node = _functions(code.co_filename, flags).get(code)
    if node is None:
        raise Stop(
            f"runs {code.co_name}, whose source code is not found: made at a prompt or by exec, or "
            f"changed since"
        )
    return node


@functools.cache
def _functions(filename: str, flags: int) -> dict[CodeType, FunctionNode]:
    """The functions of a file by their code."""
    try:
        tree = ast.parse("".join(linecache.getlines(filename)), filename)
        module = compile(tree, filename, "exec", flags=flags, dont_inherit=True)
    except (SyntaxError, ValueError):  # no Python, or a cell with commands of the notebook's
        return {}
    nodes: dict[tuple[str, int], list[FunctionNode]] = defaultdict(list)
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef):
            first = min([node.lineno, *(d.lineno for d in node.decorator_list)])
            nodes[node.name, first].append(node)
        elif isinstance(node, ast.Lambda):
            nodes["<lambda>", node.lineno].append(node)
    found = {}
    for code in _codes(module):
        candidates = nodes.get((code.co_name, code.co_firstlineno), [])
        if len(candidates) > 1:  # lambdas on one line
            candidates = [node for node in candidates if _starts_at(code, node)]
        if len(candidates) == 1:
            found[code] = candidates[0]
    return found


def _codes(code: CodeType) -> Iterator[CodeType]:
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield constant
            yield from _codes(constant)


def names_in(code: CodeType) -> set[str]:
    """The globals, attributes and methods that code names, functions inside of it included."""
    return {name for part in (code, *_codes(code)) for name in part.co_names}


def own_of(holder: Any, key: str) -> Any:
    """What a function or a class is made of; the items of a dict, which may change by itself."""
    value = getattr(holder, key)
    return (*value.items(),) if type(value) is dict else value


def package_of(value: Any) -> str:
    """The name of the package that defines a function or a class."""
    if isinstance(value, FunctionType):  # `functools.wraps` gives it the name of another's
        return str(value.__globals__.get("__name__", "")).partition(".")[0]
    return str(getattr(value, "__module__", "")).partition(".")[0]


def _starts_at(code: CodeType, node: FunctionNode) -> bool:
    """Whether code has an instruction for the very beginning of a function's body."""
    if sys.version_info < (3, 11) or not isinstance(node, ast.Lambda):
        return False
    body = node.body
    span = body.lineno, body.end_lineno, body.col_offset, body.end_col_offset
    return span in code.co_positions()
