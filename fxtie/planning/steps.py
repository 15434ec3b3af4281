"""Resolved ties -> `Step`s: their order, and transforms tried out on tensors without data."""

from __future__ import annotations

import contextlib
import logging
import re
import threading
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import nn

from fxtie._torch import DataDependentOutputException, FakeTensor
from fxtie.errors import PlanError
from fxtie.planning.lowering import Lowered, Opaque, lower
from fxtie.planning.names import Slot, SlotKey
from fxtie.planning.resolve import Resolved, Resolver
from fxtie.planning.spec import Spec, fake_mode
from fxtie.rules.rule import Rule, Tie
from fxtie.transforms import Transform
from fxtie.transforms.parts import Part, module_of, whole_of
from fxtie.transforms.protocol import fitted_to, transform_name
from fxtie.words import count, list_names

_FAKE = re.compile(r"FakeTensor\(.*?size=(\([^)]*\)).*?\)")

Ready: TypeAlias = Lowered | Opaque | nn.Module | Part


@dataclass(frozen=True)
class Step:
    """A tie, checked against the model.

    Attributes:
        tie: the fact.
        spec: shape, dtype and device of the target.
        dropped: parameters that the tied model no longer has.
        added: parameters that its transform and its free tensors bring, if it is the first to use
            them.
        lowered: the transform, ready for a graph.
    """

    tie: Tie
    spec: Spec
    dropped: int
    added: int
    lowered: Ready

    @property
    def saved(self) -> int:
        """Parameters that the tied model has less of: negative if the tie brings more."""
        return self.dropped - self.added

    @property
    def transform_name(self) -> str:
        """How the transform is shown in tables."""
        return transform_name(self.tie.transform)

    def __getstate__(self) -> dict[str, Any]:
        """A lambda can't be pickled; what was made of it can."""
        state = dict(self.__dict__)
        if "<" in getattr(whole_of(self.tie.transform), "__qualname__", ""):
            state["tie"] = Tie(self.tie.target, self.tie.sources, self.lowered)
        return state


Examined: TypeAlias = tuple[Ready, str | None]


class Planner:
    """Orders resolved ties and tries their transforms out."""

    def __init__(self, resolver: Resolver) -> None:
        self.resolver = resolver
        self.names = resolver.names
        self.resolved = resolver.resolved
        self.faults = resolver.faults
        self.cause: BaseException | None = None
        self.mode = fake_mode()
        self._specs: dict[SlotKey, Spec] = {}
        self._examined: dict[Any, Examined] = {}
        self._general: dict[Any, Lowered] = {}  # those that are for tensors of any shape
        self._wholes: dict[Any, _Tried] = {}
        self._added: dict[int, int] = {}
        self._found: dict[tuple[int, str], tuple[Rule | Tie, str, list[str]]] = {}
        self._free = {
            f"ties.{name}.{key}": owner
            for owner, name in resolver.free.items()
            for key in owner.tensor_names()
        }

    def raise_faults(self) -> None:
        if self.faults:
            raise PlanError(self.faults) from self.cause

    # -- order ----------------------------------------------------------------------------------

    def order(self) -> list[Resolved]:
        """Depth first over the sources; iterative, since chains may be long."""
        ordered: dict[SlotKey, Resolved] = {}
        for start in self.resolved:
            path = {start: None}
            while path:
                key = next(reversed(path))
                tie = self.resolved[key].tie
                reads = (self.names.get(name).key for name in tie.sources if name != tie.target)
                read = next((k for k in reads if k in self.resolved and k not in ordered), None)
                if read is None:
                    ordered[key] = self.resolved[key]
                    del path[key]
                elif read in path:
                    keys = list(path)
                    self.report_cycle([*keys[keys.index(read) :], read])
                    return []
                else:
                    path[read] = None
        return list(ordered.values())

    def report_cycle(self, keys: list[SlotKey]) -> None:
        names = [self.resolved[key].tie.target for key in keys]
        self.faults.append(
            "The rules form a cycle, each derived from the next: "
            + " <- ".join(names)
            + ". Leave one of these tensors stored, as the source of the others."
        )

    # -- transforms, on fake tensors ------------------------------------------------------------

    def check(self, ordered: list[Resolved]) -> list[Step]:
        """The steps, and the faults of their transforms."""
        dropped = (slot for tie, slot, _ in self.resolved.values() if not tie.is_self_derived)
        saved = self.names.savings(dropped)
        steps = []
        for tie, target, rule in ordered:
            spec = self.spec(tie.target)
            sources = tuple(map(self.spec, tie.sources))
            try:
                tie = self.bind(tie, spec)
                lowered, fault = self.examined(tie.transform, sources, spec)
            # The user's code: whatever it raises is a fault, with its traceback.
            except Exception as error:
                self.cause = self.cause or error
                shapes = ", ".join(str(tuple(s.shape)) for s in sources) or "no tensor"
                told = _FAKE.sub(r"a tensor of shape \1", str(error))
                self.note(
                    rule,
                    f"the transform {transform_name(tie.transform)} of <target> raises on "
                    f"{shapes}: {type(error).__name__}: {told}",
                    tie,
                )
                continue
            self.compare_layers(tie, target, rule)
            if fault is not None:
                self.note(rule, fault, tie)
            if (module := module_of(tie.transform)) is not None:
                self.resolver.register(module, tie.target.replace(".", "_"))
            steps.append(Step(tie, spec, saved.get(target.key, 0), self.added(tie), lowered))
        self.faults += [
            f"{rule}: " + fault.replace("<target>", repr(list_names(targets)))
            for rule, fault, targets in self._found.values()
        ]
        return steps

    def note(self, rule: Rule | Tie, fault: str, tie: Tie) -> None:
        """Note a fault of a tie, which stands as `<target>` in it. Those that are alike are one."""
        _, _, targets = self._found.setdefault((id(rule), fault), (rule, fault, []))
        targets.append(tie.target)

    def compare_layers(self, tie: Tie, target: Slot, rule: Rule | Tie) -> None:
        """Note a transform that is wrong between these two layers, whatever the shapes say."""
        compare = getattr(tie.transform, "fault_between", None)
        if compare is not None and len(tie.sources) == 1:
            source = self.names.get(tie.sources[0])
            if (fault := compare(source.owner, target.owner)) is not None:
                self.note(rule, f"<target>: {fault}", tie)

    def added(self, tie: Tie) -> int:
        """Parameters that a tie brings along: of its transform and of free tensors, once each."""
        modules = [module_of(tie.transform), *(self._free.get(name) for name in tie.sources)]
        found = {id(p): p.numel() for m in modules if m is not None for p in m.parameters()}
        new = {key: n for key, n in found.items() if key not in self._added}
        self._added.update(new)
        return sum(new.values())

    def spec(self, name: str) -> Spec:
        slot = self.names.get(name)
        if slot.key not in self._specs:
            self._specs[slot.key] = slot.spec(self.mode)
        return self._specs[slot.key]

    def bind(self, tie: Tie, spec: Spec) -> Tie:
        """A tie, its transform fitted to the target if it wants that (`transforms.FitsTarget`)."""
        if not hasattr(tie.transform, "for_target"):
            return tie
        value = self.names.get(tie.target).tensor.detach()
        has_data = not (value.is_meta or isinstance(value, FakeTensor))
        fitted = fitted_to(
            tie.transform,
            spec.fake(self.mode),
            name=tie.target,
            sources=len(tie.sources),
            value=value if has_data else None,
        )
        return Tie(tie.target, tie.sources, fitted)

    def examined(self, transform: Transform, sources: tuple[Spec, ...], target: Spec) -> Examined:
        """The transform lowered, and a fault if it has one; tried out once for equal cases."""
        key = (_hashable(transform), sources, target)
        if key not in self._examined:
            self._examined[key] = self.examine(transform, sources, target)
        return self._examined[key]

    def examine(self, transform: Transform, sources: tuple[Spec, ...], target: Spec) -> Examined:
        """Try a transform on tensors without data."""
        if isinstance(transform, Part):
            return self.examine_part(transform, sources, target)
        key = (_hashable(transform), len(sources))
        tried = self.try_again(key, sources) or self.try_out(transform, sources)
        fault = tried.fault
        if tried.is_known:
            fault = fault or _misfit(transform_name(transform), tried.result, sources, target)
        if fault is not None:
            return Opaque(transform, fault), fault
        if isinstance(tried.lowered, Lowered) and tried.lowered.is_general:
            self._general[key] = tried.lowered
        return tried.lowered, None

    def try_again(self, key: Any, sources: tuple[Spec, ...]) -> _Tried | None:
        """Try what was lowered for sources of other shapes. None if that is not known to do."""
        if (lowered := self._general.get(key)) is None:
            return None
        try:
            with _quiet(), self.mode:
                return _Tried(lowered, lowered(*(s.fake(self.mode) for s in sources)))
        except Exception:  # which the user's function raises again, from a line of its own
            return None

    def examine_part(self, part: Part, sources: tuple[Spec, ...], target: Spec) -> Examined:
        """Try a transform that returns several tensors, once for all of them."""
        key = (_hashable(part.whole), sources)
        if key not in self._wholes:
            self._wholes[key] = self.try_out(part.whole, sources)
        tried = self._wholes[key]
        ready = replace(part, whole=tried.lowered)
        if tried.fault is not None or not tried.is_known:
            return ready, tried.fault
        name, results = transform_name(part.whole), tried.result
        if not isinstance(results, tuple | list):
            kind = "Tensor" if isinstance(results, torch.Tensor) else type(results).__name__
            return ready, f"the transform {name} of <target> returns {kind}, not a tuple."
        if part.index >= len(results):
            n = count(len(results), "tensor")
            return ready, f"the transform {name} of <target> and others returns {n}."
        return ready, _misfit(repr(part), results[part.index], sources, target)

    def try_out(self, transform: Transform, sources: tuple[Spec, ...]) -> _Tried:
        """Call a transform, which may be of several targets, with tensors without data."""
        fakes = [source.fake(self.mode) for source in sources]
        try:
            with _quiet():
                tried = _Tried(*lower(transform, fakes, self.mode))
        except DataDependentOutputException as error:
            # It branches on values, which fake tensors lack: its shape is known when it runs.
            tried = _Tried(Opaque(transform, str(error)), None, is_known=False)
        if any(fake._version for fake in fakes):
            fault = (
                f"the transform {transform_name(transform)} of <target> changes its source in "
                f"place, at each use. Let it make a new tensor: w.clamp(0) instead of "
                f"w.clamp_(0), w = w * 2 instead of w *= 2."
            )
            return tried._replace(fault=fault)
        return tried


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Drop what torch logs of an op that fails on tensors without data: the fault says it."""

    def from_elsewhere(record: logging.LogRecord) -> bool:
        return record.thread != here

    here, log = threading.get_ident(), logging.getLogger(FakeTensor.__module__)
    log.addFilter(from_elsewhere)
    try:
        yield
    finally:
        log.removeFilter(from_elsewhere)


class _Tried(NamedTuple):
    """What came of trying a transform out."""

    lowered: Ready  # the transform, ready for a graph
    result: Any  # what it gives, without data
    is_known: bool = True  # whether the result is: not if it depends on values
    fault: str | None = None  # what is wrong with the transform for any target


def _misfit(name: str, result: Any, sources: tuple[Spec, ...], target: Spec) -> str | None:
    """Why the result of a transform can't stand for `<target>`, if it can't."""
    if not isinstance(result, torch.Tensor):
        kind = type(result).__name__.removeprefix("immutable_")  # of torch.fx
        return f"the transform {name} of <target> returns {kind}, not a tensor."
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
