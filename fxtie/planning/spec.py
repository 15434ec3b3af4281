"""Tensors without data, on which transforms are tried out."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from fxtie._torch import FakeTensorMode, empty_fake


@dataclass(frozen=True)
class Spec:
    """Shape, dtype and device of a tensor, without its data."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device
    stride: tuple[int, ...]

    @classmethod
    def of(cls, tensor: torch.Tensor) -> Spec:
        return cls(tuple(tensor.shape), tensor.dtype, tensor.device, tensor.stride())

    def fake(self, mode: FakeTensorMode) -> torch.Tensor:
        return empty_fake(mode, self.shape, self.stride, self.dtype, self.device)


def fake_like(tensor: torch.Tensor, mode: FakeTensorMode) -> torch.Tensor:
    """A tensor without data in the place of another: a Parameter for a Parameter."""
    fake = Spec.of(tensor).fake(mode)
    return nn.Parameter(fake, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else fake


def fake_mode() -> FakeTensorMode:
    """The mode in which transforms run without data. It takes their own tensors as they are."""
    return FakeTensorMode(allow_non_fake_inputs=True)
