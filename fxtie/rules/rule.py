"""What a user writes: `Rule`, `Tie`, and the patterns that select names.

In: strings and callables as typed by the user. Out: immutable objects that `plan.py` expands over
a model. Nothing here looks at a model.
"""

from __future__ import annotations

import copy
import re
import string
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

from torch import nn

from fxtie.errors import RuleError
from fxtie.rules.bank import Bank
from fxtie.transforms import Transform, same
from fxtie.transforms.protocol import transform_name

TargetPattern: TypeAlias = str | Callable[[str, nn.Module], bool]
SourcePattern: TypeAlias = str | Sequence[str] | Bank | None


@dataclass(frozen=True)
class Match:
    """What the wildcards or groups of a pattern matched in one name."""

    groups: tuple[str, ...] = ()
    named: Mapping[str, str] | None = None

    def fill(self, template: str) -> str:
        """`template` with `{0}`, `{1}`, `{name}` replaced.

        Raises:
            LookupError: if there is no such group.
            ValueError: if the braces hold anything else than a group.
        """
        for _, group, form, conversion in string.Formatter().parse(template):
            if group is not None and (form or conversion or not re.fullmatch(r"\w*", group)):
                raise ValueError(f"{{{group}}} is no group")
        filled = string.Formatter().vformat(template, self.groups, self.named or {})
        return ".".join(filter(None, filled.split(".")))  # a `**` may have matched nothing


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


@dataclass(frozen=True)
class Tie:
    """One resolved fact: a target tensor, the source tensors, and the transform between them.

    Args:
        target: tensor name, as in `named_parameters()`.
        sources: tensor names, in the order in which the transform takes them. A single name may
            be given as a string. Empty for a transform that makes the tensor from nothing.
        transform: callable on the source tensors, or an `nn.Module`.

    Example:
        >>> import torch
        >>> Tie("conv_2.weight", "conv_1.weight", torch.square).sources
        ('conv_1.weight',)
    """

    target: str
    sources: tuple[str, ...]
    transform: Transform = same

    def __post_init__(self) -> None:
        if not isinstance(self.target, str):
            raise RuleError(f"The target of a tie is a tensor's name, not {self.target!r}.")
        object.__setattr__(self, "sources", _as_sources(self.sources))
        if not callable(self.transform):
            raise RuleError(
                f"The transform of {self.target!r} is not callable: {self.transform!r}."
            )

    def __deepcopy__(self, memo: dict[int, Any]) -> Tie:
        """Transforms with parameters are copied with the model. Others need not be; some can't."""
        if isinstance(self.transform, nn.Module):
            return replace(self, transform=copy.deepcopy(self.transform, memo))
        return self

    @property
    def is_self_derived(self) -> bool:
        """Whether the target is derived from its own stored value."""
        return self.sources == (self.target,)


class Rule:
    """Targets, sources and a transform per tensor, by name patterns.

    Args:
        target: which modules (or single tensors) to derive. A dotted name; `*` matches within one
            component, `**` any number of components; `re:` starts a regular expression that must
            match the whole name; a callable `(name, module) -> bool` selects modules.
        source: the module (or tensor) to derive from. `{0}`, `{1}`, `{name}` stand for what the
            wildcards or groups of `target` matched. A tuple gives the transform one tensor per
            source; a `fxtie.Bank` all of its templates; `None` none at all.
        weight: transform of the weight, or of the tensor when `target` names a tensor.
            `None` leaves the target its own.
        bias: transform of the bias. Ignored where the target has no bias.
        exclude: a pattern, or several, of targets to leave alone.
        count: how many targets the rule must match.
        **tensors: transforms of tensors with other names (`in_proj_weight=f`).

    Raises:
        RuleError: for arguments that cannot fit any model.

    Example:
        >>> import torch
        >>> Rule("conv_2", "conv_1", weight=torch.square)
        Rule('conv_2', 'conv_1', weight=square)
        >>> Rule("blocks.*.fc", "blocks.0.fc", bias=None, count=11)
        Rule('blocks.*.fc', 'blocks.0.fc', bias=None, count=11)
    """

    def __init__(
        self,
        target: TargetPattern,
        source: SourcePattern,
        weight: Transform | None = same,
        bias: Transform | None = same,
        *,
        exclude: TargetPattern | Iterable[TargetPattern] | None = None,
        count: int | None = None,
        **tensors: Transform | None,
    ) -> None:
        self.target = Pattern(target)
        self.bank = source if isinstance(source, Bank) else None
        self.sources = _as_sources(source)
        self.transforms: dict[str, Transform | None] = {"weight": weight, "bias": bias, **tensors}
        self.named_tensors = frozenset(tensors)
        for name, transform in self.transforms.items():
            if transform is not None and not callable(transform):
                raise RuleError(
                    f"{name}= of the rule for {self.target} is a callable on tensors, fxtie.same "
                    f"or None, not {type(transform).__name__}: {transform!r}."
                )
        if all(transform is None for transform in self.transforms.values()):
            raise RuleError(f"The rule for {self.target} ties nothing: every transform is None.")
        if exclude is None:
            exclude = ()
        elif isinstance(exclude, str) or callable(exclude):
            exclude = (exclude,)
        elif not isinstance(exclude, Iterable):
            raise RuleError(
                f"exclude= of the rule for {self.target} is a pattern or several, not {exclude!r}."
            )
        self.exclude = tuple(map(Pattern, exclude))
        if count is not None and (
            isinstance(count, bool) or not isinstance(count, int) or count < 1
        ):
            raise RuleError(f"count= of the rule for {self.target} is a positive int: {count!r}.")
        self.count = count

    @property
    def source_follows_match(self) -> bool:
        """Whether the source is spelled with what the target's pattern matched."""
        return any("{" in source for source in self.sources)

    def __repr__(self) -> str:
        if self.bank is not None:
            source: object = self.bank
        elif len(self.sources) == 1:
            source = self.sources[0]
        else:
            source = self.sources or None
        parts = [repr(str(self.target)), repr(source)]
        for name, transform in self.transforms.items():
            if name in self.named_tensors or transform is not same:
                parts.append(f"{name}={transform_name(transform)}")
        if self.exclude:
            parts.append(f"exclude={[str(pattern) for pattern in self.exclude]}")
        if self.count is not None:
            parts.append(f"count={self.count}")
        return f"Rule({', '.join(parts)})"


Rules: TypeAlias = Rule | Tie | Iterable[Rule | Tie]


def _as_sources(source: SourcePattern) -> tuple[str, ...]:
    if source is None or isinstance(source, Bank):
        return ()
    if isinstance(source, str):
        return (source,)
    sources = tuple(source) if isinstance(source, Iterable) else (source,)
    for name in sources:
        if not isinstance(name, str):
            raise RuleError(f"A source is a dotted name, not {type(name).__name__}: {name!r}.")
    return sources


def as_rules(rules: Rules) -> tuple[Rule | Tie, ...]:
    """One rule or several, as a tuple. Raises RuleError for anything that is neither."""
    if isinstance(rules, Rule | Tie):
        return (rules,)
    if isinstance(rules, str) or not isinstance(rules, Iterable):
        raise RuleError(
            f"Rules are fxtie.Rule or fxtie.Tie, not {type(rules).__name__}: {rules!r}."
        )
    listed = tuple(rules)
    for rule in listed:
        if not isinstance(rule, Rule | Tie):
            raise RuleError(
                f"Rules are fxtie.Rule or fxtie.Tie, not {type(rule).__name__}: {rule!r}."
            )
    if not listed:
        raise RuleError("There are no rules: the list is empty.")
    return listed
