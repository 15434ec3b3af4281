"""What the pass did: regions, kept modules and why, parameters before and after.

In: the plan and what the capture noted. Out: `Report`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from torch import nn

from fxtie.errors import FxtieError
from fxtie.planning.plan import Plan
from fxtie.shown import Paged
from fxtie.tied.path_copy import tied_model
from fxtie.tied.state import state_of
from fxtie.tracing.stops import Stop
from fxtie.tracing.user_class import user_class
from fxtie.words import count, list_names, parameter_change, role


@dataclass(frozen=True)
class Kept:
    """A module that runs the user's forward, since it could not be captured.

    Attributes:
        name: its dotted name; empty for the root.
        type: its class.
        reason: what stopped the trace.
        file: the file of the statement that did, if it is known.
        line: its line, 0 if not known.
    """

    name: str
    type: str
    reason: str
    file: str = ""
    line: int = 0

    @classmethod
    def because(cls, name: str, module: nn.Module, stop: Stop) -> Kept:
        """A kept module, and where its forward led to `stop`."""
        file, line = stop.file, stop.line
        code = getattr(user_class(module).forward, "__code__", None)
        if not file and code is not None:
            file, line = code.co_filename, code.co_firstlineno
        return cls(name, user_class(module).__name__, str(stop), file, line)

    @property
    def place(self) -> str:
        """File and line of the statement; empty if they are not known."""
        return f"{self.file}:{self.line}" if self.file else ""

    def __str__(self) -> str:
        where = self.place and f" ({self.place})"
        return f"{self.name or 'the root'}: {self.type} {self.reason}{where}"


@dataclass(frozen=True, repr=False)
class Report(Paged):
    """What the pass did. `print` shows a table, `summary()` one line.

    Attributes:
        plan: the plan that was carried out.
        region_names: modules whose forward was captured as a graph; the root's name is empty.
        kept: modules whose forward could not be.
        unused: targets that no forward reads; their parameters are gone all the same.
        earlier: the plans by which the model had been tied before.
        missed: regions that ran the user's forward in some calls, since their graph did not hold:
            the number of these calls, and what did not hold in the last one.
        distances: after a checkpoint of the untied model was loaded, how far its tensors were from
            the derived ones that take their place, by tensor name: `|derived - given| / |given|`.
    """

    plan: Plan
    region_names: tuple[str, ...]
    kept: tuple[Kept, ...]
    unused: tuple[str, ...] = ()
    earlier: tuple[Plan, ...] = ()
    missed: Mapping[str, tuple[int, str]] = field(default_factory=dict)
    distances: Mapping[str, float] = field(default_factory=dict)

    @property
    def whole_plan(self) -> Plan:
        """All ties of the model, also those by which it was tied before."""
        plans = (*self.earlier, self.plan)
        steps = tuple(step for checked in plans for step in checked.steps)
        modules = {name: module for checked in plans for name, module in checked.modules.items()}
        return replace(plans[0], steps=steps, modules=modules)

    @property
    def ties(self) -> int:
        """Number of ties."""
        return len(self.plan.steps)

    @property
    def targets(self) -> tuple[str, ...]:
        """The derived tensors' names."""
        return tuple(step.tie.target for step in self.plan.steps)

    @property
    def regions(self) -> int:
        """Number of modules captured as one graph each."""
        return len(self.region_names)

    @property
    def parameters(self) -> tuple[int, int]:
        """Number of parameters before and after."""
        return self.plan.parameters, self.plan.parameters_after

    @property
    def bytes_saved(self) -> int:
        """Bytes of the parameters that are gone, less those of learnable transforms."""
        gone = sum(step.dropped * step.spec.dtype.itemsize for step in self.plan.steps)
        learned = (p for m in self.plan.modules.values() for p in m.parameters())
        return gone - sum(p.numel() * p.element_size() for p in learned)

    def summary(self) -> str:
        """One line for a log."""
        parts = [
            parameter_change(*self.parameters),
            count(self.ties, "tie"),
            count(self.regions, "region"),
            f"{len(self.kept)} kept",
        ]
        if self.unused:
            parts.append(f"{len(self.unused)} unused")
        if self.missed:
            missed = sum(calls for calls, _ in self.missed.values())
            parts.append(f"{count(missed, 'call')} without a graph")
        return ", ".join(parts)

    def table(self) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
        """What `print` shows, as headers and rows of text; what was not captured comes first.

        Modules and tensors of which the same is said, and whose names differ in indices only, share
        a row.
        """
        told: dict[tuple[str, str, str], list[str]] = {}
        for name, form, remark in self._remarks():
            told.setdefault((role(name), form, remark), []).append(name or "(root)")
        rows: list[tuple[str, ...]] = [
            (list_names(names), form, remark) for (_, form, remark), names in told.items()
        ]
        return ("name", "form", "remark"), rows

    def _remarks(self) -> Iterator[tuple[str, str, str]]:
        """Name, form and remark of all that there is to tell of."""
        for kept in self.kept:
            yield kept.name, "kept", "\n".join(filter(None, (kept.reason, kept.place)))
        for name in self.unused:
            yield name, "unused", "read by no forward"
        roles: dict[str, list[float]] = {}
        for name, distance in self.distances.items():
            roles.setdefault(role(name), []).append(distance)
        for name in self.distances:
            alike = roles[role(name)]
            span = " to ".join(dict.fromkeys(f"{d:.1%}" for d in (min(alike), max(alike))))
            yield name, "derived", f"{span} away from the checkpoint's value"
        for name in self.region_names:
            yield name, "region", "captured as one graph"
        for name, (n, reason) in self.missed.items():
            yield name, "missed", f"calls that ran the forward as written: {n}; {reason}"

    def to_dict(self) -> dict[str, Any]:
        """Plain data, ready for JSON.

        Keys: those of `Plan.to_dict`, and `bytes_saved`, `regions` and `unused` (names), `kept` (a
        list; each has `name`, `type`, `reason`, `file` and `line`), `missed` (calls and reason, by
        name), and `distances` (of a loaded untied checkpoint's tensors from their derived values,
        relative, by name).
        """
        return {
            **self.plan.to_dict(),
            "bytes_saved": self.bytes_saved,
            "regions": list(self.region_names),
            "kept": [asdict(kept) for kept in self.kept],
            "unused": list(self.unused),
            "missed": {name: list(missed) for name, missed in self.missed.items()},
            "distances": dict(self.distances),
        }


def report(tied: nn.Module) -> Report:
    """What `fxtie.transform` did to make `tied`.

    Args:
        tied: the result of `transform`, compiled or not.

    Raises:
        FxtieError: if it is not a tied model.

    Example:
        >>> import fxtie
        >>> net = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))
        >>> fxtie.report(fxtie.transform(net, fxtie.Rule("2", "0"))).summary()
        'parameters 40 -> 20 (50.0%), 2 ties, 1 region, 0 kept'
    """
    tied = tied_model(tied)
    found = state_of(tied).report
    if not isinstance(found, Report):
        raise FxtieError("This is a part of a tied model. Pass the whole of it.")
    missed = {name: state_of(tied.get_submodule(name)).missed for name in found.region_names}
    missed = {name: counted for name, counted in missed.items() if counted[0]}
    return replace(found, missed=missed, distances=state_of(tied).distances)
