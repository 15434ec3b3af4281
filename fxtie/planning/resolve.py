"""Rules + names -> ties: what the patterns match, what stays stored, and every fault."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import nn

from fxtie.errors import closest
from fxtie.planning.names import Names, Slot, SlotKey
from fxtie.planning.rule_faults import deeper, exception, other_structure, regular_expression
from fxtie.rules.free import Bank, Entry, Free
from fxtie.rules.patterns import Match, Pattern
from fxtie.rules.rule import Each, Rule, Tie
from fxtie.tracing.user_class import derived_of
from fxtie.transforms import same
from fxtie.transforms.parts import Part
from fxtie.words import free_name, join


class Resolved(NamedTuple):
    """A tie whose names exist."""

    tie: Tie
    target: Slot
    rule: Rule | Tie  # what it came from


@dataclass(frozen=True)
class _Matched:
    """What a rule derives at one match."""

    # The names of its modules or tensors, one for each of the rule's patterns.
    targets: tuple[str, ...]
    # Of modules, the names of their tensors, relative; of tensors, the empty name.
    tensors: tuple[str, ...]
    match: Match  # what the wildcards have matched

    @property
    def is_tensor(self) -> bool:
        return self.tensors == ("",)


class Resolver:
    """Goes through rules, collecting ties, modules to register, and every fault."""

    def __init__(self, model: nn.Module) -> None:
        self.names = Names(model)  # and those of free tensors
        self.faults: list[str] = []  # one sentence each
        self.resolved: dict[SlotKey, Resolved] = {}  # by the identity of the targets
        # Learnable transforms and free tensors, by the name under `ties`.
        self.modules: dict[str, nn.Module] = {}
        # Tensors inside of modules that matched which stay stored, and why.
        self.stored: dict[str, str] = {}
        self.free: dict[Free, str] = {}
        # Names below `ties` of a model that was tied before.
        self.taken = set(dict(model.named_children()).get("ties", nn.Module())._modules)

    def resolve(self, rule: Rule | Tie) -> None:
        if isinstance(rule, Tie):
            self.add(rule, rule)
        else:
            self.expand(rule)

    # -- a rule -> ties -------------------------------------------------------------------------

    def expand(self, rule: Rule) -> None:
        """The ties of a rule, and what is wrong with it."""
        before, found, expanded = len(self.faults), 0, 0
        matched = list(self.matches(rule))
        for one in matched:
            sources = self.fill_sources(rule, one)
            if sources is not None and self.is_own_source(rule, one, sources):
                continue
            found += 1
            if sources is not None:
                expanded += self.expand_match(rule, one, sources)
        is_told = expanded or len(self.faults) > before
        self.check_names(rule, matched)
        if not is_told:
            if not matched:
                why = self.nothing_matched(rule)
            elif not found:
                why = "matches nothing but its own source."
            else:
                why = f"ties nothing: {self.why_nothing(matched)}"
            self.faults.append(f"{rule} {why}")
        if rule.count is not None and found != rule.count:
            listed = ", ".join(one.targets[0] for one in matched[:10]) or "none"
            self.faults.append(
                f"{rule} must match {rule.count} targets and matches {found}: {listed}."
            )

    def matches(self, rule: Rule) -> Iterator[_Matched]:
        """What the target patterns match: modules, else tensors."""
        if len(rule.targets) == 1:
            for name, (match, tensors) in self.matches_of(rule, rule.target).items():
                yield _Matched((name,), tensors, match)
            return
        by_groups = [
            {match.groups: (name, match, tensors) for name, (match, tensors) in found.items()}
            for found in (self.matches_of(rule, pattern) for pattern in rule.targets)
        ]
        for groups, (name, match, tensors) in by_groups[0].items():
            others = [found.get(groups) for found in by_groups[1:]]
            names = tuple(other[0] for other in others if other is not None)
            if len(names) == len(others):
                yield _Matched((name, *names), tensors, match)
            else:
                missing = rule.targets[1 + others.index(None)]
                self.faults.append(
                    f"{rule}: {str(rule.target)!r} matches {name!r}, and {str(missing)!r} nothing "
                    f"with the same wildcards."
                )

    def matches_of(self, rule: Rule, pattern: Pattern) -> dict[str, tuple[Match, tuple[str, ...]]]:
        """What one pattern matches: modules with their tensors, else tensors."""
        matched = {
            name: match
            for name, module, match in self.matching(pattern, self.names.modules)
            if not self.excluded(rule, name, module)
        }
        modules = {
            name: (matched[name], self.relative(rule, name, tensors))
            for name, tensors in self.names.owned(matched).items()
        }
        # A pattern passes by what has no tensor of its own left, and a name is told of.
        found = {name: one for name, one in modules.items() if pattern.is_literal or one[1]}
        if found:
            return found
        return {
            name: (match, ("",))
            for name, _, match in self.matching(pattern, self.names.tensors)
            if not self.excluded(rule, name, None)
        }

    @staticmethod
    def matching(
        pattern: Pattern, names: Mapping[str, nn.Module | None]
    ) -> Iterator[tuple[str, nn.Module | None, Match]]:
        """The names that a pattern matches; of a literal one, without going through all."""
        if pattern.is_literal:
            called = str(pattern)
            names = {called: names[called]} if called in names else {}
        for name, module in names.items():
            if (match := pattern.match(name, module)) is not None:
                yield name, module, match

    def relative(self, rule: Rule, name: str, tensors: Sequence[str]) -> tuple[str, ...]:
        """Relative names of the tensors inside of a module that a rule does not exclude."""
        start = len(name) + 1 if name else 0
        return tuple(t[start:] for t in tensors if not self.excluded_inside(rule, t, name))

    @staticmethod
    def excluded(rule: Rule, name: str, module: nn.Module | None) -> bool:
        return any(pattern.match(name, module) is not None for pattern in rule.exclude)

    def excluded_inside(self, rule: Rule, tensor: str, inside: str) -> bool:
        """Whether a tensor, or a module on the way to it, is to be left alone."""
        if not rule.exclude:
            return False
        start = len(inside.split(".")) if inside else 0
        parts = tensor.split(".")
        names = [".".join(parts[:end]) for end in range(start + 1, len(parts) + 1)]
        return any(self.excluded(rule, name, self.names.modules.get(name)) for name in names)

    def fill_sources(self, rule: Rule, one: _Matched) -> tuple[Any, ...] | None:
        """The sources at a match: names filled in, and free tensors as they are."""
        try:
            return tuple(one.match.fill(s) if isinstance(s, str) else s for s in rule.sources)
        except LookupError as error:
            self.faults.append(
                f"{rule}: the source asks for a group that {str(rule.target)!r} has not "
                f"({error.args[0]}). Write {{0}}, {{1}}, ..., one per wildcard, or {{name}}."
            )
        except ValueError as error:
            self.faults.append(f"{rule}: the source for {one.targets[0]!r}: {error}.")
        return None

    def is_own_source(self, rule: Rule, one: _Matched, sources: tuple[Any, ...]) -> bool:
        """Whether a target is its own source, under whatever name, which is not meant."""
        if rule.means_own_source:
            return False
        module = self.names.modules.get(one.targets[0])
        return any(
            target in sources
            or (module is not None and any(self.names.modules.get(s) is module for s in sources))
            for target in one.targets
        )

    def expand_match(self, rule: Rule, one: _Matched, sources: tuple[Any, ...]) -> int:
        """Ties at one match. Returns how many there are."""
        if one.is_tensor:
            transform = rule.transform_of("weight")
            if transform is None:
                self.faults.append(f"{rule}: weight=None leaves {one.targets[0]!r} as it is.")
                return 0
            return self.add_by(rule, transform, one, "", sources)
        missing = [s for s in sources if isinstance(s, str) and s not in self.names.modules]
        if missing:
            self.faults += [f"{rule}: {self.no_module(rule, s, one)}" for s in missing]
            return 0
        tied = []
        for name in one.tensors:
            if (why := self.why_stored(rule, one, name)) is None:
                tied.append(name)
            else:
                self.stored[join(one.targets[0], name)] = why
        for other in (*one.targets[1:], *(s for s in sources if isinstance(s, str))):
            if any(join(other, name) not in self.names.tensors for name in tied):
                self.faults.append(
                    f"{rule}: {other_structure(self.names, one.targets[0], other, tied)}"
                )
                return 0
        return sum(
            self.add_by(rule, rule.transform_of(name.rpartition(".")[2]), one, name, sources)
            for name in tied
        )

    def why_stored(self, rule: Rule, one: _Matched, tensor: str) -> str | None:
        """Why a tensor inside of a module that matched stays stored, if it does."""
        name = tensor.rpartition(".")[2]
        slot = self.names.find(join(one.targets[0], tensor))
        is_buffer = isinstance(slot, Slot) and slot.attr in slot.owner._buffers
        if is_buffer and not rule.buffers and name not in rule.named_tensors:
            return "a buffer: buffers=True derives it too"
        if rule.transforms.get(name, same) is None:
            return f"{name}=None"
        if rule.transform_of(name) is None:
            return f"fxtie.same is from one tensor to one: give {name}= a function"
        return None

    def add_by(
        self, rule: Rule, transform: Any, one: _Matched, tensor: str, sources: tuple[Any, ...]
    ) -> int:
        """The tie of one tensor at a match. Returns how many there are."""
        targets = [join(target, tensor) for target in one.targets]
        if isinstance(transform, Each):
            try:
                groups, named = one.match.groups, one.match.named or {}
                transform = transform.make(**named) if named else transform.make(*groups)
            # The user's code: whatever it raises is a fault.
            except Exception as error:
                self.faults.append(
                    f"{rule}: {transform!r} raises for {targets[0]!r}, at {one.match.groups}: "
                    f"{type(error).__name__}: {error}"
                )
                return 0
        if not callable(transform):
            made = f"{type(transform).__name__}, no transform"
            self.faults.append(f"{rule}: what each() calls for {targets[0]!r} returns {made}.")
            return 0
        read = [join(s, tensor) if isinstance(s, str) else s for s in sources]
        if transform is same and read == targets:
            return 0  # a tensor as itself is no tie
        return self.add(Tie(targets, read, transform), rule)

    # -- faults of a rule -----------------------------------------------------------------------

    def check_names(self, rule: Rule, matched: Sequence[_Matched]) -> None:
        """Note transforms that are for no tensor."""
        names = {name.rpartition(".")[2] for one in matched for name in one.tensors}
        given = set(rule.named_tensors)
        if rule.transforms["weight"] not in (same, None) and not any(
            one.is_tensor for one in matched
        ):
            given.add("weight")
        for name in sorted(given - names if matched else ()):
            has = f" They have {', '.join(sorted(names))}." if names else ""
            self.faults.append(f"{rule}: none of its targets has a tensor {name!r}.{has}")

    def nothing_matched(self, rule: Rule) -> str:
        pattern = next((p for p in rule.targets if not self.matches_of(rule, p)), rule.target)
        names = {**self.names.modules, **self.names.tensors}
        if any(True for _ in self.matching(pattern, names)):
            if rule.exclude:
                return "matches nothing: exclude= leaves out all that it would match."
            return "ties nothing: what it matches has no tensors."
        called = str(pattern)
        told = f"matches nothing: no module or tensor is called {called!r}."
        return told + (
            regular_expression(called) or deeper(called, names) or closest(called, names)
        )

    def why_nothing(self, matched: Sequence[_Matched]) -> str:
        if not any(one.tensors for one in matched):
            name = matched[0].targets[0]
            if any(map(derived_of, self.names.modules[name].modules())):
                return f"the tensors of {name!r} are derived already. Give all rules at once."
            return f"{name!r} has no tensors."
        whys = {self.stored.get(join(m.targets[0], name)) for m in matched for name in m.tensors}
        whys.discard(None)
        if whys:
            return "all that it matches stays stored (" + "; ".join(sorted(map(str, whys))) + ")."
        return "every tensor would be derived from itself as it is."

    def no_module(self, rule: Rule, name: str, one: _Matched) -> str:
        hint = closest(name, self.names.modules)
        if name in self.names.tensors:
            hint = " It is a tensor: then the target is a tensor's name too."
        match = "" if name in rule.names else f" for {one.targets[0]!r}"
        return f"there is no source module {name!r}{match}.{hint}"

    # -- ties: each target once, each name there ------------------------------------------------

    def add(self, tie: Tie, rule: Rule | Tie) -> int:
        """Take a tie in, under the identities of its targets. Returns how many good ones it is."""
        before = len(self.faults)
        targets = [self.slot(name, rule, "target") for name in tie.targets]
        sources = list(itertools.chain.from_iterable(map(self.source_names, tie.sources)))
        slots = [self.slot(source, rule, "source") for source in sources]
        if len(self.faults) > before:
            return 0
        added = 0
        for i, (name, target) in enumerate(zip(tie.targets, targets, strict=True)):
            assert target is not None
            # Its own stored value, under whatever name.
            own = [
                name if s and s.key == target.key else n
                for n, s in zip(sources, slots, strict=True)
            ]
            transform = tie.transform if len(targets) == 1 else Part(tie.transform, i, tie.targets)
            added += self.add_one(Tie(name, own, transform), target, rule)
        return added

    def add_one(self, tie: Tie, target: Slot, rule: Rule | Tie) -> int:
        self.faults += [f"{rule}: {fault}" for fault in target.faults_as_target()]
        first = self.resolved.get(target.key)
        if first is None:
            self.resolved[target.key] = Resolved(tie, target, rule)
            return 1
        if first.rule is rule and first.tie.sources == tie.sources:
            return 0  # a module of two names, both matched
        alias = first.tie.target != tie.target
        also = f" (another name of {first.tie.target!r})" if alias else ""
        self.faults.append(
            f"Two rules for one tensor: {tie.target!r}{also} is the target of {first.rule} and of "
            f"{rule}.{exception(first.rule, rule)}"
        )
        return 0

    def source_names(self, source: Any) -> tuple[str, ...]:
        """The names of the tensors that a source stands for."""
        if isinstance(source, str):
            return (source,)
        owner = source if isinstance(source, Free) else source.owner
        if owner not in self.free:
            self.free[owner] = self.register(
                owner, "bank" if isinstance(owner, Bank) else "tensors"
            )
            self.names.add_module(f"ties.{self.free[owner]}", owner)
        name = self.free[owner]
        keys = (source.name,) if isinstance(source, Entry) else owner.tensor_names()
        return tuple(f"ties.{name}.{key}" for key in keys)

    def slot(self, name: str, rule: Rule | Tie, role: str) -> Slot | None:
        found = self.names.find(name)
        if isinstance(found, str):
            self.faults.append(f"{rule}: the {role} {name!r} {found}")
            return None
        return found

    def register(self, module: nn.Module, name: str) -> str:
        """The name under `ties` of a learnable transform or free tensors; one name per module."""
        for known, other in self.modules.items():
            if other is module:
                return known
        unique = free_name(name, {*self.modules, *self.taken})
        self.modules[unique] = module
        return unique
