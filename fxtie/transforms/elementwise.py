"""Transforms that keep every element in its place.

In: a source of any shape. Out: a tensor of that shape. Offered to users in `fxtie.transforms`.
"""

from __future__ import annotations

import builtins
import math
import operator
from dataclasses import dataclass

import torch
from torch import Tensor

from fxtie.transforms.arguments import number
from fxtie.transforms.protocol import Named, set_fields
from fxtie.transforms.registry import register


@register("same")
def same(source: Tensor) -> Tensor:
    """The source itself: ordinary weight sharing. Any shape, any dtype.

    Also ties the weight of a Conv to that of the ConvTranspose that is its adjoint (see
    `transpose`).

    >>> same(torch.tensor([1.0, -2.0]))
    tensor([ 1., -2.])
    """
    return source


@register("square", same_as=(torch.square, torch.Tensor.square))
def square(source: Tensor) -> Tensor:
    """`source ** 2`, element by element. Any shape. `torch.square` does the same.

    >>> square(torch.tensor([1.0, -2.0]))
    tensor([1., 4.])
    """
    return torch.square(source)


@register("abs", same_as=(torch.abs, torch.absolute, torch.Tensor.abs, builtins.abs, operator.abs))
def abs(source: Tensor) -> Tensor:
    """`|source|`, element by element. Any shape. `torch.abs` does the same.

    >>> abs(torch.tensor([1.0, -2.0]))
    tensor([1., 2.])
    """
    return torch.abs(source)


@register("neg", same_as=(torch.neg, torch.negative, torch.Tensor.neg, operator.neg))
def neg(source: Tensor) -> Tensor:
    """`-source`, element by element. Any shape. `torch.neg` does the same.

    >>> neg(torch.tensor([1.0, -2.0]))
    tensor([-1.,  2.])
    """
    return torch.neg(source)


@register("scale")
@dataclass(frozen=True, repr=False)
class scale(Named):
    """`s * source`. Any shape.

    Args:
        s: a finite number. For a factor that is learned, see `ChannelScale`.

    >>> scale(0.5)(torch.tensor([1.0, -2.0]))
    tensor([ 0.5000, -1.0000])
    """

    s: float

    def __post_init__(self) -> None:
        set_fields(self, s=number(self.s, "scale(s)"))

    def __call__(self, source: Tensor) -> Tensor:
        return source * self.s


@register("stop_gradient")
@dataclass(frozen=True, repr=False)
class stop_gradient(Named):
    """The source, cut from autograd: the target follows it but sends no gradient back.

    >>> weight = torch.ones(2, requires_grad=True)
    >>> stop_gradient()(weight).requires_grad
    False
    """

    def __call__(self, source: Tensor) -> Tensor:
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
