"""Checkpoints of torch.distributed.checkpoint that know the plan of their model.

The plan is a note in the checkpoint's own metadata; loading tells what differs from the model's.
"""

from __future__ import annotations

import re
from collections import ChainMap
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import nn
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner, DefaultSavePlanner
from torch.distributed.checkpoint.metadata import Metadata
from torch.distributed.checkpoint.planner import SavePlan
from torch.distributed.checkpoint.state_dict import get_model_state_dict

from fxtie.distributed.stages import original_name
from fxtie.errors import FileError
from fxtie.rules.reader import listed
from fxtie.tied.derived import Derived
from fxtie.tied.path_copy import tied_model
from fxtie.tied.tied_module import derived_tensors
from fxtie.transforms.protocol import transform_name


class TiedSavePlanner(DefaultSavePlanner):
    """Notes in a checkpoint what the tensors of a tied model are derived as.

    Keys and tensors of the checkpoint are the same as without it.

    Args:
        model: the tied model, wrapped, sharded or not; or the stages of a pipeline that this
            process runs.
        **options: those of torch's DefaultSavePlanner.

    Raises:
        FxtieError: if `model` is not a tied model.

    Example:
        >>> import torch.distributed.checkpoint as dcp
        >>> from fxtie.distributed import TiedLoadPlanner, TiedSavePlanner
        >>> def save(tied, folder):  # on each process
        ...     state = {"model": tied.state_dict()}
        ...     dcp.save(state, checkpoint_id=folder, planner=TiedSavePlanner(tied))
        >>> def load(tied, folder):
        ...     state = {"model": tied.state_dict()}
        ...     dcp.load(state, checkpoint_id=folder, planner=TiedLoadPlanner(tied))
    """

    def __init__(self, model: nn.Module | Sequence[nn.Module], **options: Any) -> None:
        super().__init__(**options)
        self._ties = _ties_of(model)

    def create_local_plan(self) -> SavePlan:
        plan = super().create_local_plan()
        return replace(plan, planner_data={**(plan.planner_data or {}), _KEY: self._ties})

    def create_global_plan(self, all_plans: list[SavePlan]) -> tuple[list[SavePlan], Metadata]:
        global_plan, metadata = super().create_global_plan(all_plans)
        ties = dict(ChainMap(*(plan.planner_data[_KEY] for plan in all_plans)))  # of all stages
        noted = {**(metadata.planner_data or {}), _KEY: ties}
        self.metadata = replace(metadata, planner_data=noted)
        return global_plan, self.metadata


class TiedLoadPlanner(DefaultLoadPlanner):
    """Refuses a checkpoint of a model that was tied by another plan, before anything is loaded.

    A checkpoint without the note of `TiedSavePlanner`, as of the untied model, loads as ever.

    Args:
        model: the tied model, wrapped, sharded or not; or the stages of a pipeline that this
            process runs.
        **options: those of torch's DefaultLoadPlanner.

    Raises:
        FxtieError: if `model` is not a tied model.
        CheckpointException: from `load`, on all ranks: with each tensor that is derived otherwise.

    Notes:
        Transforms are compared by what `print` shows: functions by their name.
    """

    def __init__(self, model: nn.Module | Sequence[nn.Module], **options: Any) -> None:
        super().__init__(**options)
        self._ties = _ties_of(model)
        self._stored = {key for part in _parts(model) for key in get_model_state_dict(part)}

    def set_up_planner(
        self,
        state_dict: dict[str, Any],
        metadata: Metadata | None = None,
        is_coordinator: bool = False,
    ) -> None:
        saved: Mapping[str, str] | None = ((metadata and metadata.planner_data) or {}).get(_KEY)
        if saved is not None and (faults := self._differences(saved)):
            raise FileError(
                f"The checkpoint is of another plan:\n{listed(faults, len(faults))}\n"
                f"Tie the model by the rules that it was saved with, or save "
                f"fxtie.untied_state_dict of that model, which any plan can load."
            )
        super().set_up_planner(state_dict, metadata, is_coordinator)

    def _differences(self, saved: Mapping[str, str]) -> list[str]:
        """What is derived otherwise, one sentence each."""
        here = {name: self._ties.get(name, "stored") for name in {*self._ties, *self._stored}}
        return [
            f"{name!r} is {there} in the checkpoint and {here[name]} in the model."
            for name in sorted({*self._ties, *saved} & here.keys())
            if (there := saved.get(name, "stored")) != here[name]
        ]


_KEY = "fxtie.ties"


def _parts(model: nn.Module | Sequence[nn.Module]) -> list[nn.Module]:
    return [model] if isinstance(model, nn.Module) else list(model)


def _ties_of(model: nn.Module | Sequence[nn.Module]) -> dict[str, str]:
    """What each derived tensor is derived as, by its name."""
    parts = map(tied_model, _parts(model))
    return {
        derived.name: _shown(derived) for part in parts for _, _, derived in derived_tensors(part)
    }


def _shown(derived: Derived) -> str:
    """What a tensor is derived as, all of it, and the same in each process."""
    sources = ", ".join(original_name(source.name) for source in derived.sources)
    name = re.sub(" at 0x[0-9a-f]+", "", transform_name(derived.transform))
    return sources if name == "same" else f"{name}({sources})"
