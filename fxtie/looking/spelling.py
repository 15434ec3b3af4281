"""Layers by name -> the rule that one would write for them.

In: names of targets, each with its source. Out: a `Rule` with patterns if one says it, else a rule
for each.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fxtie.looking.candidates import split_name
from fxtie.planning.names import Names
from fxtie.rules.patterns import Pattern
from fxtie.rules.rule import Rule

_MOST_EXCLUDED = 2  # names; a pattern with more exceptions does not read well


def pattern_of(names: Sequence[str]) -> str:
    """The names as one pattern, with `*` for the indices that vary. They have one role.

    >>> pattern_of(["layers.2.blocks.0.fc", "layers.2.blocks.1.fc"])
    'layers.2.blocks.*.fc'
    """
    columns = zip(*map(split_name, names), strict=True)
    return ".".join(
        f"{column[0][0]}*" if len(set(column)) > 1 else "".join(column[0]) for column in columns
    )


class Speller:
    """Writes rules for one model."""

    def __init__(self, names: Names) -> None:
        # A pattern matches names of as many parts only, since there is no `**` in it.
        self.by_depth: dict[int, list[tuple[str, frozenset[str]]]] = {}
        for name, module in names.modules.items():
            if tensors := frozenset(names.tensors_of(module)):
                self.by_depth.setdefault(name.count("."), []).append((name, tensors))

    def rules(
        self, links: Sequence[tuple[str, str]], transforms: Mapping[str, Any]
    ) -> tuple[Rule, ...]:
        """The rules that derive each target from its source.

        Args:
            links: names of a target and its source. The targets have one role.
            transforms: as keyword arguments of `Rule`.
        """
        target = pattern_of([target for target, _ in links])
        source = _source(target, links)
        if source is not None and len(links) > 1:
            others = self.matches(target, transforms).difference(name for name, _ in links)
            others.discard(source)  # a rule passes by its own source
            if len(others) <= _MOST_EXCLUDED:
                return (Rule(target, source, exclude=sorted(others), **transforms),)
        return tuple(Rule(target, source, **transforms) for target, source in links)

    def matches(self, pattern: str, transforms: Mapping[str, Any]) -> set[str]:
        """The modules that a rule would take."""
        wanted = {"weight", "bias", *transforms}
        wanted -= {attr for attr, transform in transforms.items() if transform is None}
        match = Pattern(pattern).match
        return {
            name
            for name, tensors in self.by_depth.get(pattern.count("."), ())
            if wanted & tensors and match(name)
        }


def _source(target: str, links: Sequence[tuple[str, str]]) -> str | None:
    """The source of each link, spelled with what the pattern matches in its target."""
    starred = [i for i, part in enumerate(target.split(".")) if part.endswith("*")]
    matched = [[split_name(name)[i][1] for i in starred] for name, _ in links]
    sources = [split_name(source) for _, source in links]
    if len(set(map(len, sources))) > 1:
        return None
    parts = []
    for column in zip(*sources, strict=True):
        if len(set(column)) == 1:
            parts.append("".join(column[0]))
            continue
        indices = [index for _, index in column]
        group = [n for n in range(len(starred)) if indices == [m[n] for m in matched]]
        if not group or len({word for word, _ in column}) > 1:
            return None
        parts.append(f"{column[0][0]}{{{group[0]}}}")
    return ".".join(parts)
