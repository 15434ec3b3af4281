"""Transforms that round: weights as a quantised layer would have them.

Rounding has no useful gradient. The straight-through estimator (Bengio et al., arXiv:1308.3432)
takes the identity's: the source gets the gradient of the rounded tensor as it is.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from fxtie.transforms.arguments import integer
from fxtie.transforms.protocol import Named, set_fields
from fxtie.transforms.registry import register


@register("fake_quant")
@dataclass(frozen=True, repr=False)
class fake_quant(Named):
    """The source rounded to what signed integers of `bits` bits can hold, as floating point.

    Symmetric quantisation, Krishnamoorthi, "Quantizing deep convolutional networks for efficient
    inference: A whitepaper", arXiv:1806.08342, of training as in Jacob et al., arXiv:1712.05877:
    `step * round(source / step)` with `step = max|source| / (2 ** (bits - 1) - 1)`. Nothing is
    clipped, and 0 stays 0. Halves are rounded to even. Gradients go straight through.

    Args:
        bits: 2 or more.
        dim: the dimension of the output channels, each with a step of its own: 0 for Linear and
            Conv, 1 for ConvTranspose. One step for the whole tensor if None.

    Raises:
        ValueError: for fewer than 2 bits; when called, if the source has no dimension `dim`.

    >>> import torch
    >>> weight = torch.tensor([[1.0, -0.4], [0.1, 0.0]])
    >>> fake_quant(2)(weight)
    tensor([[1., 0.],
            [0., 0.]])
    >>> fake_quant(2, dim=0)(weight)
    tensor([[1.0000, 0.0000],
            [0.1000, 0.0000]])
    """

    bits: int
    dim: int | None = None

    def __post_init__(self) -> None:
        set_fields(self, bits=integer(self.bits, "fake_quant(bits)"))
        if self.dim is not None:
            set_fields(self, dim=integer(self.dim, "fake_quant(dim)"))
        if self.bits < 2:
            raise ValueError(f"fake_quant(bits): 2 bits or more are needed, not {self.bits}.")

    def __call__(self, source: Tensor) -> Tensor:
        largest = source.detach().abs()
        if self.dim is None:
            largest = largest.amax()
        else:
            dims = len(source.shape)
            if not -dims <= self.dim < dims:
                shape = tuple(source.shape)
                raise ValueError(f"{self!r}: a source of shape {shape} has no such dimension.")
            others = [i for i in range(dims) if i != self.dim % dims]
            largest = largest.amax(others, keepdim=True) if others else largest
        step = largest / (2 ** (self.bits - 1) - 1)
        step = step + step.eq(0)  # of zeros
        return straight_through((source / step).round() * step, source)


@register("ternary")
def ternary(source: Tensor | None = None) -> Any:
    """The source rounded to three values, `-scale`, 0 and `scale`. Any shape.

    Ma et al., "The Era of 1-bit LLMs: All Large Language Models are in 1.58 Bits" (BitNet b1.58),
    arXiv:2402.17764: `scale * clip(round(source / scale), -1, 1)`, where `scale` is the mean of
    `|source|` over the whole tensor, at least 1e-5. The scale is part of the derived tensor here,
    which BitNet multiplies the layer's output with. Gradients go straight through.

    >>> import torch
    >>> ternary(torch.tensor([3.0, -0.5, 0.25, -0.25]))
    tensor([1., 0., 0., 0.])
    """
    if source is None:
        return ternary
    size = source.detach().abs().mean().clamp(min=1e-5)
    return straight_through((source / size).round().clamp(-1, 1) * size, source)


def straight_through(value: Tensor, source: Tensor) -> Tensor:
    """`value`, with the gradient of `source`."""
    return value.detach() + (source - source.detach())
