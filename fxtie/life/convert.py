"""Use rules once, or turn derived tensors back into stored ones."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any, TypeVar, cast

import torch
from torch import nn

from fxtie._torch import has_storage, storage_id
from fxtie.errors import FxtieError, PlanError
from fxtie.planning.names import Names, Slot, SlotKey
from fxtie.planning.plan import Plan, plan
from fxtie.rules.rule import Rules, Tie
from fxtie.tied.copy_paths import copy_paths
from fxtie.tied.path_copy import PathCopy, tied_model
from fxtie.tied.state import state_of
from fxtie.tied.tied_module import TiedModule, Ties, derived_tensors, untied_values
from fxtie.transforms import same

M = TypeVar("M", bound=nn.Module)


@torch.no_grad()
def initialize(model: nn.Module, rules: Rules | Plan) -> Plan:
    """Set the targets' values by the rules, once and in place. The layers stay independent.

    Args:
        model: any module; the targets' values are overwritten, in the order of the plan.
        rules: a `Rule`, a `Tie`, several of them, or a `Plan` made for this model.

    Returns:
        The plan that was carried out.

    Raises:
        PlanError: if the rules don't fit the model, or want two values of one tensor that has
            several names; nothing is changed then.

    Example:
        >>> import fxtie
        >>> net = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
        >>> _ = fxtie.initialize(net, fxtie.Rule("1", "0", weight=torch.neg))
        >>> torch.equal(net[1].weight, -net[0].weight)
        True
        >>> len(list(net.parameters()))
        4
    """
    checked = rules if isinstance(rules, Plan) else plan(model, rules)
    names = Names(model)
    for name, module in checked.modules.items():
        names.add_module(f"ties.{name}", module)
    writes = _Writes(checked, names)
    if writes.faults:
        raise PlanError(writes.faults)
    for tie in writes.ties:
        sources = [names.get(name).tensor for name in tie.sources]
        names.get(tie.target).tensor.copy_(tie.transform(*sources))
    return checked


@dataclass(frozen=True)
class _Memory:
    """The bytes from the first to the last element of a tensor."""

    storage: int
    start: int
    stop: int

    @classmethod
    def of(cls, tensor: torch.Tensor) -> _Memory:
        if not has_storage(tensor):  # sparse
            return cls(id(tensor), 0, 1)
        pairs = zip(tensor.shape, tensor.stride(), strict=True)
        length = sum((size - 1) * stride for size, stride in pairs) + 1 if tensor.numel() else 0
        start, width = int(tensor.storage_offset()), tensor.element_size()
        place = storage_id(tensor)
        return cls(place, start * width, (start + length) * width)

    def overlaps(self, other: _Memory) -> bool:
        is_apart = self.stop <= other.start or other.stop <= self.start
        return self.storage == other.storage and not is_apart


class _Writes:
    """The writes of ties into the model itself, checked for conflicts.

    A tied model has a tensor for each name. In the model itself, names may share memory, which
    holds one value.
    """

    def __init__(self, plan: Plan, names: Names) -> None:
        self.names = names
        self.ties: list[Tie] = []  # those to carry out: one for each value
        self.faults: list[str] = []  # values that would depend on the order of the ties
        self._written: dict[int, list[tuple[_Memory, Tie]]] = {}
        self._targets: set[SlotKey] = set()
        for tie in plan.ties:
            self._add(tie)
        for tie in plan.ties:
            for name in tie.sources:
                self._check_source(tie, name)

    def _add(self, tie: Tie) -> None:
        slot = self.names.get(tie.target)
        memory, value = _Memory.of(slot.tensor), self._value(tie)
        if value == (same, memory):
            return  # one tensor under two names already, as the tie asks for
        others = self._overlapping(memory)
        if not others:
            self.ties.append(tie)
        elif any((m, self._value(other)) != (memory, value) for m, other in others):
            self.faults.append(
                f"Two rules for one tensor: {tie.target!r} and {others[0][1].target!r} share their "
                f"memory and can have one value only. Leave one of the rules out, or give both "
                f"the same sources and transform."
            )
        self._written.setdefault(memory.storage, []).append((memory, tie))
        self._targets.add(slot.key)

    def _check_source(self, tie: Tie, name: str) -> None:
        slot = self.names.get(name)
        if slot.key in self._targets:
            return  # in order
        for tensor in _stored(slot):
            for _, other in self._overlapping(_Memory.of(tensor)):
                self.faults.append(
                    f"{tie.target!r} is derived from {name!r}, which shares its memory with the "
                    f"target {other.target!r}: what it would be depends on which of them is set "
                    f"first. Write {other.target!r} instead of {name!r}: rules are ordered by name."
                )
                return

    def _value(self, tie: Tie) -> tuple[Any, ...]:
        """Equal for ties that give the same value."""
        slots = map(self.names.get, tie.sources)
        return tie.transform, *(_Memory.of(tensor) for slot in slots for tensor in _stored(slot))

    def _overlapping(self, memory: _Memory) -> list[tuple[_Memory, Tie]]:
        return [
            found for found in self._written.get(memory.storage, ()) if memory.overlaps(found[0])
        ]


def _stored(slot: Slot) -> list[torch.Tensor]:
    """The tensor, or those that it is computed from."""
    if not slot.is_parametrized:
        return [slot.tensor]
    parametrizations: Any = slot.owner.parametrizations
    module = parametrizations[slot.attr]
    return [*module.parameters(), *module.buffers()]


@torch.no_grad()
def materialize(tied: M) -> M:
    """A plain model again: real layers, fresh tensors, the original classes and names.

    Args:
        tied: the result of `transform`, compiled or not.

    Returns:
        A module of the original class whose derived tensors are stored ones, with the values of
        now. Its state_dict loads into the untied model. It shares nothing with `tied` and needs
        nothing of fxtie; its outputs equal those of `tied` bit for bit.

    Raises:
        FxtieError: if `tied` is not a tied model, or a sharded one.

    Example:
        >>> import fxtie
        >>> net = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
        >>> plain = fxtie.materialize(fxtie.transform(net, fxtie.Rule("1", "0")))
        >>> type(plain), list(plain.state_dict()) == list(net.state_dict())
        (<class 'torch.nn.modules.container.Sequential'>, True)
    """
    model = tied_model(tied)
    if any(derived.is_in_parts for _, _, derived in derived_tensors(model)):
        raise FxtieError(
            "The model is sharded, and torch copies no sharded model. Load "
            "fxtie.untied_state_dict(tied) into an untied model instead."
        )
    ours = [module for module in model.modules() if isinstance(module, PathCopy)]
    copies = copy_paths(model, ours)
    for module in ours:
        if isinstance(module, TiedModule):
            _store(module, copies[module])
    root = copies[model]
    if isinstance(root._modules.get("ties"), Ties):
        del root._modules["ties"]
    return cast(M, copy.deepcopy(root))


def _store(owner: TiedModule, plain: nn.Module) -> None:
    """Put the derived values of `owner` into its plain copy, each in its old place."""
    for attr, derived in state_of(owner).derived.items():
        value = getattr(owner, attr).detach().clone()
        if derived.requires_grad is None:
            plain._buffers[attr] = value
        else:
            plain._parameters[attr] = nn.Parameter(value, derived.requires_grad)
    vars(plain).pop("_fxtie", None)
    for kind, names in zip(("_parameters", "_buffers"), state_of(owner).order, strict=True):
        members = vars(plain)[kind]
        for name in names:
            members[name] = members.pop(name)
    if isinstance(plain, nn.RNNBase):
        plain._init_flat_weights()


@torch.no_grad()
def untied_state_dict(tied: nn.Module) -> dict[str, torch.Tensor]:
    """The state_dict of the untied model: with the derived tensors' values of now.

    Args:
        tied: the result of `transform`, compiled or not, sharded or not.

    Returns:
        Fresh tensors under the original names, which load into the untied model. Of a sharded model
        they are DTensors, and all ranks have to call this.

    Raises:
        FxtieError: if `tied` is not a tied model.

    Example:
        >>> import fxtie
        >>> net = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
        >>> tied = fxtie.transform(net, fxtie.Rule("1", "0"))
        >>> net.load_state_dict(fxtie.untied_state_dict(tied))
        <All keys matched successfully>
    """
    with untied_values():
        values = tied_model(tied).state_dict()
    for name, value in values.items():
        if isinstance(value, torch.Tensor):  # and not what a module calls its extra state
            values[name] = value.clone()
    return values
