"""What fxtie knows of a module in a tied model: one object, under one key of its `__dict__`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fxtie.tied.call_cache import current_call, is_worth_it, value_of
from fxtie.tied.derived import Derived
from fxtie.tied.variant import Signature, Variant
from fxtie.tracing.graphs import graph_from_records, graph_to_records


@dataclass(eq=False)
class State:
    """What fxtie knows of a module.

    Attributes:
        derived: its derived tensors, by attribute.
        order: its parameters and buffers before the first of them was derived.
        read: its tensors that others are derived from: their names, by attribute.
        once: inside of `derive_once`, what gives the values of the derived tensors.
        is_distributed: whether tensor parallelism has it compute on DTensors.
        added: attributes that capturing has added.
        missed: how many calls its graph, if any, did not hold for, and why the last one.
        report: of a root, the `Report` of how it was made.
        distances: of a root, those of the derived tensors from the checkpoint loaded last.
        saved_in: of a root, folders with checkpoints that were made of it (`life/plain.py`).
    """

    derived: dict[str, Derived] = field(default_factory=dict)
    order: tuple[tuple[str, ...], tuple[str, ...]] = ((), ())
    read: dict[str, str] = field(default_factory=dict)
    once: Mapping[str, Callable[[], Any]] = field(default_factory=dict)
    is_distributed: bool = False
    added: tuple[str, ...] = ()
    missed: tuple[int, str] = (0, "")
    report: Any = None
    distances: Mapping[str, float] = field(default_factory=dict)
    saved_in: dict[Path, None] = field(default_factory=dict)

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "once": {}}


@dataclass(eq=False, kw_only=True)
class RegionState(State):
    """What fxtie knows of a region.

    Attributes:
        variants: its graphs, by mode. Where both modes have one graph, it is under both keys.
        switches: the modules whose `training` flag the code asked for.
        signature: which calls the graphs are for.
        recomputes: whether derived tensors are computed again in the backward pass.
        reads: the derived tensors by name; an item is read as the attribute is.
        read_once: inside of `derive_once`, what gives their values.
        is_edited: whether the user has changed a graph.
        warned: whether a warning told that a guard does not hold.
        is_retired: whether its graphs are not used any more, since they read tensors past what
            another library does around calls.
    """

    variants: dict[bool, Variant]
    switches: tuple[nn.Module, ...]
    signature: Signature
    recomputes: bool
    reads: Reads
    read_once: Callable[[], Mapping[str, torch.Tensor]] | None = None
    is_edited: bool = False
    warned: bool = False
    is_retired: bool = False

    def current(self, training: bool) -> Variant:
        return self.running(self.variants[training])

    def running(self, variant: Variant) -> Variant:
        """The variant itself, or the one that reads derived tensors instead of deriving them."""
        if self.is_edited:  # maybe a derivation
            return variant
        if self.read_once is None and (
            current_call() is None or not any(map(is_worth_it, self.reads.derived()))
        ):
            return variant
        return variant.reading or variant.make_reading(self.reads.keys())

    def read_from(self, values: Callable[[], Mapping[str, torch.Tensor]] | None) -> None:
        """Read derived tensors from `values`; from None on, derive them again."""
        self.read_once = values
        for variant in self.variants.values() if values else ():
            self.running(variant)  # makes it: torch.compile couldn't look through that

    def holds(self, training: bool) -> bool:
        """Whether the graph of a mode holds, as a constant to torch.export."""
        return self.current(training).guards.broken() is None

    holds._dynamo_marked_constant = True  # type: ignore[attr-defined]

    def __getstate__(self) -> dict[str, Any]:
        variants = _converted(self.variants, graph_to_records)
        return {**super().__getstate__(), "read_once": None, "variants": variants}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state, variants=_converted(state["variants"], graph_from_records))


class Reads(dict[str, tuple[nn.Module, str]]):
    """Owner and attribute of derived tensors, by name; each is read as its attribute is."""

    def __getitem__(self, name: str) -> Any:
        owner, attr = super().__getitem__(name)
        return value_of(state_of(owner).derived[attr])

    def derived(self) -> Iterator[Derived]:
        for owner, attr in self.values():
            yield state_of(owner).derived[attr]


def _converted(variants: dict[bool, Variant], convert: Callable[[Any], Any]) -> dict[bool, Variant]:
    """Variants with converted graphs; one that is under both keys stays one."""
    made = {id(v): v.with_graph(convert(v.graph)) for v in variants.values()}
    return {mode: made[id(v)] for mode, v in variants.items()}


def state_of(module: nn.Module) -> State:
    """The state of a module; an empty one, for reading, of a module that is not in a tied model."""
    state: State | None = module.__dict__.get("_fxtie")
    return State() if state is None else state
