"""Derivations from tensors that several processes hold together.

In: a transform, the stored tensors that it is computed from, as FSDP2 or tensor parallelism left
them, and the module that reads the result. Out: the result.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import nn

from fxtie import _torch
from fxtie._torch import TorchDispatchMode
from fxtie.planning.lowering import Lowered
from fxtie.planning.names import join
from fxtie.tied.fsdp import Managed, policy_of


def is_distributed() -> bool:
    """Whether there is a process group: without one, no tensor is sharded."""
    return _IS_AVAILABLE and torch.distributed.is_initialized()


_IS_AVAILABLE = torch.distributed.is_available()  # in this build of torch


def is_dtensor(value: Any) -> bool:
    """Whether a tensor is one that several processes hold together."""
    api = _torch.dtensor()
    return api is not None and isinstance(value, api.DTensor)


class Reader(NamedTuple):
    """The module that reads a derived tensor.

    Attributes:
        module: the module.
        is_distributed: whether tensor parallelism has it compute on DTensors.
        gathers: what was gathered for other reads of the same call, to be used again.
    """

    module: nn.Module
    is_distributed: bool
    gathers: dict[Any, torch.Tensor]

    def gathered(self, owner: nn.Module, attr: str, value: Any) -> Any:
        """A source, gathered if FSDP2 shards it."""
        managed = Managed.find(owner, attr)
        if managed is None or value is not managed.parameter:
            return value
        dtype = reading_dtype(self.module)
        key = id(value), value._version, dtype, torch.is_grad_enabled()
        if key not in self.gathers:
            self.gathers[key] = managed.gather(self.module)
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
    computes with the whole tensors.

    Args:
        transform: a function of tensors, or a module with parameters of its own.
        sources: owner, attribute and `source_value` of each.
        reader: the module that reads the result.
    """
    values = [reader.gathered(*source) for source in sources]
    mesh = next((value.device_mesh for value in values if is_dtensor(value)), None)
    if mesh is not None and reader.is_distributed and _is_elementwise(transform, values):
        return transform(*values)
    result = _run(transform, [*map(_whole, values)], reader)
    if mesh is None or not reader.is_distributed:
        return result
    replicated = [_torch.dtensor().Replicate()] * mesh.ndim
    if isinstance(result, tuple):
        return tuple(placed(value, mesh, replicated) for value in result)
    return placed(result, mesh, replicated)


def _run(transform: Callable[..., Any], values: Sequence[Any], reader: Reader) -> Any:
    """A transform of whole tensors."""
    if not isinstance(transform, nn.Module) or _torch.fsdp_state(transform) is not None:
        return transform(*values)  # a unit of its own gathers its parameters
    own = dict(_own_tensors(transform, reader))
    return torch.func.functional_call(transform, own, tuple(values)) if own else transform(*values)


def placed(value: torch.Tensor, mesh: Any, placements: Any) -> torch.Tensor:
    """A derived tensor, placed on a mesh as tensor parallelism wants it."""
    api: Any = _torch.dtensor()
    if not is_dtensor(value):  # the same on each process
        value = api.DTensor.from_local(value, mesh, [api.Replicate()] * mesh.ndim, run_check=False)
    return value.redistribute(mesh, placements)  # type: ignore[attr-defined,no-any-return]


def divided(value: torch.Tensor, mesh: Any) -> torch.Tensor:
    """A derived tensor, divided among the processes along the first dimension of a mesh."""
    api: Any = _torch.dtensor()
    first = api.Shard(0) if value.ndim else api.Replicate()
    return placed(_whole(value), mesh, [first, *[api.Replicate()] * (mesh.ndim - 1)])


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
    layouts = {(v.device_mesh, v.placements, v.shape) for v in values}
    if len(layouts) > 1 or transform.gives_several:
        return False
    if transform not in _elementwise:
        look = _Elementwise()  # type: ignore[no-untyped-call]
        stand_ins = [torch.empty(v.shape, dtype=v.dtype, device="meta") for v in values]
        look.known = {id(tensor): tensor for tensor in stand_ins}
        with look:
            transform(*stand_ins)
        _elementwise[transform] = look.holds
    return _elementwise[transform]


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
