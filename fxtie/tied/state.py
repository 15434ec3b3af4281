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
    """What fxtie knows of a module."""

    derived: dict[str, Derived] = field(default_factory=dict)  # its derived tensors, by attribute
    # Its parameters and buffers before the first of them was derived.
    order: tuple[tuple[str, ...], tuple[str, ...]] = ((), ())
    read: dict[str, str] = field(default_factory=dict)  # names of its tensors that are sources
    # Inside of `derive_once`, what gives the values of the derived tensors
    once: Mapping[str, Callable[[], Any]] = field(default_factory=dict)
    is_distributed: bool = False  # whether tensor parallelism has it compute on DTensors
    added: tuple[str, ...] = ()  # attributes that capturing has added
    # How many calls its graph, if any, did not hold for, and why the last one.
    missed: tuple[int, str] = (0, "")
    report: Any = None  # of a root, the `Report` of how it was made
    # Of a root, those of the derived tensors from the checkpoint loaded last.
    distances: Mapping[str, float] = field(default_factory=dict)
    # Of a root, folders with checkpoints that were made of it (`life/plain.py`).
    saved_in: dict[Path, None] = field(default_factory=dict)

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "once": {}}


@dataclass(eq=False, kw_only=True)
class RegionState(State):
    """What fxtie knows of a region."""

    # Its graphs, by mode. Where both modes have one graph, it is under both keys.
    variants: dict[bool, Variant]
    switches: tuple[nn.Module, ...]  # the modules whose `training` flag the code asked for
    signature: Signature
    recomputes: bool  # whether derived tensors are computed again in the backward pass
    reads: Reads  # the derived tensors by name; an item is read as the attribute is
    # Inside of `derive_once`, what gives their values.
    read_once: Callable[[], Mapping[str, torch.Tensor]] | None = None
    is_edited: bool = False  # whether the user has changed a graph
    warned: bool = False  # whether a warning told that a guard does not hold
    is_retired: bool = False  # its graphs would read tensors past another library's hooks

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
