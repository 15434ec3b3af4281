"""The tied model at run time: derived tensors as attributes.

In: copies of the modules on the way to a target (`copying.py`). Out: modules of the user's own
class which read derived tensors where the original reads stored ones. Called by `capture.py`.

Reading the attribute of a dropped tensor computes it. A model made of such modules is right,
whatever its forwards do, with no graph at all; `region.py` adds the graphs.
"""

from __future__ import annotations

import copy
import functools
import math
import types
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from fxtie.errors import FxtieError
from fxtie.names import join
from fxtie.runtime.calls import remembering, value_of
from fxtie.runtime.copied import PathCopy, new_like, user_forward


@dataclass(frozen=True, eq=False)
class Source:
    """A tensor to read at call time, by its name in a model.

    So it survives `.to()`, `to_empty()`, `load_state_dict(assign=True)`, deepcopy and pickling, and
    a module that is replaced is read from then on, as by a graph.
    """

    root: nn.Module
    name: str

    @property
    def attr(self) -> str:
        return self.name.rpartition(".")[2]

    @property
    def owner(self) -> nn.Module:
        """The module that owns the tensor now."""
        module: Any = self.root
        for part in self.name.split(".")[:-1]:
            module = module._modules[part]
        return module  # type: ignore[no-any-return]

    def steps(self) -> Iterator[tuple[nn.Module, str, nn.Module]]:
        """The way to the owner: each module, the name of its child, and the child."""
        module: Any = self.root
        for part in self.name.split(".")[:-1]:
            child = module._modules[part]
            yield module, part, child
            module = child


@dataclass(frozen=True, eq=False)
class Derived:
    """How a target tensor is computed.

    Attributes:
        name: the target's tensor name in the whole model.
        transform: callable on the source tensors (lowered), or a learnable module.
        sources: what it gets.
        shape: the shape it gives.
        requires_grad: of the Parameter that it stands for; None if it stands for a buffer.
        stored: the target's own stored value is the source (a self-derived tensor).
        is_shared: whether others are derived alike, or from it.
    """

    name: str
    transform: Callable[..., torch.Tensor]
    sources: tuple[Source, ...]
    shape: torch.Size
    requires_grad: bool | None = True
    stored: bool = False
    is_shared: bool = False

    def compute(self) -> torch.Tensor:
        return self.transform(*map(self.read, self.sources))

    @property
    def identity(self) -> Any:
        """Equal for tensors that are derived alike, with equal values: no two random ones are."""
        is_repeatable = getattr(self.transform, "is_repeatable", False)
        return id(self.transform) if is_repeatable else (id(self.transform), self.name)

    def read(self, source: Source) -> Any:
        owner = source.owner
        if source.attr in owner.__dict__:
            raise FxtieError(
                f"{self.name!r} is derived from {source.name!r}, a plain attribute by now. If "
                f"a hook computes it before each forward (as of torch.nn.utils.prune), reading it "
                f"elsewhere gives a stale value. Use torch.nn.utils.parametrize instead, or remove "
                f"the hook first."
            )
        return getattr(Stored(owner) if self.stored else owner, source.attr)


class Stored:
    """A module's stored tensors, read past its derived attributes."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module

    def __getattr__(self, name: str) -> Any:
        return nn.Module.__getattr__(self.module, name)


reader: Callable[[Derived], Any] = value_of
"""How derived attributes are read. A capture sets its own, which records nodes, while it traces."""


class TiedModule(PathCopy):
    """A module of the user's class, some of whose tensors are derived.

    Promises: `isinstance` with the user's class holds; derived tensors are read as attributes under
    their old names; they are neither parameters nor buffers, and have no key in the state_dict;
    a checkpoint that has keys for them loads.
    """

    _fxtie_derived: Mapping[str, Derived] = types.MappingProxyType({})
    _fxtie_once: Mapping[str, Callable[[], Any]] = types.MappingProxyType({})  # see once.py

    @property
    def _fxtie_stored(self) -> Stored:
        """By which graphs refer to the stored value of a self-derived tensor."""
        return Stored(self)

    @staticmethod
    def _fxtie_attribute(name: str) -> property:
        # No `__getattr__`: below a class that has one, torch.export(strict=True) doesn't name
        # modules and tensors as the state_dict does.
        def read(self: TiedModule) -> Any:
            once = self._fxtie_once.get(name)
            derived = self._fxtie_derived[name]
            try:
                return reader(derived) if once is None else once()
            except AttributeError as error:  # which would read as if there were no such attribute
                raise FxtieError(f"{derived.name!r} can't be derived: {error}") from error

        return property(read)

    def __setattr__(self, name: str, value: Any) -> None:
        derived = self._fxtie_derived.get(name)
        if derived is not None and not derived.stored:
            raise FxtieError(
                f"{derived.name!r} is derived and cannot be set. Set its sources, or make a plain "
                f"model of it first (fxtie.materialize)."
            )
        super().__setattr__(name, value)

    def __delattr__(self, name: str) -> None:
        derived = self._fxtie_derived.get(name)
        if derived is not None and not derived.stored:
            raise FxtieError(f"{derived.name!r} is derived and cannot be deleted.")
        super().__delattr__(name)

    # copy.deepcopy and copy.copy ask for these: a class of the user's, or GraphModule, may have its
    # own, which know nothing of derived tensors.
    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        new = new_like(self)
        memo[id(self)] = new
        new.__setstate__(copy.deepcopy(self.__getstate__(), memo))
        return new

    def __copy__(self) -> Any:
        new = new_like(self)
        new.__setstate__(self.__getstate__())
        return new

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        for name, derived in self._fxtie_derived.items():
            if not derived.stored:  # a checkpoint of the untied model has keys for these
                state_dict.pop(prefix + name, None)
        super()._load_from_state_dict(state_dict, prefix, *args)

    def load_state_dict(self, state_dict: Mapping[str, Any], *args: Any, **kwargs: Any) -> Any:
        """As `nn.Module.load_state_dict`; also takes checkpoints of the untied model.

        How far their values of the derived tensors are from the derived ones is in
        `fxtie.report(tied).distances` afterwards.
        """
        if any(getattr(module, "_fxtie_once", ()) for module in self.modules()):
            raise FxtieError("Loading inside of derive_once would leave its values stale.")
        result = super().load_state_dict(state_dict, *args, **kwargs)
        distances = {}
        for name, _, derived in derived_tensors(self):
            given = state_dict.get(name)
            if given is not None and not derived.stored:
                distances[derived.name] = relative_distance(derived.compute(), given)
        self.__dict__["_fxtie_distances"] = distances
        return result

    def _replicate_for_data_parallel(self) -> Any:
        raise FxtieError(
            "torch.nn.DataParallel replicates tensors without the modules that derive them. Use "
            "torch.nn.parallel.DistributedDataParallel, or fxtie.materialize for inference."
        )

    def __getstate__(self) -> dict[str, Any]:
        state = super().__getstate__()
        state.pop("_fxtie_once", None)
        for name, value in state.items():
            if type(value) is list and any(map(_is_computed, value)):
                # nn.LSTM lists its weights, derived ones too, and does so again when they change.
                state[name] = [torch.empty(0) if _is_computed(v) else v for v in value]
        return state


class KeptModule(TiedModule):
    """A tied module whose forward could not be captured: in a call, it derives each tensor once."""

    @classmethod
    def _fxtie_namespace(cls, user_cls: type[nn.Module], contents: Any) -> dict[str, Any]:
        forward = remembering(user_forward)
        return {"forward": functools.wraps(user_cls.forward)(forward)}  # for its signature


class Ties(nn.Module):
    """What a tied model has more than the original: learnable transforms and banks, by name."""

    def forward(self, x: Any) -> Any:
        """Hand on the input: the forward of an nn.Sequential calls every child that it has."""
        return x


@torch.no_grad()
def relative_distance(value: torch.Tensor, reference: torch.Tensor) -> float:
    """`|value - reference| / |reference|`, in the Euclidean norm."""
    if value.is_meta or reference.is_meta or value.shape != reference.shape:
        return math.nan
    value = value.to(torch.complex128 if value.is_complex() else torch.float64)
    reference = reference.to(value)
    distance, norm = (value - reference).norm().item(), reference.norm().item()
    return distance / norm if norm else (math.inf if distance else 0.0)


def _is_computed(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and not value.is_leaf


def deriving(model: nn.Module) -> dict[str, nn.Module]:
    """The modules of a model whose tensors are derived already, by name."""
    return {name: m for name, m in model.named_modules() if "_fxtie_derived" in m.__dict__}


def rename_derived(module: nn.Module, name: str) -> None:
    """Let derived tensors of a module be named as it is now that it is called `name`."""
    derived = module.__dict__["_fxtie_derived"]
    for attr, value in derived.items():
        derived[attr] = replace(value, name=join(name, attr))


def derived_tensors(model: nn.Module) -> Iterator[tuple[str, nn.Module, Derived]]:
    """Name, owner and derivation of each derived tensor in a model or a part of one."""
    for prefix, module in model.named_modules():
        if isinstance(module, TiedModule):
            for attr, derived in module._fxtie_derived.items():
                yield join(prefix, attr), module, derived
