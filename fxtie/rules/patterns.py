"""Name patterns, and the names that templates such as `"layers.{0 // 2}"` make of a match."""

from __future__ import annotations

import ast
import operator
import re
import string
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

from torch import nn

from fxtie.errors import RuleError

TargetPattern: TypeAlias = str | Callable[[str, nn.Module], bool]


@dataclass(frozen=True)
class Match:
    """What the wildcards or groups of a pattern matched in one name."""

    groups: tuple[str, ...] = ()
    named: Mapping[str, str] | None = None

    def fill(self, template: str) -> str:
        """`template` with what stands in braces replaced: a group, or arithmetic on groups.

        Raises:
            LookupError: if there is no such group.
            ValueError: if a group that is calculated with is no number, or divides by zero.

        >>> Match(("5",)).fill("layers.{0 // 2}.fc{0}")
        'layers.2.fc5'
        """
        filled = []
        unnumbered = iter(range(len(self.groups) + 1))
        for text, expression in _parts(template):
            filled.append(text)
            if expression == "":
                filled.append(self._group(next(unnumbered)))
            elif expression is not None:
                tree = _parsed(expression)
                value = self._group(_key(tree)) if _is_group(tree) else self._number(tree, tree)
                filled.append(str(value))
        # A `**` may have matched nothing.
        return ".".join(filter(None, "".join(filled).split(".")))

    def _group(self, key: int | str) -> str:
        groups: dict[Any, str] = {**dict(enumerate(self.groups)), **(self.named or {})}
        if key not in groups:
            raise LookupError(f"{{{key}}}")
        return groups[key]

    def _number(self, node: ast.expr, whole: ast.expr) -> int:
        if isinstance(node, ast.BinOp):
            a, b = self._number(node.left, whole), self._number(node.right, whole)
            if b == 0 and isinstance(node.op, ast.FloorDiv | ast.Mod):
                raise ValueError(f"{ast.unparse(whole)} divides by zero")
            return _OPERATORS[type(node.op)](a, b)
        if isinstance(node, ast.Constant) and node is not _first(whole):
            return int(_key(node))
        text = self._group(_key(node))
        if not re.fullmatch(r"[0-9]{1,18}", text):
            raise ValueError(f"{text!r} is no number, in {{{ast.unparse(whole)}}}")
        return int(text)


def check_template(template: str) -> None:
    """Refuse what braces can't hold.

    Raises:
        RuleError: if they hold anything but a group or arithmetic on groups.
    """
    try:
        for _, expression in _parts(template):
            if expression:
                _check(_parsed(expression), expression)
    except ValueError as error:
        raise RuleError(
            f"The source {template!r} can't be read: {error}. In braces stands what the target's "
            f"pattern has matched, {{0}}, {{1}}, ... or {{name}}, or arithmetic on it, such as "
            f"{{0 - 1}} or {{n // 2 * 2}}: + - * // % and parentheses. The first number is a "
            f"wildcard's, all others are numbers."
        ) from error


def has_groups(template: str) -> bool:
    """Whether a template depends on what was matched."""
    return any(expression is not None for _, expression in _parts(template))


def has_arithmetic(template: str) -> bool:
    """Whether a template calculates with what was matched."""
    return any(
        expression and not _is_group(_parsed(expression)) for _, expression in _parts(template)
    )


def _parts(template: str) -> Iterator[tuple[str, str | None]]:
    """The text before each pair of braces, and what they hold; None at the end."""
    for text, expression, form, conversion in string.Formatter().parse(template):
        if form or conversion:
            raise ValueError(f"{{{expression}{conversion and '!'}{form and ':'}}} is no group")
        yield text, expression


def _parsed(expression: str) -> ast.expr:
    try:
        return ast.parse(expression.strip(), mode="eval").body
    except (SyntaxError, RecursionError, MemoryError):
        raise ValueError(f"{{{expression}}} is no group") from None


def _check(node: ast.expr, expression: str) -> None:
    if isinstance(node, ast.BinOp) and type(node.op) in _OPERATORS:
        _check(node.left, expression)
        _check(node.right, expression)
    elif not _is_group(node):
        raise ValueError(f"{{{expression}}} is no group")


def _is_group(node: ast.expr) -> bool:
    return isinstance(node, ast.Name) or (
        isinstance(node, ast.Constant) and type(node.value) is int
    )


def _key(node: ast.expr) -> int | str:
    assert isinstance(node, ast.Name | ast.Constant)
    return node.id if isinstance(node, ast.Name) else node.value  # type: ignore[return-value]


def _first(node: ast.expr) -> ast.expr:
    """What an expression begins with."""
    while isinstance(node, ast.BinOp):
        node = node.left
    return node


_OPERATORS: Mapping[type, Callable[[int, int], int]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
}


class Pattern:
    """A compiled name pattern: a dotted name, `*`, `**`, `re:...`, or a callable.

    `*` matches within one component of a dotted name; `**` matches any number of components, none
    included.

    >>> Pattern("layer*.**.conv1").match("layer1.0.conv1").groups
    ('1', '0')
    >>> Pattern("re:layer(?P<n>[12])").match("layer2").named
    {'n': '2'}
    """

    def __init__(self, pattern: TargetPattern) -> None:
        self.pattern = pattern
        self.is_literal = False
        if not isinstance(pattern, str):
            if not callable(pattern):
                raise RuleError(
                    f"A target is a string or a callable (name, module) -> bool, "
                    f"not {type(pattern).__name__}: {pattern!r}."
                )
            self._regex = None
        elif pattern.startswith("re:"):
            try:
                self._regex = re.compile(pattern[3:])
            except re.error as error:
                raise RuleError(
                    f"The regular expression in {pattern!r} is wrong: {error}."
                ) from error
        else:
            self.is_literal = "*" not in pattern
            self._regex = re.compile(_glob_to_regex(pattern))

    def match(self, name: str, module: nn.Module | None = None) -> Match | None:
        """The match of `name` (and `module`, which a callable pattern needs), or None."""
        if self._regex is None:
            assert callable(self.pattern)
            return Match() if module is not None and self.pattern(name, module) else None
        found = self._regex.fullmatch(name)
        return found and Match(tuple(g or "" for g in found.groups()), found.groupdict())

    def __str__(self) -> str:
        if isinstance(self.pattern, str):
            return self.pattern
        return getattr(self.pattern, "__name__", repr(self.pattern))


def _glob_to_regex(pattern: str) -> str:
    """A regular expression for a dotted glob, one group per wildcard."""
    # A whole `**` component may match nothing, and then its dot goes with it.
    parts = re.split(r"(\*\*\.|\.\*\*|\*\*|\*)", pattern)
    translated = {"**.": r"(?:(.+)\.)?", ".**": r"(?:\.(.+))?", "**": r"(.*)", "*": r"([^.]*)"}
    return "".join(translated.get(part, re.escape(part)) for part in parts)
