"""What a user writes: `Rule` and `Tie`. Nothing here looks at a model."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

from torch import nn

from fxtie.errors import RuleError
from fxtie.rules.free import Entry, Free
from fxtie.rules.patterns import (
    Pattern,
    TargetPattern,
    check_template,
    has_arithmetic,
    has_groups,
)
from fxtie.transforms import Transform, same
from fxtie.transforms.protocol import check_transform, set_fields, transform_name

OneSource: TypeAlias = str | Free | Entry
SourcePattern: TypeAlias = OneSource | Sequence[OneSource] | None


@dataclass(frozen=True)
class Each:
    """A transform for each match. Made by `fxtie.each`."""

    make: Callable[..., Transform]

    def __repr__(self) -> str:
        return f"each({transform_name(self.make)})"


def each(make: Callable[..., Transform]) -> Each:
    """A transform that depends on what the rule's pattern has matched.

    Args:
        make: called once for each target tensor, when the model is planned, with what the wildcards
            or groups of the rule's target matched, as strings: by position, or by name if the
            pattern has named groups. Returns the transform for this target.

    Raises:
        RuleError: if `make` is not callable.

    Example:
        >>> import fxtie
        >>> from fxtie import transforms as T
        >>> net = nn.Sequential(*(nn.Conv2d(4, 4, 3) for _ in range(4)))
        >>> rule = fxtie.Rule("*", "0", weight=fxtie.each(lambda i: T.rot90(int(i))))
        >>> tied = fxtie.transform(net, rule)
        >>> import torch
        >>> torch.equal(tied[3].weight, net[0].weight.rot90(3, (2, 3)))
        True
    """
    if not callable(make):
        raise RuleError(f"fxtie.each takes a function that makes a transform, not {make!r}.")
    return Each(make)


@dataclass(frozen=True, init=False, repr=False)
class Tie:
    """One resolved fact: target tensors, source tensors, and the transform between them.

    Args:
        target: tensor name, as in `named_parameters()`. Several, as a tuple, if the transform
            returns as many tensors: it runs once for all of them.
        sources: tensor names, in the order in which the transform takes them; a `fxtie.Bank`,
            `fxtie.Tensors` or one tensor of these may stand among them. One of them needs no tuple.
            None for a transform that makes the tensor from nothing. A target among its own sources
            stays stored; its transform reads the stored value, all others read the derived one.
        transform: callable on the source tensors, or an `nn.Module`.

    Raises:
        RuleError: for a target that is no name, a source that is none of these, a transform that is
            not callable.

    Example:
        >>> import torch
        >>> Tie("conv_2.weight", "conv_1.weight", torch.square).sources
        ('conv_1.weight',)
        >>> split = Tie(("q.weight", "k.weight"), "qk.weight", lambda w: w.chunk(2))
        >>> split.targets
        ('q.weight', 'k.weight')
    """

    targets: tuple[str, ...]
    sources: tuple[Any, ...]
    transform: Transform

    def __init__(
        self, target: str | Sequence[str], sources: SourcePattern, transform: Transform = same
    ) -> None:
        targets = (target,) if isinstance(target, str) else tuple(target or ())
        if not targets or not all(isinstance(name, str) for name in targets):
            raise RuleError(f"The target of a tie is a tensor's name, or several, not {target!r}.")
        if len(set(targets)) < len(targets):
            raise RuleError(f"A tie has the same target twice: {targets!r}.")
        check_transform(transform, f"The transform of {target!r}")
        set_fields(self, targets=targets, sources=_as_sources(sources), transform=transform)

    @property
    def target(self) -> str:
        """The target's name. The ties of a plan have one each."""
        return ", ".join(self.targets)

    @property
    def is_self_derived(self) -> bool:
        """Whether the target's own stored value is a source."""
        return self.target in self.sources

    def __deepcopy__(self, memo: dict[int, Any]) -> Tie:
        """Transforms with parameters are copied with the model. Others need not be; some can't."""
        if isinstance(getattr(self.transform, "whole", self.transform), nn.Module):
            return Tie(self.targets, self.sources, copy.deepcopy(self.transform, memo))
        return self

    def __repr__(self) -> str:
        named = (one[0] if len(one) == 1 else one for one in (self.targets, self.sources))
        return f"Tie({', '.join(map(repr, named))}, {transform_name(self.transform)})"


class Rule:
    """Targets, sources and a transform per tensor, by name patterns.

    Args:
        target: which modules (or single tensors) to derive. A dotted name; `*` matches within one
            component, `**` any number of components; `re:` starts a regular expression that must
            match the whole name; a callable `(name, module) -> bool` selects modules. A module
            means all of it: every parameter, those of its children included, is derived from the
            one of the same relative name. Of modules within one another that all match, a tensor
            goes with the innermost. Several patterns, as a tuple, are the targets of one transform
            that returns as many tensors; their wildcards must match the same.
        source: the module (or tensor) to derive from. `{0}`, `{1}`, `{name}` stand for what the
            wildcards or groups of `target` matched, `{0 - 1}`, `{0 % 4}`, `{n // 2 * 2}` for
            arithmetic on that. A target that arithmetic makes its own source is left alone. A tuple
            gives the transform one tensor per source; a `fxtie.Bank` or `fxtie.Tensors` all of its
            tensors, `bank[0]` or `tensors["A"]` one of them; `None` none at all. A target among
            several sources is its own stored value.
        weight: transform of tensors called `weight`, or of the tensor when `target` names a tensor.
            `None` leaves the target its own. `fxtie.each` makes one for each match.
        bias: transform of tensors called `bias`. Ignored where the target has no bias.
        buffers: whether buffers are derived as well. One that is named by keyword always is.
        exclude: a pattern, or several, of targets to leave alone, or of what is inside of them.
        count: how many targets the rule must match.
        **tensors: transforms of tensors with other names (`in_proj_weight=f`). Those that no
            argument names are derived by `fxtie.same` if there is one source and one target, and
            else stay stored; the plan's last lines say which do.

    Raises:
        RuleError: for arguments that cannot fit any model.

    Example:
        >>> import torch
        >>> Rule("conv_2", "conv_1", weight=torch.square)
        Rule('conv_2', 'conv_1', weight=square)
        >>> Rule("blocks.*.fc", "blocks.0.fc", bias=None, count=11)
        Rule('blocks.*.fc', 'blocks.0.fc', bias=None, count=11)
        >>> Rule("layers.*", "layers.{0 // 2 * 2}")  # MobileLLM shares every layer with the next
        Rule('layers.*', 'layers.{0 // 2 * 2}')
    """

    def __init__(
        self,
        target: TargetPattern | Sequence[TargetPattern],
        source: SourcePattern,
        weight: Transform | Each | None = same,
        bias: Transform | Each | None = same,
        *,
        buffers: bool = False,
        exclude: TargetPattern | Iterable[TargetPattern] | None = None,
        count: int | None = None,
        **tensors: Transform | Each | None,
    ) -> None:
        several = isinstance(target, Sequence) and not isinstance(target, str)
        self.targets = tuple(map(Pattern, target if several else (target,)))  # type: ignore[arg-type]
        if not self.targets:
            raise RuleError("A rule has one target or more: its tuple of targets is empty.")
        self.sources = _as_sources(source)
        for name in self.names:
            check_template(name)
        self.transforms: dict[str, Any] = {"weight": weight, "bias": bias, **tensors}
        self.named_tensors = frozenset(tensors)
        self.buffers = buffers
        self.exclude = tuple(map(Pattern, _as_patterns(exclude, self.target)))
        self.count = count
        self._check()

    def _check(self) -> None:
        for name, transform in self.transforms.items():
            if transform is not None and not isinstance(transform, Each):
                check_transform(transform, f"{name}= of the rule for {self.target}")
        count = self.count
        if count is not None and (
            isinstance(count, bool) or not isinstance(count, int) or count < 1
        ):
            raise RuleError(f"count= of the rule for {self.target} is a positive int: {count!r}.")

    @property
    def target(self) -> Pattern:
        """The pattern of its targets; the first, if it has several."""
        return self.targets[0]

    @property
    def names(self) -> tuple[str, ...]:
        """The sources that are names of modules or tensors."""
        return tuple(source for source in self.sources if isinstance(source, str))

    @property
    def is_one_to_one(self) -> bool:
        """Whether a tensor can be derived by `fxtie.same`."""
        return len(self.targets) == len(self.sources) == 1 and not isinstance(self.sources[0], Free)

    @property
    def means_own_source(self) -> bool:
        """Whether a target that is its own source is meant to be: self-derived."""
        if any(map(has_arithmetic, self.names)):
            return False
        return self.target.is_literal or any(map(has_groups, self.names))

    def transform_of(self, name: str) -> Any:
        """The transform of tensors of this name; None if they stay stored."""
        transform = self.transforms.get(name, same)
        return None if transform is same and not self.is_one_to_one else transform

    def __repr__(self) -> str:
        target = tuple(map(str, self.targets)) if len(self.targets) > 1 else str(self.target)
        one = self.sources[0] if len(self.sources) == 1 else None
        source = self.sources or None if one is None else one
        parts = [repr(target), repr(source)]
        for name, transform in self.transforms.items():
            if name in self.named_tensors or transform is not same:
                parts.append(f"{name}={transform_name(transform)}")
        if self.buffers:
            parts.append("buffers=True")
        if self.exclude:
            parts.append(f"exclude={[str(pattern) for pattern in self.exclude]}")
        if self.count is not None:
            parts.append(f"count={self.count}")
        return f"Rule({', '.join(parts)})"


class HasRules(Protocol):
    """What has rules, such as what `suggest` returns."""

    @property
    def rules(self) -> Iterable[Rule | Tie]:
        """The rules."""
        ...


Rules: TypeAlias = Rule | Tie | Iterable[Rule | Tie] | HasRules


def _as_sources(source: Any) -> tuple[OneSource, ...]:
    if source is None:
        return ()
    if isinstance(source, OneSource):
        return (source,)
    sources = tuple(source) if isinstance(source, Iterable) else (source,)
    for one in sources:
        if not isinstance(one, OneSource):
            raise RuleError(
                f"A source is a dotted name, a fxtie.Bank, fxtie.Tensors or a tensor of these, not "
                f"{type(one).__name__}: {one!r}."
            )
    return sources


def _as_patterns(patterns: Any, target: Pattern) -> tuple[TargetPattern, ...]:
    if patterns is None:
        return ()
    if isinstance(patterns, str) or callable(patterns):
        return (patterns,)
    if not isinstance(patterns, Iterable):
        raise RuleError(
            f"exclude= of the rule for {target} is a pattern or several, not {patterns!r}."
        )
    return tuple(patterns)


def as_rules(rules: Rules) -> tuple[Rule | Tie, ...]:
    """One rule or several, as a tuple. Raises RuleError for anything that is neither."""
    rules = getattr(rules, "rules", rules)
    if isinstance(rules, Rule | Tie):
        return (rules,)
    if isinstance(rules, str) or not isinstance(rules, Iterable):
        raise _no_rule(rules)
    listed = tuple(rules)
    for rule in listed:
        if not isinstance(rule, Rule | Tie):
            raise _no_rule(rule)
    if not listed:
        raise RuleError("There are no rules: the list is empty.")
    return listed


def _no_rule(value: Any) -> RuleError:
    return RuleError(
        f"Rules are fxtie.Rule or fxtie.Tie, not {type(value).__name__}: {value!r}. "
        f"Write fxtie.Rule(target, source), or a list of such rules."
    )
