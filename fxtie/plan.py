"""Rules + model -> `Plan`: which tensors, from which, in which order; every fault at once.

In: a model and rules. Out: a `Plan`, which holds names, shapes and transforms but no tensor of the
model. Nothing of the model's forward runs. Called by users and by `capture.transform`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from tabulate import tabulate
from torch import nn
from torch._subclasses.fake_tensor import DataDependentOutputException

from fxtie.errors import PlanError, closest
from fxtie.lowering import Lowered, Opaque, Spec, fake_mode, lower
from fxtie.names import Names, Slot
from fxtie.rules import Match, Rule, Rules, Tie, as_rules, transform_name
from fxtie.transforms import same


@dataclass(frozen=True)
class Step:
    """A tie, checked against the model.

    Attributes:
        tie: the fact.
        spec: shape, dtype and device of the target.
        saved: parameters that the tied model no longer has.
        lowered: the transform, ready for a graph.
    """

    tie: Tie
    spec: Spec
    saved: int
    lowered: Lowered | Opaque | nn.Module

    def __getstate__(self) -> dict[str, Any]:
        """A lambda can't be pickled; what was made of it can."""
        state = dict(self.__dict__)
        if "<" in getattr(self.tie.transform, "__qualname__", ""):
            state["tie"] = replace(self.tie, transform=self.lowered)
        return state


@dataclass(frozen=True)
class Plan:
    """The ordered, checked list of ties for one model. `print` shows it as a table.

    Attributes:
        steps: one per tie; what a tie reads comes before it.
        modules: learnable transforms and banks, by the name under which the tied model registers
            them (below `ties`).
        parameters: number of parameters of the model before.
    """

    steps: tuple[Step, ...]
    modules: dict[str, nn.Module] = field(default_factory=dict)
    parameters: int = 0

    @property
    def ties(self) -> tuple[Tie, ...]:
        """The ties, in the order in which they can be computed."""
        return tuple(step.tie for step in self.steps)

    @property
    def parameters_after(self) -> int:
        """Number of parameters of the tied model."""
        learned = sum(p.numel() for m in self.modules.values() for p in m.parameters())
        return self.parameters - sum(step.saved for step in self.steps) + learned

    def summary(self) -> str:
        """The total, as one line."""
        return f"{count(len(self.steps), 'tie')}, {parameter_change(self)}"

    def __str__(self) -> str:
        rows = [
            (
                step.tie.target,
                ", ".join(step.tie.sources) or "-",
                transform_name(step.tie.transform),
                "x".join(map(str, step.spec.shape)) or "scalar",
                f"{step.saved:,}",
            )
            for step in self.steps
        ]
        headers = ("target", "sources", "transform", "shape", "saved")
        align = ("left", "left", "left", "left", "right")
        table = tabulate(rows, headers, colalign=align, disable_numparse=True)
        return f"{table}\n{self.summary()}"


def count(n: int, what: str) -> str:
    return f"{n} {what}" if n == 1 else f"{n} {what}s"


def parameter_change(plan: Plan) -> str:
    """`parameters 25.6M -> 14.2M (55.6%)`."""
    before, after = plan.parameters, plan.parameters_after
    share = f" ({after / before:.1%})" if before else ""
    return f"parameters {_human(before)} -> {_human(after)}{share}"


def _human(n: int) -> str:
    for size, suffix in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if n >= size:
            return f"{n / size:.1f}{suffix}"
    return str(n)


def plan(model: nn.Module, rules: Rules) -> Plan:
    """Resolve and check rules against a model, without running it.

    Args:
        model: any module. It is only looked at.
        rules: one `Rule` or `Tie`, or several. A tensor may be the target of one tie only.

    Returns:
        The ties in an order in which each can be computed from what comes before it. A source that
        is itself derived is read as derived.

    Raises:
        PlanError: with every fault of the rule set in one message: names that are not there, a
            rule that matches nothing, two rules for one tensor, a cycle, a shape, dtype or device
            that doesn't fit, a transform that raises, targets with hooks or parametrizations,
            lazy tensors.

    Example:
        >>> import fxtie
        >>> net = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8))
        >>> print(fxtie.plan(net, fxtie.Rule("2", "0", weight=torch.square)))
        target    sources    transform    shape      saved
        --------  ---------  -----------  -------  -------
        2.weight  0.weight   square       8x8           64
        2.bias    0.bias     same         8              8
        2 ties, parameters 144 -> 72 (50.0%)
    """
    if not isinstance(model, nn.Module):
        raise PlanError(f"The model is a torch.nn.Module, not {type(model).__name__}: {model!r}.")
    return _Planner(model).plan(as_rules(rules))


class _Planner:
    """Collects ties, extra modules and faults while the rules are gone through."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.names = Names(model)
        self.faults: list[str] = []
        self.cause: BaseException | None = None
        self.targets: dict[tuple[int, str], tuple[Tie, Slot, str]] = {}
        self.modules: dict[str, nn.Module] = {}

    def plan(self, rules: tuple[Rule | Tie, ...]) -> Plan:
        for rule in rules:
            if isinstance(rule, Tie):
                self.add(rule, f"{rule}")
            else:
                self.expand(rule)
        self.raise_faults()
        ordered = self.order()
        self.raise_faults()
        steps = self.check(ordered)
        self.raise_faults()
        parameters = sum(p.numel() for p in self.model.parameters())
        return Plan(tuple(steps), self.modules, parameters)

    def raise_faults(self) -> None:
        if self.faults:
            raise PlanError(self.faults) from self.cause

    # -- a rule -> ties -------------------------------------------------------------------------

    def expand(self, rule: Rule) -> None:
        matched = list(self.matches(rule))
        if rule.bank is not None:
            self.names.add_bank(rule.bank, self.register(rule.bank, "bank"))
        expanded = 0
        found = 0
        for name, match in matched:
            sources = self.fill_sources(rule, name, match)
            if sources is None:
                found += 1
                continue
            if name in sources and not (rule.source_follows_match or rule.target.is_literal):
                continue  # a pattern that matches its own source
            found += 1
            before = len(self.faults)
            if name in self.names.modules:
                expanded += self.expand_modules(rule, name, sources)
            else:
                transform = rule.transforms["weight"]
                if transform is None:
                    self.faults.append(f"{rule}: weight=None leaves {name!r} as it is.")
                else:
                    expanded += self.add(Tie(name, self.bank_sources(rule, sources), transform), f"{rule}")
            expanded += len(self.faults) - before  # told already
        if not matched:
            self.faults.append(
                f"{rule} matches nothing: no module or tensor is called {str(rule.target)!r}."
                + closest(str(rule.target), [*self.names.modules, *self.names.tensors])
            )
        elif not found:
            self.faults.append(f"{rule} matches nothing but its own source.")
        elif not expanded and not self.faults:
            self.faults.append(f"{rule} ties nothing: every tensor would be derived from itself as it is.")
        if rule.count is not None and found != rule.count:
            listed = ", ".join(name for name, _ in matched[:10]) or "none"
            self.faults.append(
                f"{rule} must match {rule.count} targets and matches {found}: {listed}."
            )

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

    @staticmethod
    def excluded(rule: Rule, name: str, module: nn.Module | None) -> bool:
        return any(pattern.match(name, module) is not None for pattern in rule.exclude)

    def fill_sources(self, rule: Rule, name: str, match: Match) -> tuple[str, ...] | None:
        try:
            return tuple(match.fill(source) for source in rule.sources)
        except (LookupError, ValueError) as error:
            self.faults.append(
                f"{rule}: the source asks for a group that {str(rule.target)!r} has not "
                f"({error}). Groups are numbered from {{0}}, one per wildcard."
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
            if name not in own:
                if name in rule.named_tensors or (name == "weight" and rule.target.is_literal and not (set(own) & set(rule.transforms))):
                    self.faults.append(self.no_tensor(rule, target, name, own))
                continue
            for source in sources:
                if name not in self.names.tensors_of(self.names.modules[source]):
                    hint = f" Write {name}=None to leave {target!r} its own." if name != "weight" else ""
                    self.faults.append(
                        f"{rule}: the target {target!r} has a {name}, the source {source!r} has not.{hint}"
                    )
                    break
            else:
                prefix = [f"{source}.{name}" if source else name for source in sources]
                full = f"{target}.{name}" if target else name
                if transform is same and tuple(prefix) == (full,):
                    continue  # a tensor as itself is no tie
                added += self.add(Tie(full, self.bank_sources(rule, tuple(prefix)), transform), f"{rule}")
        return added

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
        for source in tie.sources:
            self.slot(source, origin, "source")
        if target is None or len(self.faults) > before:
            return 0
        self.faults += [f"{origin}: {fault}" for fault in target.faults_as_target()]
        if target.key in self.targets:
            first, _, first_origin = self.targets[target.key]
            also = f" (the same tensor as {first.target!r})" if first.target != tie.target else ""
            self.faults.append(
                f"Two rules for one tensor: {tie.target!r}{also} is the target of "
                f"{first_origin} and of {origin}."
            )
            return 0
        self.targets[target.key] = (tie, target, origin)
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
        while unique in self.modules:
            unique, n = f"{name}_{n}", n + 1
        self.modules[unique] = module
        return unique

    # -- order ----------------------------------------------------------------------------------

    def order(self) -> list[tuple[Tie, Slot, str]]:
        """Depth first over the sources; iterative, since chains may be long."""
        ordered: list[tuple[Tie, Slot, str]] = []
        done: set[tuple[int, str]] = set()
        for start in self.targets:
            path: list[tuple[int, str]] = []
            on_path: set[tuple[int, str]] = set()
            pending = [(start, False)]
            while pending:
                key, left = pending.pop()
                if left:
                    path.pop()
                    on_path.discard(key)
                    done.add(key)
                    ordered.append(self.targets[key])
                    continue
                if key in done or key not in self.targets:
                    continue
                if key in on_path:
                    self.report_cycle([*path[path.index(key) :], key])
                    return []
                path.append(key)
                on_path.add(key)
                pending.append((key, True))
                tie = self.targets[key][0]
                if not tie.is_self_derived:
                    pending += [(self.key(name), False) for name in reversed(tie.sources)]
        return ordered

    def key(self, name: str) -> tuple[int, str]:
        found = self.names.find(name)
        assert isinstance(found, Slot)  # `add` has told of the others
        return found.key

    def report_cycle(self, keys: list[tuple[int, str]]) -> None:
        names = [self.targets[key][0].target for key in keys]
        self.faults.append(
            "The rules form a cycle, each derived from the next: "
            + " <- ".join(names)
            + ". Leave one of these tensors stored, as the source of the others."
        )

    # -- transforms, on fake tensors ------------------------------------------------------------

    def check(self, ordered: list[tuple[Tie, Slot, str]]) -> list[Step]:
        mode = fake_mode()
        specs: dict[tuple[int, str], Spec] = {}
        examined: dict[Any, tuple[Lowered | Opaque | nn.Module, str | None]] = {}
        dropped = (slot for tie, slot, _ in self.targets.values() if not tie.is_self_derived)
        saved = self.names.savings(dropped)

        def spec_of(name: str) -> Spec:
            slot = self.names.find(name)
            assert isinstance(slot, Slot)
            return specs.setdefault(slot.key, slot.spec(mode))

        steps = []
        for tie, target, origin in ordered:
            spec = spec_of(tie.target)
            sources = [spec_of(name) for name in tie.sources]
            try:
                tie = replace(tie, transform=self.bind(tie, spec, mode))
                key = (_hashable(tie.transform), tuple(sources), spec)
                if key not in examined:
                    examined[key] = self.examine(tie, sources, spec, mode)
            # A transform is the user's code: whatever it raises is told, with its traceback.
            except Exception as error:
                self.cause = self.cause or error
                shapes = ", ".join(str(tuple(s.shape)) for s in sources) or "no tensor"
                self.faults.append(
                    f"{origin}: the transform {transform_name(tie.transform)} of {tie.target!r} "
                    f"raises on {shapes}: {type(error).__name__}: {error}"
                )
                continue
            lowered, fault = examined[key]
            if fault is not None:
                self.faults.append(f"{origin}: {fault.format(target=repr(tie.target))}")
            if isinstance(tie.transform, nn.Module):
                self.register(tie.transform, tie.target.replace(".", "_"))
            steps.append(Step(tie, spec, saved.get(target.key, 0), lowered))
        return steps

    @staticmethod
    def bind(tie: Tie, spec: Spec, mode: Any) -> Any:
        """The transform itself, or what it makes of the target's shape (see transforms.FitsTarget)."""
        adapt = getattr(tie.transform, "for_target", None)
        return tie.transform if adapt is None else adapt(spec.fake(mode))

    @staticmethod
    def examine(
        tie: Tie, sources: list[Spec], target: Spec, mode: Any
    ) -> tuple[Lowered | Opaque | nn.Module, str | None]:
        """Run the transform once on fake tensors. Returns it lowered, and a fault if it has one."""
        fakes = [source.fake(mode) for source in sources]
        try:
            with mode:
                result = tie.transform(*fakes)
        except DataDependentOutputException as error:
            # It branches on values, which fakes have not: its shape shows when it runs.
            return Opaque(tie.transform, str(error)), None
        name = transform_name(tie.transform)
        fault = None
        if not isinstance(result, torch.Tensor):
            fault = f"the transform {name} of {{target}} returns {type(result).__name__}, not a tensor."
        elif tuple(result.shape) != target.shape:
            fault = (
                f"the transform {name} gives shape {tuple(result.shape)} from "
                f"{', '.join(str(s.shape) for s in sources)}, but {{target}} has {target.shape}. "
                f"fxtie.transforms.tile(), crop(), pad() and resize() adapt to the target's shape."
            )
        elif result.dtype != target.dtype:
            fault = (
                f"the transform {name} gives {result.dtype}, but {{target}} is {target.dtype}. "
                f"Add .to({target.dtype}) to the transform."
            )
        elif result.device != target.device and "meta" not in (result.device.type, target.device.type):
            fault = (
                f"the transform {name} gives a tensor on {result.device}, but {{target}} is on "
                f"{target.device}. Add .to({str(target.device)!r}) to the transform."
            )
        if fault is not None:
            return Opaque(tie.transform, fault), fault
        return lower(tie.transform, fakes, mode), None


def _hashable(transform: Any) -> Any:
    try:
        hash(transform)
    except TypeError:
        return id(transform)
    return transform
