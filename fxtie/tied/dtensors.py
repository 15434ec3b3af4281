"""DTensors <-> the parts of them that this process holds."""

from __future__ import annotations

from typing import Any

import torch

from fxtie import _torch


def local_part(tensor: Any) -> torch.Tensor:
    """What this process holds of a tensor; all of one that is no DTensor. Past autograd."""
    part: torch.Tensor = _torch.dtensor_part(tensor) if _torch.is_dtensor(tensor) else tensor
    return part


def as_dtensor(
    part: torch.Tensor, mesh: Any, placements: Any, shape: torch.Size, stride: tuple[int, ...]
) -> torch.Tensor:
    """A DTensor of this shape and stride, of what each process holds of it."""
    made: torch.Tensor = _torch.dtensor().DTensor.from_local(
        part, mesh, placements, run_check=False, shape=shape, stride=stride
    )
    return made
