"""`Bank`: free tensors that rules can name as their source, where no layer is.

In: a number and a shape. Out: an `nn.Module` that the tied model registers under `ties`. Named by
`Rule(source=bank)`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from fxtie.errors import RuleError


class Bank(nn.Module):
    """A bank of `n` free template tensors of one shape, trained with the model.

    As the source of a rule it gives the transform all `n` templates, in order. With `Mix` this is
    soft parameter sharing, a weight as a learned mixture of templates (Savarese and Maire,
    "Learning Implicitly Recurrent CNNs Through Parameter Sharing", ICLR 2019).

    Args:
        n: number of templates.
        shape: shape of each.
        dtype: their dtype; torch's default if None.
        device: their device; torch's default if None.

    The templates start as `nn.Conv2d` and `nn.Linear` start their weights: uniform within
    `1 / sqrt(fan_in)`, where the fan-in is the product of all dimensions but the first.

    Raises:
        RuleError: if `n` is not positive.

    Example:
        >>> import fxtie
        >>> net = nn.Sequential(*(nn.Conv2d(8, 8, 3, padding=1) for _ in range(4)))
        >>> bank = fxtie.Bank(2, (8, 8, 3, 3))
        >>> tied = fxtie.transform(net, fxtie.Rule("*", bank, fxtie.transforms.Mix(2), bias=None))
        >>> sorted(name for name, _ in tied.ties.named_parameters() if "templates" in name)
        ['bank.templates.0', 'bank.templates.1']
    """

    def __init__(
        self,
        n: int,
        shape: Sequence[int],
        *,
        dtype: torch.dtype | None = None,
        device: Any = None,
    ) -> None:
        super().__init__()
        if isinstance(n, bool) or not isinstance(n, int) or n < 1:
            raise RuleError(f"A bank holds one template or more, not {n!r}.")
        bound = 1 / math.sqrt(max(1, math.prod(shape[1:])))
        self.templates = nn.ParameterList(
            torch.empty(tuple(shape), dtype=dtype, device=device).uniform_(-bound, bound)
            for _ in range(n)
        )

    def extra_repr(self) -> str:
        return f"{len(self.templates)}, {tuple(self.templates[0].shape)}"
