"""Names of targets, each with its source -> the rule that one would write for them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from fxtie.looking.candidates import split_name
from fxtie.looking.grouping import grouped
from fxtie.planning.names import Names
from fxtie.rules.patterns import Match, Pattern
from fxtie.rules.rule import Rule
from fxtie.transforms import same

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
        self.by_depth = grouped(names.modules, lambda name: name.count("."))
        self.inside: dict[str, list[str]] = {name: [] for name in names.modules}
        for name, module in names.modules.items():
            for attr in (attr for attr, p in module._parameters.items() if p is not None):
                parts = [*name.split("."), attr] if name else [attr]
                for i in range(len(parts)):
                    self.inside[".".join(parts[:i])].append(".".join(parts[i:]))

    def rules(
        self, links: Sequence[tuple[str, str]], transforms: Mapping[str, Any]
    ) -> tuple[Rule, ...]:
        """The rules that derive each layer, all of one role, from its source, and nothing inside.

        `links` are names of a target and its source, `transforms` keyword arguments of `Rule`.
        """
        target = pattern_of([target for target, _ in links])
        source = _source(target, links)
        children = self.children(links[0][0], transforms)
        rule = None
        if source is not None and len(links) > 1:
            rule = self.rule(target, source, links, children, **transforms)
        if rule is not None:
            return (rule,)
        return tuple(
            Rule(target, source, exclude=[f"{target}.{c}" for c in children], **transforms)
            for target, source in links
        )

    def rule(
        self,
        target: str,
        source: str,
        links: Iterable[tuple[str, str]],
        children: Sequence[str] = (),
        most_excluded: int = _MOST_EXCLUDED,
        **transforms: Any,
    ) -> Rule | None:
        """The rule of this pattern, with its exceptions, if it derives just these links."""
        left, others = dict(links), {}
        rule = Rule(target, source)
        for name, match in self.matches(target, transforms):
            try:
                found = match.fill(source)
            except ValueError:  # arithmetic on what is no number
                found = None
            if found is not None and left.get(name) == found:
                del left[name]
            elif name in left:
                return None
            elif name != found or rule.means_own_source:
                others[name] = match
        exceptions = self.exceptions(target, others)
        if left or len(exceptions) > most_excluded or "" in others:
            return None
        exclude = [*exceptions, *(f"{target}.{child}" for child in children)]
        return Rule(target, source, exclude=exclude, **transforms)

    def exceptions(self, target: str, others: Mapping[str, Match]) -> list[str]:
        """Patterns for what is not to be derived: `layer*.0` for the first block of each layer."""
        if len(others) < 2:
            return list(others)
        start, _, end = target.rpartition("*")
        patterns = grouped(others, lambda name: f"{start}{others[name].groups[-1]}{end}")
        found: list[str] = []
        for pattern, names in patterns.items():
            match_all = {name for name, _ in self.matches(pattern, {})} == set(names)
            found += [pattern] if match_all else names
        return sorted(found)

    def matches(self, pattern: str, transforms: Mapping[str, Any]) -> Iterator[tuple[str, Match]]:
        """The modules that a rule would take, and what its wildcards match."""
        compiled = Pattern(pattern)
        for name in self.by_depth.get(pattern.count("."), ()):
            inside = self.inside[name] if name else [n for n in self.inside[""] if "." not in n]
            if any(_is_derived(tensor, transforms) for tensor in inside) and (
                match := compiled.match(name)
            ):
                yield name, match

    def children(self, name: str, transforms: Mapping[str, Any]) -> list[str]:
        """The children of a module in which the rule would derive something."""
        below = (n for n in self.inside[name] if "." in n and _is_derived(n, transforms))
        return list(dict.fromkeys(n.partition(".")[0] for n in below))


def _is_derived(tensor: str, transforms: Mapping[str, Any]) -> bool:
    return transforms.get(tensor.rpartition(".")[2], same) is not None


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
