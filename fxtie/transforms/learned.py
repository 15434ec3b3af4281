"""Learnable transforms: modules whose parameters are trained with the tied model.

Their parameters depend on the target, so each target gets a module of its own by `for_target`.
"""

from __future__ import annotations

import copy
import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fxtie._torch import is_jit_traced
from fxtie.transforms.arguments import integer, number
from fxtie.transforms.registry import register


class Learned(nn.Module):
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


class PerChannel(Learned):
    """Base of those that learn one number for each channel, along the dimension `dim`."""

    def __init__(self, dim: int = 0) -> None:
        super().__init__()
        self.dim = integer(dim, f"{type(self).__name__}(dim)")

    def _channels(self, shape: tuple[int, ...]) -> int:
        """How many channels a target has."""
        if not -len(shape) <= self.dim < len(shape):
            raise ValueError(f"{self!r}: a target of shape {shape} has no dimension {self.dim}.")
        return shape[self.dim]

    def _along_channels(self, source: Tensor) -> list[int]:
        """The shape in which one number for each channel broadcasts over the source."""
        shape = [1] * len(self._check(source))
        shape[self.dim] = -1
        return shape

    def extra_repr(self) -> str:
        return f"dim={self.dim}" if self.dim else ""


@register("LowRank")
class LowRank(Learned):
    """The source plus a learned matrix of low rank: `source + alpha / rank * B @ A`.

    Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", arXiv:2106.09685. For a target
    of shape `(out, in, ...)` and `n` elements, `B` is `(out, rank)` and `A` is `(rank, n / out)`;
    their product is viewed as the target. `B` starts at 0, so the derived tensor starts at the
    source; `A` starts Kaiming-uniform with `a=sqrt(5)`, as `nn.Linear` does.

    Shape of the source: the target's. Each target gets an `A` and a `B` of its own (see
    `for_target`), in its dtype and on its device.

    Args:
        rank: from 1 to the smaller side of the matrix `(out, n / out)`.
        alpha: LoRA's scale of the update, positive; `rank` if None, so that the factor is 1.
        dropout: probability, below 1, of dropping an input of the update in training mode. LoRA
            drops elements of the layer's input on its way to `A`. A weight does not see the input,
            so here one mask over the input channels (dimension 1) holds for a whole call: those
            columns of `B @ A` are zero, the others are divided by `1 - dropout`. For a Linear that
            is LoRA's dropout with the same mask for every element of the batch.

    Raises:
        ValueError: for a number out of range; in `for_target`, for a vector or a rank that is too
            large.

    >>> fitted = LowRank(2, alpha=4).for_target(torch.empty(8, 4, 3, 3))
    >>> {name: tuple(p.shape) for name, p in fitted.named_parameters()}
    {'A': (2, 36), 'B': (8, 2)}
    """

    A: nn.Parameter
    B: nn.Parameter

    def __init__(self, rank: int, alpha: float | None = None, dropout: float = 0.0) -> None:
        super().__init__()
        self.rank = integer(rank, "LowRank(rank)")
        self.alpha = None if alpha is None else number(alpha, "LowRank(alpha)")
        self.dropout = number(dropout, "LowRank(dropout)")
        if self.rank < 1:
            raise ValueError(f"LowRank(rank): rank is positive, not {rank}.")
        if self.alpha is not None and self.alpha <= 0:
            raise ValueError(f"LowRank(alpha): alpha is positive, not {alpha}.")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"LowRank(dropout): 0 <= dropout < 1 is needed, not {dropout}.")

    def _sizes(self, shape: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
        if len(shape) < 2:
            raise ValueError(
                f"{self!r} needs a target of two or more dimensions, not one of shape {shape}. "
                f"Write exclude= for it, and a rule of its own."
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
        factor = 1 if self.alpha is None else self.alpha / self.rank
        u, s, v = torch.linalg.svd((target - source).flatten(1) / factor, full_matrices=False)
        root = s[: self.rank].sqrt()
        return {"A": root[:, None] * v[: self.rank], "B": u[:, : self.rank] * root}

    def forward(self, source: Tensor) -> Tensor:
        shape = self._check(source)
        update = (self.B @ self.A).reshape(shape)
        if self.alpha is not None:
            update = update * (self.alpha / self.rank)
        if self.dropout and self.training:
            inputs = (1, shape[1], *(1,) * (len(shape) - 2))
            update = update * F.dropout(self.A.new_ones(inputs), self.dropout)
        return source + update

    def extra_repr(self) -> str:
        alpha = "" if self.alpha is None else f", alpha={self.alpha}"
        dropout = f", dropout={self.dropout}" if self.dropout else ""
        return f"{self.rank}{alpha}{dropout}"


@register("ChannelScale")
class ChannelScale(PerChannel):
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

    def _sizes(self, shape: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
        return {"scale": (self._channels(shape),)}

    def reset_parameters(self) -> None:
        """Back to the start, in place: all 1."""
        nn.init.ones_(self.scale)

    def forward(self, source: Tensor) -> Tensor:
        shape = self._along_channels(source)
        return source * self.scale.reshape(shape)


@register("weight_norm")
class weight_norm(PerChannel):
    """The direction of the source and a learned magnitude: `g * source / |source|`, per channel.

    Salimans and Kingma, "Weight Normalization: A Simple Reparameterization to Accelerate Training
    of Deep Neural Networks", arXiv:1602.07868. The norm is the Euclidean one over all dimensions
    but `dim`, as in `torch.nn.utils.parametrizations.weight_norm`.

    Each target gets a `g` of its own, of shape `(out,)`, in its dtype and on its device. It starts
    at the norms of the target's own value, so `Rule("fc", "fc", weight=weight_norm())` starts at
    the tensor that is there, and a target with another source starts with its old magnitudes.
    Where the target has no data it starts at the norm that Linear and Conv start with.

    Shape of the source: the target's. A channel of zeros has no direction and gives NaN.

    Args:
        dim: the dimension of the output channels: 0 for Linear and Conv, 1 for ConvTranspose.

    Raises:
        ValueError: in `for_target`, if the target has no such dimension.

    >>> weight = torch.tensor([[3.0, 4.0], [6.0, 8.0]])
    >>> fitted = weight_norm().for_target(weight, value=weight)
    >>> fitted.g.tolist()
    [5.0, 10.0]
    >>> torch.allclose(fitted(weight), weight)
    True
    """

    g: nn.Parameter

    def for_target(self, target: Tensor, *, value: Tensor | None = None) -> nn.Module:
        fitted = super().for_target(target)
        if fitted is not self and value is not None:
            with torch.no_grad():
                fitted.g.copy_(self._norm(value).flatten())  # type: ignore[operator]
        return fitted

    def _sizes(self, shape: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
        return {"g": (self._channels(shape),)}

    def reset_parameters(self) -> None:
        """All magnitudes to those that Linear and Conv start with, in place."""
        shape = self._fitted_shape()
        in_channel = math.prod(shape) / max(1, shape[self.dim])
        nn.init.constant_(self.g, math.sqrt(in_channel / (3 * max(1, math.prod(shape[1:])))))

    def fit_to(self, target: Tensor, source: Tensor) -> dict[str, Tensor]:
        """The magnitudes that bring the source's directions closest to the target."""
        product = (target * source / self._norm(source)).movedim(self.dim, 0)
        return {"g": product.flatten(1).sum(1)}

    def _norm(self, tensor: Tensor) -> Tensor:
        others = list(range(len(tensor.shape)))
        del others[self.dim]
        norm: Tensor = torch.linalg.vector_norm(tensor, dim=others, keepdim=True)
        return norm

    def forward(self, source: Tensor) -> Tensor:
        shape = self._along_channels(source)
        return source * (self.g.reshape(shape) / self._norm(source))
