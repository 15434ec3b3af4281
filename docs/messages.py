"""The messages of errors and warnings, read from the source of fxtie.

In: the package's files. Out: a `Message` for each text that is raised, is noted as a fault of rules
or is warned of, with … in place of what differs.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple, TypeAlias

PACKAGE = Path(__file__).parents[1] / "fxtie"
GAP = "…"
_NO_ERRORS = {"Stop", "NotImplementedError"}  # why a module is kept; what a subclass has to write
_IS_ERROR = re.compile(r"(Error|Fault|Vacuous|Stop)$")
_TELLS = re.compile(r"_?why_|fault_between$|merging$|proves_nothing$")  # return a message
_WORDS = re.compile(r"[a-z]{2,}[^…]* [^…]*[a-z]{2,}")

Function: TypeAlias = ast.FunctionDef


class Message(NamedTuple):
    """A text of an error or a warning.

    Attributes:
        text: it, with … for what differs.
        where: the file and the function that it stands in: `rules/free.py:Bank.__init__`.
    """

    text: str
    where: str

    def fits(self, text: str) -> bool:
        """Whether a text, or a part of it, is this message."""
        parts = map(re.escape, self.text.split(GAP))
        return re.search(".*?".join(parts), " ".join(text.split()), re.DOTALL) is not None


def messages() -> list[Message]:
    """All of the package, file by file."""
    source = _Source()
    found = (
        Message(text, where)
        for where, function in source.functions()
        for expression in (*_raised(function), *_noted(function))
        for text in source.read(expression, function)
    )
    return list(dict.fromkeys(found))


def handed_on() -> set[str]:
    """The functions that raise a text which they have from elsewhere."""
    source = _Source()
    return {
        where
        for where, function in source.functions()
        for expression in _raised(function)
        if not source.read(expression, function)
    }


class _Source:
    """Follows names and calls to the strings that they stand for."""

    def __init__(self) -> None:
        # Without those of `tracing`: why there is no graph stands in the report.
        self.files = {
            path.relative_to(PACKAGE).as_posix(): ast.parse(path.read_text(encoding="utf-8"))
            for path in sorted(PACKAGE.rglob("*.py"))
            if path.parent.name != "tracing"
        }
        self.by_name: dict[str, dict[Function, str]] = {}  # functions and their files
        self.constants: dict[str, ast.expr] = {}
        for name, tree in self.files.items():
            for node in ast.walk(tree):
                if isinstance(node, Function):
                    self.by_name.setdefault(node.name, {})[node] = name
            for node in tree.body:
                if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
                    self.constants[node.targets[0].id] = node.value

    def functions(self) -> Iterator[tuple[str, Function]]:
        """File and name, and the function."""
        for name, tree in self.files.items():
            for qualname, function in _functions(tree):
                yield f"{name}:{qualname}", function

    def read(self, expression: ast.expr, function: Function) -> list[str]:
        """The messages that an expression may be: those of its texts that have words."""
        found = (text.replace("<target>", GAP) for text in self.texts(expression, function))
        short = (" ".join(re.sub(r"(…\s*)+…", GAP, text).split()) for text in found)
        return list(filter(_WORDS.search, short))

    def texts(self, node: ast.expr, function: Function, *, follow: bool = True) -> Iterator[str]:
        """What an expression may be, as text. A call that is all of it is followed once."""
        match node:
            case ast.Constant(value=str(text)):
                yield text
            case ast.JoinedStr(values=parts):
                text = "".join(self.part(part, function) for part in parts)
                yield text
                if not _WORDS.search(text):  # then the message stands in one of the parts
                    for part in parts:
                        if isinstance(part, ast.FormattedValue):
                            yield from self.texts(part.value, function, follow=follow)
            case ast.BinOp(left=left, op=ast.Add(), right=right):
                for a in self.texts(left, function, follow=False):
                    for b in self.texts(right, function, follow=False):
                        yield a + b
            case ast.IfExp(body=body, orelse=other):
                for one in (body, other):
                    yield from self.texts(one, function, follow=follow)
            case ast.BoolOp(values=items) | ast.List(elts=items) | ast.Tuple(elts=items):
                for item in items:
                    yield from self.texts(item, function, follow=follow)
            case ast.ListComp(elt=item):
                yield from self.texts(item, function, follow=follow)
            case ast.Name(id=name) if assigned := [*_assigned(name, function)]:
                for value in assigned:
                    yield from self.texts(value, function, follow=follow)
            case ast.Call(func=ast.Attribute(value=ast.JoinedStr() as text)):  # .rstrip()
                yield from self.texts(text, function)
            case ast.Call() if follow:
                for called in self.called(node, function):
                    for value in _returned(called):
                        yield from self.texts(value, called, follow=False)
            case _:
                yield GAP

    def called(self, call: ast.Call, function: Function) -> list[Function]:
        """The functions that a call may be of: those of its own file, if it is of one."""
        found = self.by_name.get(_name(call.func), {})
        here = self.by_name[function.name][function]
        return [one for one, file in found.items() if file == here] or list(found)

    def part(self, part: ast.expr, function: Function) -> str:
        """A part of an f-string: a name that stands for one text is that."""
        if isinstance(part, ast.Constant):
            return str(part.value)
        assert isinstance(part, ast.FormattedValue)
        if isinstance(part.value, ast.Name):
            found = [*_assigned(part.value.id, function), self.constants.get(part.value.id)]
            if isinstance(found[0], ast.Constant) and len(found) < 3:
                value = found[0].value
                return repr(value) if part.conversion == ord("r") else str(value)
        return GAP


def _functions(tree: ast.AST, prefix: str = "") -> Iterator[tuple[str, Function]]:
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, Function):
            yield prefix + node.name, node
        elif isinstance(node, ast.ClassDef):
            yield from _functions(node, f"{prefix}{node.name}.")


def _raised(function: Function) -> Iterator[ast.expr]:
    """What errors and warnings are made of."""
    for node in ast.walk(function):
        match node:
            case ast.Call(func=func, args=[told, *_]) if _name(func) not in _NO_ERRORS:
                if _name(func) == "warn" or _IS_ERROR.search(_name(func)):
                    yield told


def _noted(function: Function) -> Iterator[ast.expr]:
    """What errors get later: faults that are collected, and messages that are returned."""
    for node in ast.walk(function):
        match node:
            case ast.Call(func=ast.Attribute(value=owner, attr="append"), args=[told]):
                if _name(owner).endswith("faults"):
                    yield told
            case ast.AugAssign(target=target, value=told) if _name(target).endswith("faults"):
                yield told
            case ast.Assign(targets=[ast.Name(id="fault")], value=told):
                yield told
            case ast.Call(func=ast.Attribute(attr="note"), args=[_, told, _]):
                yield told
            case ast.Call(func=ast.Attribute(attr="fault"), args=[told, *_]):
                yield told
            case ast.Return(value=ast.Tuple(elts=[_, ast.JoinedStr() | ast.Constant() as told])):
                yield told
    if _TELLS.match(function.name):
        yield from _returned(function)


def _assigned(name: str, function: Function) -> Iterator[ast.expr]:
    for node in ast.walk(function):
        match node:
            case ast.Assign(targets=[ast.Name(id=target)], value=value) if target == name:
                if name not in {n.id for n in ast.walk(value) if isinstance(n, ast.Name)}:
                    yield value


def _returned(function: Function) -> Iterator[ast.expr]:
    for node in ast.walk(function):
        if isinstance(node, ast.Return) and node.value is not None:
            yield node.value


def _name(node: ast.expr) -> str:
    match node:
        case ast.Name(id=name) | ast.Attribute(attr=name):
            return name
    return ""
