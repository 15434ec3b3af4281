"""Checkpoints of the plain model made of a tied one, and the files beside them that tie it again.

* `fxtie.json`: the ties (`record.py`);
* `fxtie.safetensors`, if there are any: the *hidden* tensors, which the plain model has no names
  for. These are the free ones and those of learnable transforms (below `ties`), and the stored
  values of tensors that are derived from themselves.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

from fxtie._torch import storage_id
from fxtie.capturing.report import report
from fxtie.capturing.transform import transform
from fxtie.errors import FileError, FxtieError
from fxtie.life import container
from fxtie.life.record import plan_of, record_of
from fxtie.rules.replacing import replacing
from fxtie.tied.state import state_of
from fxtie.tied.tied_module import Ties, derived_tensors, relative_distance
from fxtie.tracing.user_class import user_class
from fxtie.words import list_names

M = TypeVar("M", bound=nn.Module)
StateDict = Mapping[str, torch.Tensor]

RULES, HIDDEN = "fxtie.json", "fxtie.safetensors"
_VERSION = 1


def only_tensors(state: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """A state_dict without the extra state of modules that have some, which may be anything."""
    return {name: value for name, value in state.items() if isinstance(value, torch.Tensor)}


class _Derived(nn.Module):
    """Reads what a state_dict has of derived tensors, for `functional_call` to give it others."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self) -> dict[str, torch.Tensor]:
        return {
            name: getattr(owner, attr)
            for name, owner, _ in derived_tensors(self.model)
            if (attr := name.rpartition(".")[2]) not in owner._non_persistent_buffers_set
        }


@torch.no_grad()
def derived_values(tied: nn.Module, state: StateDict) -> dict[str, torch.Tensor]:
    """What the derived tensors of a model, or of a part of one, are for other stored tensors.

    Of a Parameter that has several names, one in `state` is enough. What is not there is the
    model's own.
    """
    reader = _Derived(tied)
    stored = only_tensors(tied.state_dict(keep_vars=True))
    given = {id(stored[name]): value for name, value in state.items() if name in stored}
    swapped = {
        f"model.{name}": state.get(name, given[id(own)]).to(own.device)
        for name, own in stored.items()
        if id(own) in given
    }
    values: dict[str, torch.Tensor]
    values = torch.func.functional_call(reader, swapped, (), tie_weights=False)
    return values


def plain_state(tied: nn.Module, state: StateDict) -> dict[str, torch.Tensor]:
    """The state_dict of the plain model for a state_dict of the tied one.

    Derived tensors are fresh ones, no two of which share memory.
    """
    plain = {name: value for name, value in state.items() if not _is_below_ties(tied, name)}
    taken = set(map(storage_id, only_tensors(plain).values()))
    for name, value in derived_values(tied, state).items():
        value = value.resolve_conj().resolve_neg()
        if storage_id(value) in taken:
            value = value.clone()
        taken.add(storage_id(value))
        plain[name] = value
    return plain


def _is_below_ties(tied: nn.Module, name: str) -> bool:
    return name.startswith("ties.") and isinstance(tied._modules.get("ties"), Ties)


def _hidden(tied: nn.Module) -> dict[str, str]:
    """The stored tensors that the plain model has no names for; of each the name in files."""
    own = {name for name, _, derived in derived_tensors(tied) if derived.stored}
    state = tied.state_dict(keep_vars=True)
    return container.first_names(
        {name: v for name, v in state.items() if name in own or _is_below_ties(tied, name)}
    )


# --- The folder -------------------------------------------------------------------------------


def write_ties(tied: nn.Module, folder: Path, state: StateDict) -> None:
    """Write the files of fxtie into a folder, for a state_dict of the tied model.

    Raises:
        FileError: if a transform has no name in files, or a file can't be written.
    """
    record = record_of(report(tied).whole_plan, user_class(tied).__qualname__)
    precision = max(map(_precision, only_tensors(state).values()), default=0.0)
    if hidden := set(_hidden(tied).values()):
        values = container.writable({name: state[name] for name in hidden})
        container.write(folder / HIDDEN, values, {"model": record["model"]})
    record = {"version": _VERSION, "precision": precision, **record}
    text = json.dumps(record, indent=2, allow_nan=False)
    try:
        with replacing(folder / RULES) as temporary:
            Path(temporary).write_text(text + "\n", encoding="utf-8", newline="\n")
    except OSError as error:
        raise FileError(f"{str(folder / RULES)!r} can't be written: {error}") from error


def tie_again(model: M, rules: Path, hidden: Path | None) -> M:
    """Tie a plain model, which has the tensors of its checkpoint, by the files beside that.

    The tied model shares its stored tensors.

    Raises:
        FileError: for a damaged file, another model, or a checkpoint whose derived tensors are not
            what the ties make of the others.
    """
    try:
        record = _read_record(rules)
        tied = transform(model, plan_of(model, record))
        values = _read_hidden(tied, hidden)
        state, given = tied.state_dict(), model.state_dict()
        derived = derived_values(tied, values)
        distances = _distances(derived, {name: given[name] for name in derived})
        least = record["precision"]
        if changed := [n for n, far in distances.items() if far > max(least, _precision(given[n]))]:
            raise FileError(
                f"{list_names(changed)} of its checkpoint are not what the ties make of the "
                f"other tensors: the checkpoint was changed after it was saved. Load the plain "
                f"model, and tie it anew with fxtie.transform."
            )
        for name, value in values.items():
            state[name].copy_(value)  # detached, of the same memory
    except FxtieError as error:
        what = f"{str(rules)!r} can't tie a {user_class(model).__qualname__}"
        raise FileError(f"{what}: {error}") from error
    return tied


def _read_record(path: Path) -> dict[str, Any]:
    try:
        text = path.read_bytes()
    except OSError as error:
        raise FileError(f"it can't be read: {error}") from error
    record = container.parsed(text, _VERSION, "it")
    if not isinstance(record.get("precision"), float):
        raise FileError("its precision is damaged.")
    return record


def _read_hidden(tied: nn.Module, path: Path | None) -> StateDict:
    """The hidden tensors of a file, if they fit the model."""
    hidden, state = _hidden(tied), tied.state_dict()
    if not hidden:
        return {}
    if path is None:
        raise FileError(f"{HIDDEN} is missing, which has values for {list_names(list(hidden))}.")
    values = container.read(path)[1]
    shapes = {name: value.shape for name, value in values.items()}
    if shapes != {name: state[name].shape for name in hidden.values()}:
        raise FileError(f"the tensors of {str(path)!r} are those of another model.")
    return {name: values[first] for name, first in hidden.items()}


# --- Loading a checkpoint of the plain model into the tied one --------------------------------


def completed(tied: nn.Module, state: StateDict) -> StateDict:
    """A state_dict with the hidden tensors, if it is of the plain model and leaves them out.

    The derived tensors in it tell which hidden ones belong to it: those of now, or those in a
    folder that a checkpoint of this model was written to.

    Raises:
        FxtieError: if none of these make the derived tensors of the state_dict.
    """
    hidden = _hidden(tied)
    given = {name: state[name] for name, _, _ in derived_tensors(tied) if name in state}
    if not hidden or not given or any(_is_below_ties(tied, name) for name in state):
        return state
    own = tied.state_dict()

    def distances(candidate: StateDict) -> dict[str, float]:
        return _distances(derived_values(tied, {**state, **candidate}), given)

    candidates = itertools.chain([{name: own[name] for name in hidden}], _saved(tied))
    best = min(candidates, key=lambda candidate: max(distances(candidate).values()))
    far = {
        n: distance for n, distance in distances(best).items() if distance > _precision(given[n])
    }
    if not far:
        return {**state, **best}
    worst = max(far, key=lambda name: far[name])
    raise FxtieError(
        f"This is a checkpoint of the plain model, without values for {list_names(list(hidden))}; "
        f"and with those that are known here, {worst!r} differs from the checkpoint's by "
        f"{far[worst]:.1%}. If a tied model was saved there, make this one by "
        f"fxtie.from_pretrained(folder, {user_class(tied).__name__}) before you resume or load. "
        f"If it is of an untied model, load it before you tie. A state_dict of the tied model "
        f"itself is loaded with strict=True."
    )


def _saved(tied: nn.Module) -> Iterator[StateDict]:
    """Hidden tensors in the folders that this model was saved in."""
    for folder in state_of(tied).saved_in:
        if (folder / HIDDEN).is_file():
            yield _read_hidden(tied, folder / HIDDEN)


def _distances(values: StateDict, given: StateDict) -> dict[str, float]:
    """How far values are from given ones; infinitely, where nothing can tell."""
    distances = {name: relative_distance(values[name], value) for name, value in given.items()}
    return {name: math.inf if math.isnan(far) else far for name, far in distances.items()}


def _precision(value: torch.Tensor) -> float:
    """How far apart two values of such a tensor may be by the order in which they are added up."""
    is_inexact = value.is_floating_point() or value.is_complex()
    return max(torch.finfo(value.dtype).eps, 1e-6) if is_inexact else 0.0
