"""Faults of rules that take more than a sentence: structures side by side, rules at odds."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from fxtie.planning.names import Names, Slot
from fxtie.rules.patterns import Pattern
from fxtie.rules.rule import Rule, Tie
from fxtie.tracing.user_class import derived_of
from fxtie.words import join

_MOST_ROWS = 12  # of a structure
_DERIVED = "derived"  # in place of a shape


def other_structure(names: Names, target: str, source: str, tied: Sequence[str]) -> str:
    """What is different in two modules, side by side."""
    has = {name: _shape(names, join(source, name)) for name in tied}
    lacks = [name for name in tied if has[name] in ("-", _DERIVED)]
    attrs = {name.rpartition(".")[2] for name in lacks}
    others = {name.rpartition(".")[2] for name in tied if name not in lacks}
    rows = [("", repr(target), repr(source))]
    rows += [(name, _shape(names, join(target, name)), has[name]) for name in tied]
    if len(rows) > _MOST_ROWS:  # what differs is what matters
        rows = [row for row in rows if row[0] in ("", *lacks)]
    shown = rows[: _MOST_ROWS + 1]
    widths = [max(len(row[i]) for row in shown) for i in range(3)]
    table = [" ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)) for row in shown]
    if len(rows) > len(shown):
        table.append(f"... {len(rows) - len(shown)} more")
    if _DERIVED in has.values():
        remedy = "Tie to what they are derived from, or give all rules at once."
    elif attrs.isdisjoint(others) and others:
        remedy = ", ".join(f"{name}=None" for name in sorted(attrs))
        remedy = f"Write {remedy} to leave {target!r} its own."
    else:
        remedy = "Tie what has the same structure, or leave parts out by exclude=."
    lines = "\n".join(f"     {line.rstrip()}" for line in table)
    return f"{target!r} has tensors that {source!r} has not. {remedy}\n{lines}"


def _shape(names: Names, name: str) -> str:
    slot = names.find(name)
    if not isinstance(slot, Slot):
        prefix, _, attr = name.rpartition(".")
        owner = names.modules.get(prefix)
        return _DERIVED if owner is not None and attr in derived_of(owner) else "-"
    return "x".join(map(str, slot.tensor.shape)) or "scalar"


def regular_expression(pattern: str) -> str:
    """A hint, if a pattern without `re:` has the look of a regular expression."""
    if pattern.startswith("re:") or not set(pattern) & set("[](){}?|+^$\\"):
        return ""
    written = f"re:{pattern}"
    return f" Only * and ** are wildcards there; a regular expression begins with re: {written!r}."


def deeper(pattern: str, names: Iterable[str]) -> str:
    """A hint, if names inside of other modules match: `h.*` where there is `transformer.h.0`."""
    if pattern.startswith("re:"):
        return ""
    inside = Pattern(f"**.{pattern}")
    found = next(filter(None, map(inside.match, names)), None)
    if found is None:
        return ""
    module = found.groups[0]
    written = f"{module}.{pattern}"
    return f" Inside of {module!r} there is: {written!r}."


def exception(first: Rule | Tie, second: Rule | Tie) -> str:
    """How to write that one of two rules is an exception to the other."""
    if first is second:
        return ""
    pairs = ((first, second), (second, first))
    found = [(general, special) for general, special in pairs if _covers(general, special)]
    if not found:
        return ""
    general, special = found[0]
    names = special.targets if isinstance(special, Tie) else tuple(map(str, special.targets))
    exclude = repr(names[0] if len(names) == 1 else list(names))
    return (
        f" If the one for {special.target} is the exception, write exclude={exclude} in {general}."
    )


def _covers(rule: Rule | Tie, other: Rule | Tie) -> bool:
    """Whether a rule is for more than another one: a pattern, or a module around its target."""
    if isinstance(rule, Tie):
        return False
    return not rule.target.is_literal or str(other.target).startswith(f"{rule.target}.")
