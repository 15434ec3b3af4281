"""The tied model at run time: derived tensors as attributes.

Reading the attribute of a dropped tensor computes it. A model made of such modules is right,
whatever its forwards do, with no graph at all; `region.py` adds the graphs.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import itertools
import math
from collections.abc import Callable, Iterator, Mapping
from contextvars import ContextVar
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from fxtie.errors import FxtieError
from fxtie.foreign import is_loading
from fxtie.shown import page
from fxtie.tied import placed
from fxtie.tied.call_cache import remembering
from fxtie.tied.derived import Derived, Stored
from fxtie.tied.path_copy import PathCopy, new_like, user_forward
from fxtie.tied.state import RegionState, state_of
from fxtie.words import join


class TiedModule(PathCopy):
    """A module of the user's class, some of whose tensors are derived.

    Promises: `isinstance` with the user's class holds; derived tensors are read as attributes under
    their old names; they are neither parameters nor buffers, and have no key in the state_dict;
    a checkpoint that has keys for them loads.
    """

    @property
    def _fxtie_stored(self) -> Stored:
        """By which graphs refer to the stored value of a self-derived tensor."""
        return Stored(self)

    def extra_repr(self) -> str:
        """The user's, and what derived tensors are derived as: `weight=square(conv_1.weight)`."""
        parts = list(filter(None, super().extra_repr().split(", ")))
        for attr, derived in self._fxtie.derived.items():
            formula, there_is_one = f"{attr}={derived.formula}", f"{attr}=True"
            if there_is_one in parts:
                parts[parts.index(there_is_one)] = formula
            else:
                parts.append(formula)
        return ", ".join(parts)

    def _repr_html_(self) -> str | None:
        """What a notebook shows of a tied model; of a part of it, the text."""
        of_user: Callable[[], str | None] | None = getattr(super(), "_repr_html_", None)
        if of_user is not None or self._fxtie.report is None:
            return of_user() if of_user else None
        html: str = page(self).notebook()
        return html

    def __setattr__(self, name: str, value: Any) -> None:
        derived = self._fxtie.derived.get(name)
        if derived is not None and not derived.stored:
            raise FxtieError(
                f"{derived.name!r} is derived and cannot be set. Set its sources, or make a plain "
                f"model of it first (fxtie.materialize)."
            )
        if derived is not None and isinstance(value, nn.Parameter):
            self._parameters[name] = value  # nn.Module would ask whether there is one: derive it
            return
        super().__setattr__(name, value)
        if is_loading(name):
            for module in self.modules():
                if isinstance(state := state_of(module), RegionState):
                    state.is_retired = True

    def __delattr__(self, name: str) -> None:
        derived = self._fxtie.derived.get(name)
        if derived is not None and not derived.stored:
            raise FxtieError(f"{derived.name!r} is derived and cannot be deleted.")
        super().__delattr__(name)

    # torch.distributed.tensor.distribute_module asks for this first and sets it last. In between it
    # takes what named_parameters gives, and registers DTensors in their place.
    @property
    def _distribute_module_applied(self) -> bool:
        placed.begin(self)
        return self._fxtie.is_distributed

    @_distribute_module_applied.setter
    def _distribute_module_applied(self, _: bool) -> None:
        placed.end(self)

    def named_parameters(self, *args: Any, **kwargs: Any) -> Iterator[tuple[str, nn.Parameter]]:
        yield from super().named_parameters(*args, **kwargs)
        yield from placed.stand_ins(self)

    def register_parameter(self, name: str, param: nn.Parameter | None) -> None:
        pruned = name.removesuffix("_orig")  # which torch.nn.utils.prune appends
        if pruned != name and pruned in self._fxtie.derived:
            raise FxtieError(
                f"{self._fxtie.derived[pruned].name!r} is derived, and torch.nn.utils.prune needs "
                f"a stored tensor. Put the mask into its transform, or prune what "
                f"fxtie.materialize gives."
            )
        if not placed.take(self, name, param):
            super().register_parameter(name, param)

    # copy.deepcopy and copy.copy ask for these: a class of the user's, or GraphModule, may have its
    # own, which know nothing of derived tensors.
    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        new = new_like(*self._fxtie_made[:3])
        memo[id(self)] = new
        new.__setstate__(copy.deepcopy(self.__getstate__(), memo))
        return new

    def __copy__(self) -> Any:
        new = new_like(*self._fxtie_made[:3])
        new.__setstate__({**self.__getstate__(), "_fxtie": copy.copy(self._fxtie)})
        return new

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        for name, derived in self._fxtie.derived.items():
            if not derived.stored:  # a checkpoint of the untied model has keys for these
                state_dict.pop(prefix + name, None)
        super()._load_from_state_dict(state_dict, prefix, *args)

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        state = self._fxtie
        if not _untied.get() or not state.derived:
            return
        for attr, derived in state.derived.items():
            if attr not in self._non_persistent_buffers_set:
                destination[prefix + attr] = derived.in_parts(getattr(self, attr)).detach()
        for attr in itertools.chain(*state.order):
            if prefix + attr in destination:
                destination[prefix + attr] = destination.pop(prefix + attr)

    def load_state_dict(self, state_dict: Mapping[str, Any], *args: Any, **kwargs: Any) -> Any:
        """As `nn.Module.load_state_dict`; also takes checkpoints of the untied model.

        How far their values of the derived tensors are from the derived ones is in
        `fxtie.report(tied).distances` afterwards.

        Raises:
            FxtieError: inside of `derive_once`.
            RuntimeError: as torch does, if keys are missing or unexpected. It says so if they are
                those of other rules.
        """
        if any(state_of(module).once for module in self.modules()):
            raise FxtieError("Loading inside of derive_once would leave its values stale.")
        try:
            result = super().load_state_dict(state_dict, *args, **kwargs)
        except RuntimeError as error:
            if '"ties.' not in str(error):
                raise
            raise RuntimeError(f"{error}\n\t{_whose(state_dict)}") from None
        self._fxtie.distances = {
            derived.name: relative_distance(derived.compute(), state_dict[name])
            for name, _, derived in derived_tensors(self)
            if not derived.stored and state_dict.get(name) is not None
        }
        return result

    def __prepare_scriptable__(self) -> Any:
        raise FxtieError(
            "torch.jit.script compiles a class as it is written, and what derives a tensor is not "
            "written there. Use torch.jit.trace, or script what fxtie.materialize gives."
        )

    def _replicate_for_data_parallel(self) -> Any:
        raise FxtieError(
            "torch.nn.DataParallel replicates tensors without the modules that derive them. Use "
            "torch.nn.parallel.DistributedDataParallel, or fxtie.materialize for inference."
        )

    def __getstate__(self) -> dict[str, Any]:
        state = super().__getstate__()
        for name, value in state.items():
            if type(value) is list and any(map(_is_computed, value)):
                # nn.LSTM lists its weights, derived ones too, and does so again when they change.
                state[name] = [torch.empty(0) if _is_computed(v) else v for v in value]
        return state


class KeptModule(TiedModule):
    """A tied module whose forward could not be captured: in a call, it derives each tensor once."""

    @classmethod
    def _fxtie_namespace(cls, user: type[nn.Module], contents: Any) -> dict[str, Any]:
        # Wrapped for its signature.
        return {"forward": functools.wraps(user.forward)(remembering(user_forward, user.forward))}


class Ties(nn.Module):
    """What a tied model has more than the original: learnable transforms and banks, by name."""

    def forward(self, x: Any) -> Any:
        """Hand on the input: the forward of an nn.Sequential calls every child that it has."""
        return x

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        return (
            kwargs.get("destination", {}) if _untied.get() else super().state_dict(*args, **kwargs)
        )


_untied: ContextVar[bool] = ContextVar("untied", default=False)


@contextlib.contextmanager
def untied_values() -> Iterator[None]:
    """A block in which a tied model's state_dict is that of the untied model."""
    token = _untied.set(True)
    try:
        yield
    finally:
        _untied.reset(token)


@torch.no_grad()
def relative_distance(value: torch.Tensor, reference: torch.Tensor) -> float:
    """`|value - reference| / |reference|`, in the Euclidean norm."""
    if value.is_meta or reference.is_meta or value.shape != reference.shape:
        return math.nan
    value = value.to(torch.complex128 if value.is_complex() else torch.float64)
    reference = reference.to(value)
    distance, norm = (value - reference).norm().item(), reference.norm().item()
    return distance / norm if norm else (math.inf if distance else 0.0)


def _whose(state_dict: Mapping[str, Any]) -> str:
    """Of which model a checkpoint is that has other keys of ties, and what to do."""
    if not any(key.startswith("ties.") for key in state_dict):
        return (
            "The checkpoint is of the untied model: it has no values for what the rules add "
            "(ties.…). Load it with strict=False, which leaves these as they are."
        )
    return (
        "The checkpoint is of a model that other rules tie. Tie by the rules that it was saved "
        "with; fxtie.save writes them into the file."
    )


def _is_computed(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and not value.is_leaf


def deriving(model: nn.Module) -> dict[str, nn.Module]:
    """The modules of a model whose tensors are derived already, by name."""
    return {name: m for name, m in model.named_modules() if state_of(m).derived}


def rename_derived(module: nn.Module, name: str) -> None:
    """Let derived tensors of a module be named as it is now that it is called `name`."""
    derived = state_of(module).derived
    for attr, value in derived.items():
        derived[attr] = replace(value, name=join(name, attr))


def derived_tensors(model: nn.Module) -> Iterator[tuple[str, nn.Module, Derived]]:
    """Name, owner and derivation of each derived tensor in a model or a part of one."""
    for prefix, module in model.named_modules():
        for attr, derived in state_of(module).derived.items():
            yield join(prefix, attr), module, derived
