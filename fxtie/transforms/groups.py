"""Filter banks of group equivariant networks: `orbit`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from fxtie.transforms.protocol import Named
from fxtie.transforms.registry import register


@register("orbit")
@dataclass(frozen=True, repr=False)
class orbit(Named):
    """All rotations (and reflections) of a base filter: the weight of a group convolution.

    Cohen and Welling, "Group Equivariant Convolutional Networks", arXiv:1602.07576. A network of
    such layers is equivariant: turn its input by a quarter turn, and its feature maps turn along,
    with their group axis shifted. `n` elements has the group, 4 or 8:

    * The first layer, `orbit(group, lifting=True)`: a source of shape `(out, in, k, k)` gives a
      target of `(out * n, in, k, k)`.
    * Later ones, `orbit(group)`: `(out, in * n, k, k)` gives `(out * n, in * n, k, k)`. The group
      axis of the input is turned as well.
    * A bias `(out,)` gives `(out * n,)` by `repeat_interleave(n, 0)`.

    Channel `c * n + g` is the feature `c` for the group element `g`, which is `k` quarter turns,
    `k = g % 4`, after a reflection if `g >= 4`. The mean over `g` and over space is invariant.

    The base filters are free tensors of a smaller shape than the layers': `fxtie.Bank(1, shape)`.

    Args:
        group: "p4" (translations and quarter turns) or "p4m" (reflections as well).
        lifting: whether the layer's input is an image, without a group axis.

    Raises:
        ValueError: for another group; when called, for a source of another shape.

    >>> orbit("p4", lifting=True)(torch.ones(8, 3, 5, 5)).shape
    torch.Size([32, 3, 5, 5])
    >>> orbit("p4m")(torch.ones(8, 16 * 8, 3, 3)).shape
    torch.Size([64, 128, 3, 3])
    """

    group: Literal["p4", "p4m"]
    lifting: bool = False

    def __post_init__(self) -> None:
        if self.group not in ("p4", "p4m"):
            raise ValueError(f"orbit(group): group is 'p4' or 'p4m', not {self.group!r}.")
        if not isinstance(self.lifting, bool):
            raise ValueError(f"orbit(lifting): True or False, not {self.lifting!r}.")

    def __call__(self, source: Tensor) -> Tensor:
        mirrors = 2 if self.group == "p4m" else 1
        n = 4 * mirrors
        shape = tuple(source.shape)
        if len(shape) != 4 or shape[2] != shape[3]:
            raise ValueError(f"{self!r} takes a source of shape (out, in, k, k), not {shape}.")
        if not self.lifting and shape[1] % n:
            raise ValueError(
                f"{self!r} takes a source of shape (out, in * {n}, k, k), not {shape}. For the "
                f"first layer, whose input is an image, write orbit({self.group!r}, lifting=True)."
            )
        filters = source
        if not self.lifting:  # the group axis of the input, as (mirrors, turns)
            filters = source.reshape(shape[0], shape[1] // n, mirrors, 4, shape[2], shape[3])
        turned = [self._act(filters, mirror, k) for mirror in range(mirrors) for k in range(4)]
        return torch.stack(turned, 1).reshape(shape[0] * n, shape[1], shape[2], shape[3])

    def _act(self, filters: Tensor, mirror: int, k: int) -> Tensor:
        """The filters under one element: their value at `(g^-1 y, g^-1 h)` for all `y` and `h`."""
        if mirror:
            filters = filters.flip(-1)
        filters = torch.rot90(filters, k, (-2, -1))
        if self.lifting:
            return filters
        if mirror:  # the inverse turns the other way: h -> k - h
            return filters.flip(2, 3).roll(k + 1, 3)
        return filters.roll(k, 3)
