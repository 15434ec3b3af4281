"""Transforms that keep every element in its place, and the shape.

Those without arguments are functions that return themselves when called without a source.
"""

from __future__ import annotations

import builtins
import math
import operator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fxtie.transforms.arguments import number
from fxtie.transforms.protocol import HasCoefficient, Named, set_fields
from fxtie.transforms.registry import register


@register("same")
def same(source: Tensor | None = None) -> Any:
    """The source itself: ordinary weight sharing. Any shape, any dtype.

    Also ties the weight of a Conv to that of the ConvTranspose that is its adjoint (see
    `transpose`).

    >>> same(torch.tensor([1.0, -2.0]))
    tensor([ 1., -2.])
    """
    if source is None:
        return same
    return source


@register("square", same_as=(torch.square, torch.Tensor.square))
def square(source: Tensor | None = None) -> Any:
    """`source ** 2`, element by element. Any shape. `torch.square` does the same.

    >>> square(torch.tensor([1.0, -2.0]))
    tensor([1., 4.])
    """
    if source is None:
        return square
    return torch.square(source)


@register("abs", same_as=(torch.abs, torch.absolute, torch.Tensor.abs, builtins.abs, operator.abs))
def abs(source: Tensor | None = None) -> Any:
    """`|source|`, element by element. Any shape. `torch.abs` does the same.

    >>> abs(torch.tensor([1.0, -2.0]))
    tensor([1., 2.])
    """
    if source is None:
        return abs
    return torch.abs(source)


@register("neg", same_as=(torch.neg, torch.negative, torch.Tensor.neg, operator.neg))
def neg(source: Tensor | None = None) -> Any:
    """`-source`, element by element. Any shape. `torch.neg` does the same.

    >>> neg(torch.tensor([1.0, -2.0]))
    tensor([-1.,  2.])
    """
    if source is None:
        return neg
    return torch.neg(source)


@register("scale")
@dataclass(frozen=True, repr=False)
class scale(HasCoefficient):
    """`s * source`. Any shape.

    Args:
        s: a finite number. Learned factors: `learn(scale(s))`, or `ChannelScale` per channel.

    >>> scale(0.5)(torch.tensor([1.0, -2.0]))
    tensor([ 0.5000, -1.0000])
    """

    s: float

    def __post_init__(self) -> None:
        set_fields(self, s=number(self.s, "scale(s)"))

    def coefficient(self) -> float:
        return self.s

    def run(self, coefficient: float | Tensor, *sources: Tensor) -> Tensor:
        if len(sources) != 1:
            raise ValueError(f"{self!r} takes 1 source, not {len(sources)}.")
        return sources[0] * coefficient


@register("stop_gradient", same_as=(torch.detach, torch.Tensor.detach))
def stop_gradient(source: Tensor | None = None) -> Any:
    """The source, cut from autograd: the target follows it but sends no gradient back.

    >>> weight = torch.ones(2, requires_grad=True)
    >>> stop_gradient(weight).requires_grad
    False
    """
    if source is None:
        return stop_gradient
    return source.detach()


@register("standardize")
@dataclass(frozen=True, repr=False)
class standardize(Named):
    """Weight standardisation: every output channel gets mean 0 and variance 1.

    Qiao et al., "Micro-Batch Training with Batch-Channel Normalization and Weight Standardization",
    arXiv:1903.10520: `(w - mean) / sqrt(var + eps)` over all but dimension 0, with the biased
    variance (divided by the number of elements). Shape `(out, ...)`, kept; at least two elements
    per output channel, or the result would be 0.

    Args:
        eps: added to the variance, positive.

    >>> standardize()(torch.tensor([[1.0, 3.0], [10.0, 30.0]]))
    tensor([[-1.0000,  1.0000],
            [-1.0000,  1.0000]])
    """

    eps: float = 1e-5

    def __post_init__(self) -> None:
        set_fields(self, eps=number(self.eps, "standardize(eps)"))
        if self.eps <= 0:
            raise ValueError(f"standardize(eps): eps is positive, not {self.eps}.")

    def __call__(self, source: Tensor) -> Tensor:
        shape = tuple(source.shape)
        if math.prod(shape[1:]) < 2:
            raise ValueError(
                f"standardize() needs a source with two or more elements per output channel "
                f"(dimension 0), not one of shape {shape}. Exclude that target from the rule."
            )
        dims = tuple(range(1, len(shape)))
        var, mean = torch.var_mean(source, dim=dims, correction=0, keepdim=True)
        return (source - mean) * torch.rsqrt(var + self.eps)
