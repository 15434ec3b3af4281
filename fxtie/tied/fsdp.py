"""Stored tensors that FSDP2 shards: what a module reads, and its values, gathered.

FSDP2 gathers the tensors of a unit for the unit's own forward. A module outside of the unit gathers
them by itself: it reads the sharded Parameter, and autograd reduces the gradient. It never reads
what the unit happens to have gathered: FSDP2 reduces the gradient of that when the backward of the
unit is over, and what comes later is lost.
"""

from __future__ import annotations

import weakref
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import nn

from fxtie import _torch
from fxtie.errors import FxtieError
from fxtie.tied.dtensors import as_dtensor


@dataclass(frozen=True)
class Managed:
    """A Parameter that FSDP2 shards."""

    param: Any  # what FSDP2 knows of it
    group: Any  # what FSDP2 knows of those that it gathers along with it

    @staticmethod
    def find(owner: nn.Module, attr: str) -> Managed | None:
        """What FSDP2 knows of a stored tensor; None if it leaves it alone."""
        if not _torch.is_fsdp_managed(owner) or attr not in owner._parameters:
            return None
        if attr not in _found.get(owner, {}):
            for state in _torch.fsdp_states():
                for group in _torch.fsdp_groups(state):
                    _note(group)
        if (found := _found.get(owner, {}).get(attr)) is None:
            return None
        param, group = (ref() for ref in found)
        return None if param is None else Managed(param, group)

    @property
    def parameter(self) -> torch.Tensor:
        """The sharded Parameter, which optimizers see."""
        return self.param.sharded_param  # type: ignore[no-any-return]

    def read(self, value: Any, reader: nn.Module) -> Any:
        """What a module derives from: the attribute in the same unit, else the Parameter.

        Any other value was put there for a call (`torch.func.functional_call`).
        """
        if value is _torch.fsdp_whole(self.param):
            return value if reader in _members(self.group) else self.parameter
        return self.parameter if value is _torch.fsdp_parts(self.param) else value

    def gather(self, reader: nn.Module) -> torch.Tensor:
        """The values of the Parameter, in the dtype that the unit of the reader computes in.

        Whole over the processes that FSDP2 shards over; where tensor parallelism shards it too, a
        DTensor still. FSDP2's own rules hold for the gradient: it is the mean over the processes,
        or the sum divided by the factor that the user has set, in the dtype of the policy.
        """
        api: Any = _torch.dtensor()
        tensor: Any = self.parameter
        policy = policy_of(reader) or self.group.mp_policy
        dtype = policy.param_dtype if tensor.is_floating_point() else None
        if dtype is not None and policy.reduce_dtype in (None, dtype):
            tensor = tensor.to(dtype)  # before the gather: less to send
        local = tensor.to_local()
        if self.param.offload_to_cpu:
            local = local.to(self.param.device)
        # Only FSDP2's own dimensions of the mesh: over these, the parts are plain shards. torch 2.9
        # takes the parts of a mesh of two dimensions in another order.
        mesh, layout = _torch.fsdp_layout(self.param)
        placements = [
            p if p.is_replicate() else api.Shard(p.dim) for p in tensor.placements[: mesh.ndim]
        ]
        factor = self.group.gradient_divide_factor
        reduced = [api.Partial("avg" if factor is None else "sum")] * mesh.ndim
        parts: Any = as_dtensor(local, mesh, placements, *layout)
        gathered = parts.redistribute(placements=[api.Replicate()] * mesh.ndim)
        whole: torch.Tensor = gathered.to_local(grad_placements=reduced)
        if factor is not None:
            whole = _DividedGradient.apply(whole, factor)  # type: ignore[no-untyped-call]
        if dtype is not None:
            whole = whole.to(dtype)
        inner = _torch.fsdp_inner_spec(self.param)  # of tensor parallelism
        if inner is None:
            return whole
        return as_dtensor(whole, inner.mesh, inner.placements, tensor.shape, tensor.stride())


def policy_of(module: nn.Module) -> Any:
    """The mixed-precision policy of the unit that a module is in; None outside of all units."""
    ref = _innermost.get(module)
    if ref is None or (state := ref()) is None:
        around = [state for state in _torch.fsdp_states() if module in _members(state)]
        if not around:
            return None
        state = min(around, key=lambda state: len(_members(state)))
        _innermost[module] = weakref.ref(state)
    return _torch.fsdp_policy(state)


def refuse_flattened(owner: nn.Module, name: str) -> None:
    """Raise if the predecessor of FSDP2 has made the tensors of a module a part of a flat one."""
    if _torch.is_fsdp_managed(owner) and policy_of(owner) is None:
        raise FxtieError(
            f"{name!r} is a source of derived tensors, and FullyShardedDataParallel has made it a "
            f"part of a flat tensor. Use torch.distributed.fsdp.fully_shard instead."
        )


def _note(group: Any) -> None:
    """Note where the Parameters of a group are."""
    for param in group.fsdp_params:
        for module, attr in _torch.fsdp_places(param):
            _found.setdefault(module, {})[attr] = weakref.ref(param), weakref.ref(group)


def _members(unit: Any) -> weakref.WeakSet[nn.Module]:
    """The modules inside of a unit, given what FSDP2 knows of it or of a group of it."""
    if unit not in _inside:
        inside = (inner for module in _torch.fsdp_modules(unit) for inner in module.modules())
        _inside[unit] = weakref.WeakSet(inside)
    return _inside[unit]


_Refs: TypeAlias = tuple[weakref.ref[Any], weakref.ref[Any]]

# All weak, since what FSDP2 knows of a unit refers to its modules.
_found: weakref.WeakKeyDictionary[nn.Module, dict[str, _Refs]] = weakref.WeakKeyDictionary()
_innermost: weakref.WeakKeyDictionary[nn.Module, weakref.ref[Any]] = weakref.WeakKeyDictionary()
_inside: weakref.WeakKeyDictionary[Any, weakref.WeakSet[nn.Module]] = weakref.WeakKeyDictionary()


class _DividedGradient(torch.autograd.Function):
    """Hands on a tensor, and divides its gradient."""

    @staticmethod
    def forward(ctx: Any, tensor: torch.Tensor, divisor: float) -> torch.Tensor:
        ctx.divisor = divisor
        return tensor.view_as(tensor)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        return gradient / ctx.divisor, None
