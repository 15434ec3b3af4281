"""Derivations from tensors that several processes hold together."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import nn

from fxtie import _torch
from fxtie._torch import TorchDispatchMode, is_dtensor
from fxtie.planning.lowering import Lowered
from fxtie.tied.fsdp import Managed, policy_of
from fxtie.tied.recompute import is_recomputing, noted
from fxtie.words import join


def is_distributed() -> bool:
    """Whether there is a process group: without one, no tensor is sharded."""
    return _IS_AVAILABLE and torch.distributed.is_initialized()


_IS_AVAILABLE = torch.distributed.is_available()  # in this build of torch


class Reader(NamedTuple):
    """The module that reads a derived tensor."""

    name: str  # of the derived tensor
    module: nn.Module
    is_distributed: bool  # whether tensor parallelism has it compute on DTensors
    # What was gathered for other reads of the same call, to be used again.
    gathers: dict[Any, torch.Tensor]

    def gathered(self, owner: nn.Module, attr: str, value: Any) -> Any:
        """A source, gathered if FSDP2 shards it."""
        managed = Managed.find(owner, attr)
        if managed is None or value is not managed.parameter:
            return value
        dtype = reading_dtype(self.module)
        key = id(value), value._version, dtype, torch.is_grad_enabled()
        if key not in self.gathers:
            reader = self.module  # and not `self`, which would keep alive what it has gathered
            self.gathers[key] = noted(self.name, lambda _: managed.gather(reader), value)
        return self.gathers[key]


def mesh_of(owner: nn.Module, attr: str) -> Any:
    """The mesh of processes that hold a stored tensor together; None if each has it whole."""
    managed = Managed.find(owner, attr)
    stored: Any = owner._parameters.get(attr) if managed is None else managed.parameter
    return stored.device_mesh if is_dtensor(stored) else None


def source_value(owner: nn.Module, attr: str, value: Any, reader: nn.Module) -> Any:
    """What a module derives from where `value` is an attribute of `owner`."""
    managed = Managed.find(owner, attr)
    return value if managed is None else managed.read(value, reader)


def derive(
    transform: Callable[..., Any], sources: Sequence[tuple[nn.Module, str, Any]], reader: Reader
) -> Any:
    """A transform of stored tensors.

    They stay in the parts that tensor parallelism has made of them if the reader computes with such
    parts and the transform is surely elementwise: then nothing is sent. Otherwise each process
    computes with the whole tensors. `sources` are owner, attribute and `source_value` of each.
    """
    values = [reader.gathered(*source) for source in sources]
    mesh = next((value.device_mesh for value in values if is_dtensor(value)), None)
    if mesh is not None and reader.is_distributed and _is_elementwise(transform, values):
        return run(transform, values, reader.name)
    whole = [noted(reader.name, _whole, v) if is_dtensor(v) else v for v in values]
    result = _run(transform, whole, reader)
    if mesh is None or not reader.is_distributed:
        return result
    replicated = [_torch.dtensor().Replicate()] * mesh.ndim
    if isinstance(result, tuple):
        return tuple(placed(value, mesh, replicated, reader.name) for value in result)
    return placed(result, mesh, replicated, reader.name)


def _run(transform: Callable[..., Any], values: Sequence[Any], reader: Reader) -> Any:
    """A transform of whole tensors. One that is a unit by itself gathers its own parameters."""
    if not isinstance(transform, nn.Module) or _torch.fsdp_state(transform) is not None:
        return run(transform, values, reader.name)
    if own := dict(_own_tensors(transform, reader)):
        return torch.func.functional_call(transform, own, tuple(values))
    return run(transform, values, reader.name)


def run(transform: Callable[..., Any], values: Sequence[torch.Tensor], name: str) -> Any:
    """What a transform gives, noted if it can be computed again."""
    if isinstance(transform, nn.Module) and _torch.is_exporting():
        # torch.distributed.pipelining can't have a module called from outside of its parent.
        return transform.forward(*values)
    again = None
    if isinstance(transform, Lowered) and is_recomputing():
        again = transform.again(values)
    return transform(*values) if again is None else noted(name, again, *values)


def placed(value: torch.Tensor, mesh: Any, placements: Any, name: str) -> torch.Tensor:
    """A derived tensor of this name, placed on a mesh as tensor parallelism wants it."""
    api: Any = _torch.dtensor()
    if is_dtensor(value) and _layout(value)[:2] == (mesh, tuple(placements)):
        return value

    def place(value: Any) -> Any:
        if not is_dtensor(value):  # the same on each process
            replicated = [api.Replicate()] * mesh.ndim
            value = api.DTensor.from_local(value, mesh, replicated, run_check=False)
        return value.redistribute(mesh, placements)

    return noted(name, place, value)  # type: ignore[no-any-return]


def divided(value: torch.Tensor, mesh: Any, name: str) -> torch.Tensor:
    """A derived tensor of this name, divided along its first dimension, as a mesh has it first."""
    api: Any = _torch.dtensor()
    first = api.Shard(0) if value.ndim else api.Replicate()
    return placed(_whole(value), mesh, [first, *[api.Replicate()] * (mesh.ndim - 1)], name)


def reading_dtype(reader: nn.Module) -> torch.dtype | None:
    """The dtype that FSDP2's policy has a module compute in, if it has one."""
    policy = policy_of(reader)
    return None if policy is None else policy.param_dtype


def _whole(value: Any) -> Any:
    """A tensor, gathered from the processes that hold it together."""
    return value.full_tensor() if is_dtensor(value) else value


def _own_tensors(transform: nn.Module, reader: Reader) -> Iterator[tuple[str, torch.Tensor]]:
    """Those parameters of a learnable transform that are sharded, gathered."""
    for prefix, owner in transform.named_modules():
        for attr, parameter in owner.named_parameters(recurse=False):
            source = source_value(owner, attr, parameter, reader.module)
            value = _whole(reader.gathered(owner, attr, source))
            if value is not parameter:
                yield join(prefix, attr), value


def _is_elementwise(transform: Callable[..., Any], values: Sequence[Any]) -> bool:
    """Whether each process may compute its part of the result from its parts of the sources."""
    if not isinstance(transform, Lowered) or not all(map(is_dtensor, values)):
        return False
    if len({*map(_layout, values)}) > 1 or transform.gives_several:
        return False
    if transform not in _elementwise:
        look = _Elementwise()  # type: ignore[no-untyped-call]
        stand_ins = [torch.empty(v.shape, dtype=v.dtype, device="meta") for v in values]
        look.known = {id(tensor): tensor for tensor in stand_ins}
        with look:
            transform(*stand_ins)
        _elementwise[transform] = look.holds
    return _elementwise[transform]


def _layout(value: Any) -> tuple[Any, ...]:
    return value.device_mesh, value.placements, value.shape


_elementwise: weakref.WeakKeyDictionary[Lowered, bool] = weakref.WeakKeyDictionary()


class _Elementwise(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes whether all ops that run are elementwise, of nothing but the sources."""

    known: dict[int, torch.Tensor]
    holds = True

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        leaves = _torch.pytree.tree_leaves((args, kwargs))
        self.holds &= (
            torch.Tag.pointwise in function.tags
            and torch.Tag.nondeterministic_seeded not in function.tags
            and all(id(v) in self.known for v in leaves if isinstance(v, torch.Tensor))
        )
        result = function(*args, **(kwargs or {}))
        self.known[id(result)] = result
        return result
