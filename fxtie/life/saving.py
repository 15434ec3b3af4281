"""A tied model <-> one safetensors file: data in, data out, no code.

The file (`container.py`) holds the stored tensors, each once, under their state_dict names, and the
ties as its record (`record.py`).
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, TypeVar

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from fxtie.capturing.report import report
from fxtie.capturing.transform import transform
from fxtie.errors import FileError, FxtieError
from fxtie.life import container
from fxtie.life.record import plan_of, record_of
from fxtie.planning.plan import Plan
from fxtie.rules.reader import listed
from fxtie.rules.replacing import FilePath
from fxtie.tied.path_copy import tied_model
from fxtie.tracing.user_class import user_class

M = TypeVar("M", bound=nn.Module)


def save(tied: nn.Module, path: FilePath) -> None:
    """Write a tied model to one safetensors file: its stored tensors and its ties.

    Args:
        tied: the result of `transform`, compiled or not.
        path: the file, best named `*.safetensors`. Written to a temporary file, then renamed:
            whatever happens, there is either the old file or the new one, whole.

    Raises:
        FileError: if the model can't be saved (see `check_saveable`) or the file can't be written;
            an old file is unchanged. Also without safetensors: `pip install 'fxtie[files]'`.
        FxtieError: if `tied` is not a tied model.

    Notes:
        * Derived tensors are not stored. Neither are `requires_grad`, training flags, buffers that
          are not persistent, and the optimizer.
        * A Parameter with several names is stored once.
        * Any reader of safetensors can read the tensors.

    Example:
        >>> import fxtie, tempfile
        >>> from fxtie.life.saving import load, save
        >>> net = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))
        >>> tied = fxtie.transform(net, fxtie.Rule("2", "0", weight=torch.square))
        >>> fresh = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save(tied, f"{folder}/tied.safetensors")
        ...     again = load(f"{folder}/tied.safetensors", fresh)
        >>> torch.equal(again[2].weight, net[0].weight.square())
        True
    """
    tied = tied_model(tied)
    record = _record(tied)
    state = tied.state_dict(keep_vars=True)
    firsts = container.first_names(state)
    container.write(
        path, container.writable({name: state[name] for name in set(firsts.values())}), record
    )


def check_saveable(tied: nn.Module | Plan) -> None:
    """Raise if `save` would refuse: call it with the plan, before training.

    Args:
        tied: a tied model, or a plan. A plan tells about the transforms only.

    Raises:
        FileError: with every fault: transforms without a registered name, or which their
            registered name and arguments don't bring back; tensors that a file can't hold (on the
            meta device, sparse, of a subclass such as DTensor).
        FxtieError: if it is neither.

    Notes:
        A transform with `for_target` is written as what that returns, so this has to be
        registered too.

    Example:
        >>> import fxtie
        >>> net = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
        >>> fxtie.check_saveable(fxtie.plan(net, fxtie.Rule("1", "0", weight=torch.square)))
        >>> fxtie.check_saveable(fxtie.plan(net, fxtie.Rule("1", "0", weight=lambda w: w + 1)))
        Traceback (most recent call last):
        ...
        fxtie.errors.FileError: This can't be saved:
        '1.weight': The transform <lambda> has no registered name. Give it ...
        fxtie.check_saveable(plan) tells this before training.
    """
    if isinstance(tied, Plan):
        record_of(tied)
    else:
        _record(tied_model(tied))


def load(path: FilePath, model: M) -> M:
    """Tie a model by the ties of a file, and give it the file's tensors.

    Args:
        path: a file that `save` wrote.
        model: a model like the one that was tied: same names, shapes and dtypes. On any device.

    Returns:
        The tied model, as `transform` would make it. It shares its stored tensors with `model`, so
        that these have the file's values as well: they are copied in place, as `load_state_dict`
        does. The targets of `model` keep theirs.

    Raises:
        FileError: for a truncated, damaged or foreign file, or another model, with what differs;
            `model` is unchanged. Transforms of your own must be registered before: import the
            module that does it.

    Notes:
        Nothing in the file is executed: its transforms are names that are looked up.

    Example:
        >>> import fxtie, tempfile
        >>> from fxtie.life.saving import load, save
        >>> tied = fxtie.transform(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)),
        ...                        fxtie.Rule("1", "0"))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save(tied, f"{folder}/tied.safetensors")
        ...     load(f"{folder}/tied.safetensors", nn.Sequential(nn.Linear(4, 4)))
        Traceback (most recent call last):
        ...
        fxtie.errors.FileError: '...tied.safetensors' can't be loaded into a Sequential: 2 fau...
          1. Tie('1.weight', ...): the target '1.weight' is not a tensor of the model. ...
    """
    if not isinstance(model, nn.Module):
        raise FileError(f"The model is a torch.nn.Module, not {type(model).__name__}: {model!r}.")
    try:
        record, tensors = container.read(path)
        tied = transform(model, plan_of(model, record))
        state = _state_for(tied, tensors)
    except FxtieError as error:
        what = f"{os.fspath(path)!r} can't be loaded into a {user_class(model).__qualname__}"
        raise FileError(f"{what}: {error}") from error
    tied.load_state_dict(state)
    return tied


def _record(tied: nn.Module) -> dict[str, Any]:
    """What the file says of a tied model, if all of it can be saved."""
    state = tied.state_dict(keep_vars=True)
    faults = [f"{name!r} {why}" for name, v in state.items() if (why := _unfit(v))]
    return record_of(report(tied).whole_plan, user_class(tied).__qualname__, faults)


# --- Tensors ----------------------------------------------------------------------------------


def _state_for(tied: nn.Module, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The file's tensors as a state_dict of `tied`, if all of them fit."""
    own = tied.state_dict(keep_vars=True)
    firsts = container.first_names(own)
    stored = {name: own[name] for name in firsts.values()}
    faults = [f"{name!r} is not in the file." for name in stored.keys() - tensors.keys()]
    for name, saved in tensors.items():
        if name not in own:
            faults.append(f"{name!r} is not in the model.")
        elif name not in stored:
            faults.append(
                f"{name!r} and {firsts[name]!r} are two tensors in the file and one in the model."
            )
        elif why := _unfit(own[name]) or _misfit(own[name], saved):
            faults.append(f"{name!r} {why}")
    if faults:
        raise FileError(f"its tensors don't fit:\n{listed(sorted(faults), len(faults))}")
    return {name: tensors[firsts[name]] for name in own}


def _unfit(value: Any) -> str | None:
    """Why a value of a state_dict can't be written, or be loaded into, if so."""
    if not isinstance(value, torch.Tensor):
        return f"is no tensor but extra state of type {type(value).__qualname__}."
    if is_lazy(value):
        return "is a lazy tensor without a shape yet. Run the model once."
    if type(value.detach()) is not torch.Tensor:
        return f"is a {type(value).__qualname__}, not a plain tensor. Gather it first."
    if value.is_meta:
        return "is on the meta device and has no data. Use to_empty(device=...) first."
    if value.layout is not torch.strided:
        return f"has the layout {value.layout}. Store it dense."
    if value.dtype not in container.STORABLE:
        return f"has the dtype {value.dtype}, which safetensors has not."
    if any(
        stride == 0 and size > 1 for stride, size in zip(value.stride(), value.shape, strict=True)
    ):
        return "is an expanded view, which can't be loaded into. Store a clone of it."
    return None


def _misfit(own: torch.Tensor, saved: torch.Tensor) -> str | None:
    """Why a tensor of the file can't be loaded into one of the model, if so."""
    if own.shape != saved.shape:
        return f"has the shape {tuple(saved.shape)} in the file, {tuple(own.shape)} in the model."
    if own.dtype != saved.dtype:
        remedy = f"Bring the model to it with .to({saved.dtype})."
        return f"is {saved.dtype} in the file, {own.dtype} in the model. {remedy}"
    return None
