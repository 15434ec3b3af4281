"""Learnable transforms: modules whose parameters are trained with the tied model.

In: source tensors. Out: the derived tensor. Their parameters depend on the target, so each target
gets a module of its own through `for_target` (see `transforms.FitsTarget`). Offered to users as
part of `fxtie.transforms`.
"""

from __future__ import annotations

import copy
import math

import torch
from torch import Tensor, nn

from fxtie._torch import is_jit_traced
from fxtie.transforms.arguments import integer
from fxtie.transforms.registry import register


class _Learned(nn.Module):
    """Base of the modules whose parameters depend on the target: none until they are fitted."""

    def __init__(self) -> None:
        super().__init__()
        self.shape: tuple[int, ...] | None = None

    def for_target(self, target: Tensor) -> nn.Module:
        """A copy with parameters of its own, in the target's dtype and on its device.

        A fitted one returns itself, so `t = LowRank(4).for_target(weight)` in several rules is
        learned once for all of them.

        Raises:
            ValueError: if it can't fit the target, or is fitted to one of another shape.
        """
        shape = tuple(target.shape)
        if self.shape is not None and self.shape != shape:
            raise ValueError(
                f"{self!r} is fitted to a target of shape {self.shape} and can't take one of shape "
                f"{shape}. Give each rule a new {type(self).__name__}."
            )
        if self.shape is not None:
            return self
        if not (target.is_floating_point() or target.is_complex()):
            raise ValueError(f"{self!r} can't learn for a target of dtype {target.dtype}.")
        fitted = copy.deepcopy(self)
        fitted.shape = shape
        for name, size in fitted._sizes(shape).items():
            # Not empty_like: the target may be a fake tensor, and a parameter must not be.
            value = torch.empty(size, dtype=target.dtype, device=target.device)
            fitted.register_parameter(name, nn.Parameter(value))
        fitted.reset_parameters()
        return fitted

    def _sizes(self, shape: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
        """The parameters for a target of this shape."""
        raise NotImplementedError

    def reset_parameters(self) -> None:
        raise NotImplementedError

    def _fitted_shape(self) -> tuple[int, ...]:
        """The shape of the target that it is fitted to."""
        if self.shape is None:
            raise ValueError(
                f"{self!r} has no parameters yet: use what for_target(target) returns, as planning "
                f"does."
            )
        return self.shape

    def _check(self, source: Tensor) -> tuple[int, ...]:
        """The shape it is fitted to, if the source has it."""
        shape = self._fitted_shape()
        # Sizes are traced values in torch.jit.trace, which would warn of the comparison.
        if not is_jit_traced() and tuple(source.shape) != shape:
            raise ValueError(
                f"{self!r} is fitted to the shape {shape} but its source has "
                f"{tuple(source.shape)}. Bring the source to the target's shape first: "
                f"chain(tile(), {self!r}), or crop(), pad(), resize()."
            )
        return shape


@register("LowRank")
class LowRank(_Learned):
    """The source plus a learned matrix of low rank: `source + B @ A`.

    Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", arXiv:2106.09685. For a target
    of shape `(out, ...)` and `n` elements, `B` is `(out, rank)` and `A` is `(rank, n / out)`; their
    product is viewed as the target. `B` starts at 0, so the derived tensor starts at the source;
    `A` starts Kaiming-uniform with `a=sqrt(5)`, as `nn.Linear` does.

    Shape of the source: the target's. Each target gets an `A` and a `B` of its own (see
    `for_target`), in its dtype and on its device.

    Args:
        rank: from 1 to the smaller side of the matrix `(out, n / out)`.

    Raises:
        ValueError: in `for_target`, for a vector or a rank that is too large.

    >>> fitted = LowRank(2).for_target(torch.empty(8, 4, 3, 3))
    >>> {name: tuple(p.shape) for name, p in fitted.named_parameters()}
    {'A': (2, 36), 'B': (8, 2)}
    """

    A: nn.Parameter
    B: nn.Parameter

    def __init__(self, rank: int) -> None:
        super().__init__()
        self.rank = integer(rank, "LowRank(rank)")
        if self.rank < 1:
            raise ValueError(f"LowRank(rank): rank is positive, not {rank}.")

    def _sizes(self, shape: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
        if len(shape) < 2:
            raise ValueError(
                f"{self!r} needs a target of two or more dimensions, not one of shape {shape}. Use "
                f"another transform for the bias."
            )
        out, rest = shape[0], math.prod(shape[1:])
        if self.rank > min(out, rest):
            raise ValueError(
                f"{self!r}: a target of shape {shape} is a matrix of {out} x {rest}, whose rank is "
                f"at most {min(out, rest)}."
            )
        return {"A": (self.rank, rest), "B": (out, self.rank)}

    def reset_parameters(self) -> None:
        """Back to the start, in place: `A` drawn anew, `B` zero."""
        nn.init.kaiming_uniform_(self.A, a=math.sqrt(5))
        nn.init.zeros_(self.B)

    def fit_to(self, target: Tensor, source: Tensor) -> dict[str, Tensor]:
        """The `A` and `B` that bring the source closest to the target: a truncated SVD."""
        u, s, v = torch.linalg.svd((target - source).flatten(1), full_matrices=False)
        root = s[: self.rank].sqrt()
        return {"A": root[:, None] * v[: self.rank], "B": u[:, : self.rank] * root}

    def forward(self, source: Tensor) -> Tensor:
        shape = self._check(source)
        return source + (self.B @ self.A).reshape(shape)

    def extra_repr(self) -> str:
        return str(self.rank)


@register("ChannelScale")
class ChannelScale(_Learned):
    """The source with one learned factor per output channel, starting at 1.

    Shape of the source: the target's. Each target gets factors of its own, `scale` of shape
    `(out,)`, in its dtype and on its device.

    Args:
        dim: the dimension of the channels. 0 is the output of Linear and Conv, 1 that of
            ConvTranspose (with groups: within each group).

    Raises:
        ValueError: in `for_target`, if the target has no such dimension.

    >>> fitted = ChannelScale().for_target(torch.empty(2, 3))
    >>> fitted.scale.data = torch.tensor([1.0, 10.0])
    >>> fitted(torch.ones(2, 3)).tolist()
    [[1.0, 1.0, 1.0], [10.0, 10.0, 10.0]]
    """

    scale: nn.Parameter

    def __init__(self, dim: int = 0) -> None:
        super().__init__()
        self.dim = integer(dim, "ChannelScale(dim)")

    def _sizes(self, shape: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
        if not -len(shape) <= self.dim < len(shape):
            raise ValueError(f"{self!r}: a target of shape {shape} has no dimension {self.dim}.")
        return {"scale": (shape[self.dim],)}

    def reset_parameters(self) -> None:
        """Back to the start, in place: all 1."""
        nn.init.ones_(self.scale)

    def forward(self, source: Tensor) -> Tensor:
        ones = [1] * len(self._check(source))
        ones[self.dim] = -1
        return source * self.scale.reshape(ones)

    def extra_repr(self) -> str:
        return f"dim={self.dim}" if self.dim else ""


@register("Mix")
class Mix(_Learned):
    """A learned mixture of `n` sources of one shape: the sum of `weights[i] * sources[i]`.

    With a `fxtie.Bank` as the source it is soft parameter sharing. Starts at the sources' mean.
    Each target gets weights of its own (see `for_target`).

    Shape of the sources: all the same, and the target's unless the mixture goes on into a `chain`.

    Args:
        n: number of sources.

    >>> mix = Mix(2).for_target(torch.empty(2))
    >>> mix(torch.tensor([1.0, 2.0]), torch.tensor([3.0, 6.0])).tolist()
    [2.0, 4.0]
    >>> mix.weights.shape
    torch.Size([2])
    """

    weights: nn.Parameter

    def __init__(self, n: int) -> None:
        super().__init__()
        self.n = integer(n, "Mix(n)")
        if self.n < 1:
            raise ValueError(f"Mix(n): n is positive, not {n}.")

    def _sizes(self, shape: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
        return {"weights": (self.n,)}

    def reset_parameters(self) -> None:
        """Back to the start, in place: all `1 / n`."""
        nn.init.constant_(self.weights, 1 / self.n)

    def fit_to(self, target: Tensor, *sources: Tensor) -> dict[str, Tensor]:
        """The weights that bring the mixture closest to the target: least squares."""
        columns = torch.stack([source.flatten() for source in sources], dim=1)
        return {"weights": torch.linalg.lstsq(columns, target.flatten()[:, None]).solution[:, 0]}

    def forward(self, *sources: Tensor) -> Tensor:
        if len(sources) != self.n:
            raise ValueError(f"{self!r} takes {self.n} sources, not {len(sources)}.")
        self._fitted_shape()
        weighted = [self.weights[i] * source for i, source in enumerate(sources)]
        return torch.stack(weighted).sum(dim=0)

    def extra_repr(self) -> str:
        return str(self.n)
