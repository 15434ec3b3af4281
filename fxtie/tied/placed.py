"""How derived tensors of modules that tensor parallelism distributes are placed on the mesh.

`parallelize_module` replaces parameters by DTensors; derived tensors can't be replaced. While torch
distributes its module, a stand-in without data is among the parameters, and what replaces it tells.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from fxtie import _torch
from fxtie.tied.call_cache import value_of
from fxtie.tied.derived import Derived
from fxtie.tied.state import state_of


def begin(module: nn.Module) -> None:
    """Put stand-ins in the place of derived tensors, in a module that torch distributes."""
    if not _is_distributing():  # somebody looks at all attributes
        return
    for inner in module.modules():
        state = state_of(inner)
        if state.derived and not state.once:
            state.once = {attr: _StandIn(inner, attr) for attr in state.derived}


def end(module: nn.Module) -> None:
    """Let derived tensors be derived again, placed as torch has asked."""
    for inner in module.modules():
        state = state_of(inner)
        if state.derived:
            state.is_distributed = True
            state.once = {}


def stand_ins(module: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """What stands among the parameters of a module while torch distributes it."""
    for attr, once in state_of(module).once.items():
        if isinstance(once, _StandIn) and not once.derived.stored and _is_distributing():
            yield attr, once.parameter


def take(module: nn.Module, attr: str, parameter: Any) -> bool:
    """Whether a new parameter replaces a stand-in; then its placement is that of the tensor."""
    state = state_of(module)
    if not isinstance(state.once.get(attr), _StandIn):
        return False
    placement = parameter.device_mesh, tuple(parameter.placements)
    derived = state.derived[attr] = replace(state.derived[attr], placement=placement)
    if derived.stored:
        module._parameters[attr] = parameter
    return True


@dataclass(frozen=True)
class _StandIn:
    """A derived tensor while torch distributes its module."""

    module: nn.Module
    attr: str

    @property
    def derived(self) -> Derived:
        return state_of(self.module).derived[self.attr]

    @property
    def parameter(self) -> Any:
        if self.derived.stored:
            return self.module._parameters[self.attr]
        data = torch.empty(self.derived.shape, device="meta")
        return nn.Parameter(data, bool(self.derived.requires_grad))

    def __call__(self) -> Any:
        if _is_distributing():
            return self.parameter
        state_of(self.module).once = {}  # torch has raised before it came to an end
        return value_of(self.derived)


def _is_distributing() -> bool:
    """Whether torch distributes a module now."""
    if (api := _torch.dtensor()) is None:
        return False
    code = inspect.unwrap(api.distribute_module).__code__
    frame = sys._getframe()
    while frame is not None and frame.f_code is not code:
        frame = frame.f_back  # type: ignore[assignment]
    return frame is not None
