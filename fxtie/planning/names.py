"""Names of a model's modules and tensors, and where each of these is (`Slot`).

Owners are compared by identity, since one module may have several names and one Parameter several
owners.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import nn
from torch.nn.parameter import is_lazy
from torch.nn.utils import parametrize

from fxtie._torch import FakeTensorMode, is_dtensor
from fxtie.errors import FxtieError, closest
from fxtie.foreign import is_loading
from fxtie.planning.spec import Spec
from fxtie.tracing.guards import has_hooks
from fxtie.tracing.user_class import derived_of
from fxtie.words import join


def is_parametrized(module: nn.Module, attr: str | None = None) -> bool:
    """Whether a tensor of a module is parametrized, or any."""
    # Much faster than torch's function alone, which asks for an attribute that most modules lack.
    return "parametrizations" in module._modules and parametrize.is_parametrized(module, attr)


SlotKey: TypeAlias = tuple[int, str]


@dataclass(frozen=True)
class Slot:
    """Where a tensor lives: the attribute of a module."""

    owner: nn.Module
    attr: str
    name: str

    @property
    def key(self) -> SlotKey:
        """Identity: the same slot under another name has the same key."""
        return id(self.owner), self.attr

    @property
    def is_parametrized(self) -> bool:
        return is_parametrized(self.owner, self.attr)

    @property
    def tensor(self) -> torch.Tensor:
        """The stored tensor, or the computed one if it is parametrized."""
        tensor = getattr(self.owner, self.attr)
        assert isinstance(tensor, torch.Tensor)
        return tensor

    @property
    def stored(self) -> torch.Tensor | None:
        """The Parameter or buffer, if there is one."""
        members = self.owner.__dict__
        tensor: torch.Tensor | None
        tensor = members["_parameters"].get(self.attr, members["_buffers"].get(self.attr))
        return tensor

    def spec(self, mode: FakeTensorMode) -> Spec:
        if self.is_parametrized:
            with mode:  # computes the parametrization, on fakes
                return Spec.of(self.tensor)
        return Spec.of(self.tensor)

    def faults_as_target(self) -> list[str]:
        """Why this tensor cannot be derived, if it cannot."""
        faults = []
        if self.is_parametrized:
            faults.append(
                f"the target {self.name!r} is parametrized. Remove the parametrization (with "
                f"torch.nn.utils.parametrize.remove_parametrizations), or put it into the "
                f"transform."
            )
        elif self.tensor._backward_hooks or getattr(
            self.tensor, "_post_accumulate_grad_hooks", None
        ):
            faults.append(
                f"the target {self.name!r} has tensor hooks, which a derived tensor would lose. "
                f"Remove them first."
            )
        if has_hooks(self.owner):
            where = self.name.rpartition(".")[0] or "the model"
            faults.append(
                f"the module {where!r} of the target {self.name!r} has hooks, which would not "
                f"run. Remove them, or put them on a module around it."
            )
        return faults


class Names:
    """Every name of a model's modules and tensors, aliases included."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.modules: dict[str, nn.Module] = dict(model.named_modules(remove_duplicate=False))
        self._slots: dict[str, Slot] = {}
        for prefix, module in self.modules.items():
            if not prefix.endswith(".parametrizations") and ".parametrizations." not in prefix:
                self._add_slots(prefix, module)
        # The names of all parameters, buffers and parametrized tensors.
        self.tensors: dict[str, None] = dict.fromkeys(self._slots)
        self._inside: dict[str, list[str]] = {}
        self._usable: dict[str, Slot] = {}  # those that were found

    def _add_slots(self, prefix: str, module: nn.Module) -> None:
        for attr in self.tensors_of(module):
            name = join(prefix, attr)
            self._slots[name] = Slot(module, attr, name)

    @staticmethod
    def tensors_of(module: nn.Module) -> list[str]:
        """The tensors that a module itself owns, parametrized ones included."""
        names = [name for name, p in module._parameters.items() if p is not None]
        names += [name for name, b in module._buffers.items() if b is not None]
        if is_parametrized(module):
            names += module.parametrizations.keys()  # type: ignore[operator,union-attr]
        return names

    def add_module(self, prefix: str, module: nn.Module) -> None:
        """Let the tensors of a module outside of the model be found below `prefix`."""
        self._usable.clear()
        for name, inner in module.named_modules(remove_duplicate=False):
            self._add_slots(join(prefix, name), inner)

    def inside(self, name: str) -> Sequence[str]:
        """The tensors of a module and of those inside of it, by their whole names."""
        if not self._inside:
            for tensor in self.tensors:
                for owner in _around(tensor):
                    self._inside.setdefault(owner, []).append(tensor)
        return self._inside.get(name, ())

    def owned(self, modules: Mapping[str, Any]) -> dict[str, Sequence[str]]:
        """The tensors of each of these modules; of modules within one another, the inner one's."""
        if len(modules) == 1:
            return {name: self.inside(name) for name in modules}
        owned: dict[str, list[str]] = {name: [] for name in modules}
        for tensor in self.tensors if modules else ():
            if (inner := next(filter(owned.__contains__, _around(tensor)), None)) is not None:
                owned[inner].append(tensor)
        return {**owned}

    def find(self, name: str) -> Slot | str:
        """The slot of a tensor name, or the end of a sentence that says why there is none."""
        if name in self._usable:
            return self._usable[name]
        slot = self._slots.get(name)
        if slot is None:
            return self._why_missing(name)
        if isinstance(slot.owner, torch.jit.ScriptModule):
            return "belongs to a module of TorchScript. Tie the model before it is scripted."
        tensor = slot.stored
        if is_dtensor(tensor):
            return "is a DTensor: sharded already. Tie the model first, and shard the tied one."
        if tensor is not None and is_lazy(tensor):
            return "is a lazy tensor without a shape yet. Run the model once before tying it."
        if tensor is not None and tensor.is_meta and any(map(is_loading, vars(slot.owner))):
            return (
                "is offloaded: it is not there until its module is called. Tie the model first, "
                "and offload the tied one."
            )
        self._usable[name] = slot
        return slot

    def get(self, name: str) -> Slot:
        """The slot of a name in a plan.

        Raises:
            FxtieError: if the plan was made for another model.
        """
        found = self.find(name)
        if isinstance(found, str):
            raise FxtieError(f"The plan was made for another model: {name!r} {found} Plan again.")
        return found

    def _why_missing(self, name: str) -> str:
        if name in self.modules:
            return "is a module, not a tensor. A tie, or a rule for a tensor, names tensors."
        prefix, _, attr = name.rpartition(".")
        owner = self.modules.get(prefix)
        value = None if owner is None else owner.__dict__.get(attr)
        if owner is not None and attr in derived_of(owner):
            return "is derived already. Tie to what it is derived from, or give all rules at once."
        if isinstance(value, torch.Tensor):
            return (
                "is a plain attribute that a hook recomputes before each forward, so reading it "
                "elsewhere gives a stale value. Use torch.nn.utils.parametrizations instead of "
                "the hook, or tie the tensors that it is computed from."
            )
        return f"is not a tensor of the model.{closest(name, self._slots)}"

    def savings(self, targets: Iterable[Slot]) -> dict[SlotKey, int]:
        """Parameters that go when the targets do: a Parameter that is held elsewhere stays."""
        holders: dict[int, set[SlotKey]] = {}
        for slot in self._slots.values():
            parameters = slot.owner._parameters  # TorchScript's have no `get`
            if slot.attr in parameters:
                parameter = parameters[slot.attr]
                holders.setdefault(id(parameter), set()).add(slot.key)
        dropped = {slot.key: slot for slot in targets}
        saved: dict[SlotKey, int] = {}
        for key, slot in dropped.items():
            parameter = slot.owner._parameters.get(slot.attr)
            if parameter is None:
                continue
            held_by = holders[id(parameter)]
            if held_by <= dropped.keys() and not held_by & saved.keys():
                saved[key] = parameter.numel()
        return saved


def _around(tensor: str) -> Iterator[str]:
    """The names of the modules that a tensor is in, the innermost first and the root last."""
    while tensor:
        tensor = tensor.rpartition(".")[0]
        yield tensor
