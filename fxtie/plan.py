"""Rules + model -> `Plan`: which tensors, from which, in which order; every fault at once.

In: a model and rules. Out: a `Plan`, which holds names, shapes and transforms but no tensor of the
model. Nothing of the model's forward runs. Called by users and by `capture.transform`.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from torch.nn.parameter import is_lazy

from fxtie.errors import PlanError
from fxtie.lowering import Lowered, Opaque, Spec, fake_mode, lower
from fxtie.names import Slot, SlotKey
from fxtie.resolve import Resolved, Resolver
from fxtie.rules import Rules, Tie, as_rules
from fxtie.show.paged import Paged
from fxtie.show.plan_text import HEADERS, plan_text, row
from fxtie.show.words import count, parameter_change
from fxtie.transforms.protocol import transform_name

if TYPE_CHECKING:
    from fxtie.show.page import Page


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

    @property
    def transform_name(self) -> str:
        """How the transform is shown in tables."""
        return transform_name(self.tie.transform)

    def __getstate__(self) -> dict[str, Any]:
        """A lambda can't be pickled; what was made of it can."""
        state = dict(self.__dict__)
        if "<" in getattr(self.tie.transform, "__qualname__", ""):
            state["tie"] = replace(self.tie, transform=self.lowered)
        return state


@dataclass(frozen=True)
class Plan(Paged):
    """The ordered, checked list of ties for one model. `print` shows it as a table.

    Attributes:
        steps: one per tie; what a tie reads comes before it.
        modules: learnable transforms and banks, by the name under which the tied model registers
            them (below `ties`). Models that are tied by one plan share them.
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
        change = parameter_change(self.parameters, self.parameters_after)
        return f"{count(len(self.steps), 'tie')}, {change}"

    def table(self) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
        """Headers, and a row of text for each tie."""
        return HEADERS, [row([step]) for step in self.steps]

    def to_dict(self) -> dict[str, Any]:
        """Plain data, ready for JSON.

        Keys: `parameters` (`before`, `after`), `ties` (a list; each has `target`, `sources`,
        `transform`, `shape`, `dtype`, and `saved`, a number of parameters).
        """
        return {
            "parameters": {"before": self.parameters, "after": self.parameters_after},
            "ties": [
                {
                    "target": step.tie.target,
                    "sources": list(step.tie.sources),
                    "transform": step.transform_name,
                    "shape": list(step.spec.shape),
                    "dtype": str(step.spec.dtype).removeprefix("torch."),
                    "saved": step.saved,
                }
                for step in self.steps
            ],
        }

    def _page(self) -> Page:
        from fxtie.show.tie_page import plan_page

        return plan_page(self)

    def __str__(self) -> str:
        return plan_text(self)


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
    if "_orig_mod" in model._modules:
        raise PlanError(
            "The model is compiled already. Tie what was compiled (`model._orig_mod`), and compile "
            "the result: fxtie.transform(model, rules, compile=True)."
        )
    if isinstance(model, torch.jit.ScriptModule):
        raise PlanError(
            "The model is compiled to TorchScript, whose code can't be changed. Tie the Python "
            "module that it was made of, and use torch.jit.trace on the result."
        )
    resolver = Resolver(model)
    for rule in as_rules(rules):
        resolver.resolve(rule)
    planner = _Planner(resolver)
    planner.raise_faults()
    ordered = planner.order()
    planner.raise_faults()
    with torch.inference_mode(False):  # tensors of that mode tell of no changes
        steps = planner.check(ordered)
    planner.raise_faults()
    parameters = sum(p.numel() for p in model.parameters() if not is_lazy(p))
    return Plan(tuple(steps), resolver.modules, parameters)


class _Planner:
    """Orders resolved ties and tries their transforms out."""

    def __init__(self, resolver: Resolver) -> None:
        self.resolver = resolver
        self.names = resolver.names
        self.resolved = resolver.resolved
        self.faults = resolver.faults
        self.cause: BaseException | None = None

    def raise_faults(self) -> None:
        if self.faults:
            raise PlanError(self.faults) from self.cause

    # -- order ----------------------------------------------------------------------------------

    def order(self) -> list[Resolved]:
        """Depth first over the sources; iterative, since chains may be long."""
        ordered: list[Resolved] = []
        done: set[SlotKey] = set()
        for start in self.resolved:
            path: list[SlotKey] = []
            on_path: set[SlotKey] = set()
            pending = [(start, False)]
            while pending:
                key, left = pending.pop()
                if left:
                    path.pop()
                    on_path.discard(key)
                    done.add(key)
                    ordered.append(self.resolved[key])
                    continue
                if key in done or key not in self.resolved:
                    continue
                if key in on_path:
                    self.report_cycle([*path[path.index(key) :], key])
                    return []
                path.append(key)
                on_path.add(key)
                pending.append((key, True))
                tie = self.resolved[key].tie
                if not tie.is_self_derived:
                    pending += [(self.key(name), False) for name in reversed(tie.sources)]
        return ordered

    def key(self, name: str) -> SlotKey:
        found = self.names.find(name)
        assert isinstance(found, Slot)  # `Resolver.add` has told of the others
        return found.key

    def report_cycle(self, keys: list[SlotKey]) -> None:
        names = [self.resolved[key].tie.target for key in keys]
        self.faults.append(
            "The rules form a cycle, each derived from the next: "
            + " <- ".join(names)
            + ". Leave one of these tensors stored, as the source of the others."
        )

    # -- transforms, on fake tensors ------------------------------------------------------------

    def check(self, ordered: list[Resolved]) -> list[Step]:
        mode = fake_mode()
        specs: dict[SlotKey, Spec] = {}
        examined: dict[Any, tuple[Lowered | Opaque | nn.Module, str | None]] = {}
        general: dict[Any, Lowered] = {}
        dropped = (slot for tie, slot, _ in self.resolved.values() if not tie.is_self_derived)
        saved = self.names.savings(dropped)

        def spec_of(name: str) -> Spec:
            slot = self.names.find(name)
            assert isinstance(slot, Slot)
            if slot.key not in specs:
                specs[slot.key] = slot.spec(mode)
            return specs[slot.key]

        steps = []
        for tie, target, origin in ordered:
            spec = spec_of(tie.target)
            sources = [spec_of(name) for name in tie.sources]
            try:
                tie = self.bind(tie, spec, mode)
                key = (_hashable(tie.transform), tuple(sources), spec)
                if key not in examined:
                    examined[key] = self.examine(tie, sources, spec, mode, general)
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
                self.faults.append(f"{origin}: " + fault.replace("<target>", repr(tie.target)))
            if isinstance(tie.transform, nn.Module):
                self.resolver.register(tie.transform, tie.target.replace(".", "_"))
            steps.append(Step(tie, spec, saved.get(target.key, 0), lowered))
        return steps

    @staticmethod
    def bind(tie: Tie, spec: Spec, mode: FakeTensorMode) -> Tie:
        """A tie, its transform fitted to the target if it wants that (`transforms.FitsTarget`)."""
        # Much faster than isinstance with a Protocol, and once for each tie.
        adapt = getattr(tie.transform, "for_target", None)
        return tie if adapt is None else replace(tie, transform=adapt(spec.fake(mode)))

    @staticmethod
    def examine(
        tie: Tie,
        sources: list[Spec],
        target: Spec,
        mode: FakeTensorMode,
        general: dict[Any, Lowered],
    ) -> tuple[Lowered | Opaque | nn.Module, str | None]:
        """Try the transform on tensors without data. Returns it lowered, and a fault if it has one.

        Args:
            general: filled with lowered transforms that are for tensors of any shape.
        """
        name = transform_name(tie.transform)
        fakes = [source.fake(mode) for source in sources]
        try:
            lowered, result = lower(tie.transform, fakes, mode)
        except DataDependentOutputException as error:
            # It branches on values, which fakes have not: its shape shows when it runs.
            lowered, result = Opaque(tie.transform, str(error)), None
        fault = None
        if any(fake._version for fake in fakes):
            fault = (
                f"the transform {name} of <target> changes its source in place, at each use. Let "
                f"it make a new tensor: w.clamp(0) instead of w.clamp_(0), w = w * 2 instead of "
                f"w *= 2."
            )
        elif result is None and isinstance(lowered, Opaque):
            return lowered, None
        fault = fault or _misfit(name, result, sources, target)
        if fault is not None:
            return Opaque(tie.transform, fault), fault
        key = (_hashable(tie.transform), len(sources))
        if key in general:
            return general[key], None
        if isinstance(lowered, Lowered) and lowered.is_general:
            general[key] = lowered
        return lowered, None


def _misfit(name: str, result: Any, sources: list[Spec], target: Spec) -> str | None:
    """Why the result of a transform can't stand for `<target>`, if it can't."""
    if not isinstance(result, torch.Tensor):
        return f"the transform {name} of <target> returns {type(result).__name__}, not a tensor."
    if tuple(result.shape) != target.shape:
        return (
            f"the transform {name} gives shape {tuple(result.shape)} from "
            f"{', '.join(str(s.shape) for s in sources) or 'nothing'}, but <target> has "
            f"{target.shape}. fxtie.transforms.tile(), crop(), pad() and resize() adapt to the "
            f"target's shape."
        )
    if result.dtype != target.dtype:
        return (
            f"the transform {name} gives {result.dtype}, but <target> is {target.dtype}. "
            f"Add .to({target.dtype}) to the transform."
        )
    if result.device != target.device:
        return (
            f"the transform {name} gives a tensor on {result.device}, but <target> is on "
            f"{target.device}. Add .to({str(target.device)!r}) to the transform."
        )
    return None


def _hashable(transform: Any) -> Any:
    try:
        hash(transform)
    except TypeError:
        return id(transform)
    return transform
