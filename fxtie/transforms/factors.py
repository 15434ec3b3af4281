"""Weights as Kronecker products: `kronecker`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from fxtie.transforms.arguments import integers
from fxtie.transforms.learned import Learned
from fxtie.transforms.protocol import Named, Shape, Transform
from fxtie.transforms.registry import register


@dataclass(frozen=True, repr=False)
class _Kronecker(Named):
    """The product of two sources."""

    left: ClassVar[None] = None

    def __call__(self, *sources: Tensor) -> Tensor:
        if len(sources) != 2:
            raise ValueError(
                f"kronecker() takes 2 sources, not {len(sources)}. With learned factors, and no "
                f"source, it is kronecker(left)."
            )
        return _product(*sources)

    def __repr__(self) -> str:
        return "kronecker()"


class _LearnedKronecker(Learned):
    """The product of two learned factors."""

    A: nn.Parameter
    B: nn.Parameter

    def __init__(self, left: Shape) -> None:
        super().__init__()
        self.left = left

    def _sizes(self, shape: Shape) -> dict[str, Shape]:
        left = (*self.left, *(1,) * (len(shape) - len(self.left)))
        if len(left) != len(shape) or any(n % a for n, a in zip(shape, left, strict=True)):
            raise ValueError(
                f"{self!r}: the sizes of its left factor have to divide those of the target, whose "
                f"shape is {shape}."
            )
        return {"A": self.left, "B": tuple(n // a for n, a in zip(shape, left, strict=True))}

    def reset_parameters(self) -> None:
        """A new start, in place: the product gets the variance that Linear and Conv start with."""
        fan_in = max(1, self.A[:1].numel() * self.B[:1].numel())
        bound = (3 / fan_in) ** 0.25  # the variances, bound ** 2 / 3 each, multiply to 1/3 / fan_in
        for factor in (self.A, self.B):
            nn.init.uniform_(factor, -bound, bound)

    def fit_to(self, target: Tensor) -> dict[str, Tensor]:
        """The factors whose product is closest to the target (Van Loan and Pitsianis, 1993)."""
        a, b = _padded(self.A, target), self.B
        split = target.reshape([n for pair in zip(a.shape, b.shape, strict=True) for n in pair])
        dims = range(0, split.dim(), 2)
        matrix = split.permute(*dims, *(i + 1 for i in dims)).reshape(a.numel(), b.numel())
        u, s, v = torch.linalg.svd(matrix, full_matrices=False)
        root = s[0].sqrt()
        return {"A": (u[:, 0] * root).reshape(self.A.shape), "B": (v[0] * root).reshape(b.shape)}

    def forward(self) -> Tensor:
        self._fitted_shape()
        return _product(self.A, self.B)

    def _get_name(self) -> str:
        return "kronecker"

    def extra_repr(self) -> str:
        return repr(self.left)


@register("kronecker", makes=(_Kronecker, _LearnedKronecker))
def kronecker(left: tuple[int, ...] | None = None) -> Transform:
    """The Kronecker product of two factors: blocks `A[i, j] * B`.

    Zhou et al., "Exploiting Local Structures with the Kronecker Layer in Convolutional Networks",
    arXiv:1512.09194. Factors of shape `(a, b)` and `(c, d, ...)` give `(a * c, b * d, ...)`; a
    factor with fewer dimensions than the other gets trailing ones of size 1.

    * `kronecker()` takes the two factors as sources.
    * `kronecker(left)` takes no source and learns them, for each target its own:
      `Rule("fc", None, weight=kronecker((4, 8)))`. Factor `A` has the shape `left`, and `B` what
      the target's shape leaves. They start uniform, so that the product has the variance that
      Linear and Conv start with.

    Args:
        left: the shape of the left factor, whose sizes divide the target's.

    Returns:
        A callable on two sources, or a module without any.

    Raises:
        ValueError: for sizes below 1; in `for_target`, for a shape that doesn't fit; when called,
            for another number of sources.

    >>> kronecker()(torch.tensor([[1.0, 2.0]]), torch.tensor([[1.0], [10.0]]))
    tensor([[ 1.,  2.],
            [10., 20.]])
    >>> fitted = kronecker((4, 8)).for_target(torch.empty(64, 64))
    >>> {name: tuple(p.shape) for name, p in fitted.named_parameters()}
    {'A': (4, 8), 'B': (16, 8)}
    """
    if left is None:
        return _Kronecker()
    sizes = integers(left, "kronecker(left)")
    if not isinstance(left, Sequence) or not sizes or min(sizes) < 1:
        raise ValueError(f"kronecker(left): left is a shape such as (4, 8), not {left!r}.")
    return _LearnedKronecker(sizes)


def _product(a: Tensor, b: Tensor) -> Tensor:
    return torch.kron(_padded(a, b), _padded(b, a))


def _padded(factor: Tensor, other: Tensor) -> Tensor:
    """The factor with as many dimensions as the other, if that has more."""
    shape = tuple(factor.shape)
    missing = len(other.shape) - len(shape)
    return factor.reshape(*shape, *(1,) * missing) if missing > 0 else factor
