"""Rules + names -> ties: what the patterns match, and what is wrong with it.

In: rules and a model. Out: ties by target, with the slots of the targets; faults as sentences.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import NamedTuple

from torch import nn

from fxtie.errors import closest
from fxtie.planning.names import Names, Slot, SlotKey, join
from fxtie.rules.rule import Match, Rule, Tie
from fxtie.transforms import Transform, same


class Resolved(NamedTuple):
    """A tie whose names are there.

    Attributes:
        tie: the fact.
        target: the slot of its target.
        origin: the rule that it came from, as text.
    """

    tie: Tie
    target: Slot
    origin: str


class Resolver:
    """Goes through rules, collecting ties, modules to register, and every fault.

    Attributes:
        names: the model's names, and those of the banks.
        resolved: ties by the identity of their targets.
        modules: learnable transforms and banks, by the name under `ties`.
        faults: one sentence each.
    """

    def __init__(self, model: nn.Module) -> None:
        self.names = Names(model)
        self.faults: list[str] = []
        self.resolved: dict[SlotKey, Resolved] = {}
        self.modules: dict[str, nn.Module] = {}
        # Names below `ties` of a model that was tied before.
        self.taken = set(dict(model.named_children()).get("ties", nn.Module())._modules)

    def resolve(self, rule: Rule | Tie) -> None:
        """Take in one rule."""
        if isinstance(rule, Tie):
            self.add(rule, str(rule))
        else:
            self.expand(rule)

    # -- a rule -> ties -------------------------------------------------------------------------

    def expand(self, rule: Rule) -> None:
        """The ties of a rule, and what is wrong with it."""
        matched = list(self.matches(rule))
        if rule.bank is not None:
            self.names.add_bank(rule.bank, self.register(rule.bank, "bank"))
        before, found, expanded = len(self.faults), 0, 0
        for name, match in matched:
            sources = self.fill_sources(rule, match)
            if sources is not None and self.is_own_source(rule, name, sources):
                continue
            found += 1
            if sources is not None:
                expanded += self.expand_match(rule, name, sources)
        is_told = expanded or len(self.faults) > before
        tensors = {t for name, _ in matched for t in self.tensors_at(name)}
        for name in sorted(rule.named_tensors - tensors if matched else ()):
            self.faults.append(f"{rule}: none of its targets has a tensor {name!r}.")
        if not matched:
            self.faults.append(
                f"{rule} matches nothing: no module or tensor is called {str(rule.target)!r}."
                + closest(str(rule.target), [*self.names.modules, *self.names.tensors])
            )
        elif not found:
            self.faults.append(f"{rule} matches nothing but its own source.")
        elif not is_told:
            self.faults.append(
                f"{rule} ties nothing: every tensor would be derived from itself as it is."
            )
        if rule.count is not None and found != rule.count:
            listed = ", ".join(name for name, _ in matched[:10]) or "none"
            self.faults.append(
                f"{rule} must match {rule.count} targets and matches {found}: {listed}."
            )

    def expand_match(self, rule: Rule, name: str, sources: tuple[str, ...]) -> int:
        """Ties of one target. Returns how many there are."""
        if name in self.names.modules:
            return self.expand_modules(rule, name, sources)
        transform = rule.transforms["weight"]
        if transform is None:
            self.faults.append(f"{rule}: weight=None leaves {name!r} as it is.")
            return 0
        return self.add(Tie(name, self.bank_sources(rule, sources), transform), f"{rule}")

    def matches(self, rule: Rule) -> Iterator[tuple[str, Match]]:
        """Modules that the target pattern matches, else tensors."""
        wanted = {name for name, transform in rule.transforms.items() if transform is not None}
        found = False
        for name, module in self.names.modules.items():
            match = rule.target.match(name, module)
            if match is None or self.excluded(rule, name, module):
                continue
            # A pattern passes by what has no tensor of the rule, containers above all.
            if rule.target.is_literal or wanted & set(self.names.tensors_of(module)):
                found = True
                yield name, match
        if not found:
            for name in self.names.tensors:
                match = rule.target.match(name)
                if match is not None and not self.excluded(rule, name, None):
                    yield name, match

    def tensors_at(self, name: str) -> list[str]:
        """The tensors of the module of this name, or the tensor's own last name."""
        module = self.names.modules.get(name)
        return [name.rpartition(".")[2]] if module is None else self.names.tensors_of(module)

    def is_own_source(self, rule: Rule, name: str, sources: tuple[str, ...]) -> bool:
        """Whether a pattern with a fixed source has matched that, under whatever name."""
        if rule.source_follows_match or rule.target.is_literal:
            return False
        module = self.names.modules.get(name)
        return name in sources or (
            module is not None and any(self.names.modules.get(s) is module for s in sources)
        )

    @staticmethod
    def excluded(rule: Rule, name: str, module: nn.Module | None) -> bool:
        return any(pattern.match(name, module) is not None for pattern in rule.exclude)

    def fill_sources(self, rule: Rule, match: Match) -> tuple[str, ...] | None:
        try:
            return tuple(match.fill(source) for source in rule.sources)
        except (LookupError, ValueError) as error:
            self.faults.append(
                f"{rule}: the source asks for a group that {str(rule.target)!r} has not "
                f"({error}). Write {{0}}, {{1}}, ..., one per wildcard, or {{name}}."
            )
            return None

    def bank_sources(self, rule: Rule, sources: tuple[str, ...]) -> tuple[str, ...]:
        return sources if rule.bank is None else self.names.bank_names[id(rule.bank)]

    def expand_modules(self, rule: Rule, target: str, sources: tuple[str, ...]) -> int:
        """Ties of a target module's tensors. Returns how many there are."""
        missing = [name for name in sources if name not in self.names.modules]
        if missing:
            self.faults += [f"{rule}: {self.no_module(name)}" for name in missing]
            return 0
        own = self.names.tensors_of(self.names.modules[target])
        added = 0
        for name, transform in rule.transforms.items():
            if transform is None:
                continue
            if name in own:
                added += self.expand_tensor(rule, name, transform, target, sources)
            elif rule.target.is_literal and (
                name in rule.named_tensors
                or (name == "weight" and not set(own) & set(rule.transforms))
            ):
                self.faults.append(self.no_tensor(rule, target, name, own))
        return added

    def expand_tensor(
        self, rule: Rule, name: str, transform: Transform, target: str, sources: tuple[str, ...]
    ) -> int:
        """The tie of one tensor of a target module. Returns how many there are, 1 or 0."""
        for source in sources:
            if name not in self.names.tensors_of(self.names.modules[source]):
                self.faults.append(
                    f"{rule}: the target {target!r} has a {name}, the source {source!r} has "
                    f"not. Write {name}=None to leave {target!r} its own."
                )
                return 0
        read = tuple(join(source, name) for source in sources)
        if transform is same and read == (join(target, name),):
            return 0  # a tensor as itself is no tie
        return self.add(
            Tie(join(target, name), self.bank_sources(rule, read), transform), f"{rule}"
        )

    def no_module(self, name: str) -> str:
        hint = closest(name, self.names.modules)
        if name in self.names.tensors:
            hint = " It is a tensor: then the target is a tensor's name too."
        return f"there is no source module {name!r}.{hint}"

    @staticmethod
    def no_tensor(rule: Rule, target: str, name: str, own: list[str]) -> str:
        if own:
            hint = f" It has {', '.join(own)}: name them by keyword ({own[0]}=fxtie.same)."
        else:
            hint = f" To tie what is inside it, write {target + '.**'!r} with {{0}} in the source."
        return f"{rule}: the target {target!r} has no {name} of its own.{hint}"

    # -- ties: each target once, each name there ------------------------------------------------

    def add(self, tie: Tie, origin: str) -> int:
        """Take a tie in, under its target's identity. Returns 1 if it is a good one."""
        before = len(self.faults)
        target = self.slot(tie.target, origin, "target")
        sources = [self.slot(source, origin, "source") for source in tie.sources]
        if target is None or len(self.faults) > before:
            return 0
        if [source and source.key for source in sources] == [target.key]:
            tie = replace(tie, sources=(tie.target,))  # self-derived, whatever its names
        self.faults += [f"{origin}: {fault}" for fault in target.faults_as_target()]
        if target.key in self.resolved:
            first = self.resolved[target.key]
            if first.origin == origin and first.tie.sources == tie.sources:
                return 0  # a module of two names, both matched
            alias = first.tie.target != tie.target
            also = f" (another name of {first.tie.target!r})" if alias else ""
            self.faults.append(
                f"Two rules for one tensor: {tie.target!r}{also} is the target of "
                f"{first.origin} and of {origin}."
            )
            return 0
        self.resolved[target.key] = Resolved(tie, target, origin)
        return 1

    def slot(self, name: str, origin: str, role: str) -> Slot | None:
        found = self.names.find(name)
        if isinstance(found, str):
            self.faults.append(f"{origin}: the {role} {name!r} {found}")
            return None
        return found

    def register(self, module: nn.Module, name: str) -> str:
        """The name under `ties` of a learnable transform or bank; one name per module."""
        for known, other in self.modules.items():
            if other is module:
                return known
        unique, n = name, 2
        while unique in self.modules or unique in self.taken:
            unique, n = f"{name}_{n}", n + 1
        self.modules[unique] = module
        return unique
