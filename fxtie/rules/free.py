"""`Bank` and `Tensors`: free tensors as sources, which the tied model registers under `ties`."""

from __future__ import annotations

import math
import operator
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, SupportsIndex

import torch
from torch import nn

from fxtie.errors import RuleError, closest


@dataclass(frozen=True)
class Entry:
    """One tensor of a bank or of `Tensors`, as a source: `bank[0]`, `tensors["A"]`."""

    owner: Free
    name: str

    def __repr__(self) -> str:
        return f"{self.owner!r}[{self.name!r}]"


class Free(nn.Module):
    """Tensors that belong to no layer. As a source it gives the transform all of them, in order."""

    def tensor_names(self) -> tuple[str, ...]:
        """The names of its tensors, in order."""
        raise NotImplementedError

    def __getitem__(self, key: Any) -> Entry:
        """One of its tensors, as a source."""
        raise NotImplementedError

    def __repr__(self) -> str:
        """In one line, as rules are printed."""
        return f"{type(self).__name__}({self.extra_repr()})"


class Bank(Free):
    """A bank of `n` free template tensors of one shape, trained with the model.

    As the source of a rule it gives the transform all `n` templates, in order; `bank[i]` gives one.
    With `Mix` this is soft parameter sharing, a weight as a learned mixture of templates (Savarese
    and Maire, "Learning Implicitly Recurrent CNNs Through Parameter Sharing", ICLR 2019).

    Args:
        n: number of templates.
        shape: shape of each.
        dtype: their dtype; torch's default if None.
        device: their device; torch's default if None.

    The templates start as `nn.Conv2d` and `nn.Linear` start their weights: uniform within
    `1 / sqrt(fan_in)`, where the fan-in is the product of all dimensions but the first.

    Raises:
        RuleError: if `n` is not positive, or `shape` is no shape.

    Example:
        >>> import fxtie
        >>> net = nn.Sequential(*(nn.Conv2d(8, 8, 3, padding=1) for _ in range(4)))
        >>> bank = fxtie.Bank(2, (8, 8, 3, 3))
        >>> tied = fxtie.transform(net, fxtie.Rule("*", bank, fxtie.transforms.Mix(2)))
        >>> sorted(name for name, _ in tied.ties.named_parameters() if "templates" in name)
        ['bank.templates.0', 'bank.templates.1']
        >>> fxtie.report(tied).summary()
        'parameters 2.3k -> 1.2k (51.0%), 4 ties, 1 region, 0 kept'
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
        if not _is_shape(shape):
            raise RuleError(
                f"A bank's templates have a shape, such as (64, 64, 3, 3), not {shape!r}."
            )
        self.templates = nn.ParameterList(drawn(shape, dtype, device) for _ in range(n))

    def tensor_names(self) -> tuple[str, ...]:
        """The names of its templates: `templates.0`, `templates.1`, ..."""
        return tuple(f"templates.{i}" for i in range(len(self.templates)))

    def __getitem__(self, index: int) -> Entry:
        """One template, as a source.

        Raises:
            RuleError: if there is none of this number.
        """
        if isinstance(index, bool) or not isinstance(index, int) or not 0 <= index < len(self):
            raise RuleError(f"This bank has the templates 0 to {len(self) - 1}, not {index!r}.")
        return Entry(self, f"templates.{index}")

    def __len__(self) -> int:
        return len(self.templates)

    def extra_repr(self) -> str:
        return f"{len(self.templates)}, {tuple(self.templates[0].shape)}"


class Tensors(Free):
    """Named free tensors of any shapes, trained with the model or frozen.

    As the source of a rule it gives the transform all of its tensors, in order; `tensors["A"]`
    gives one.

    Args:
        frozen: names of those that are not trained. They are buffers, saved once however many
            layers read them.
        dtype: of those that are given by shape; torch's default if None.
        device: of those that are given by shape; torch's default if None.
        **tensors: each is a shape, and then drawn as `nn.Linear` draws its weight (uniform within
            `1 / sqrt(fan_in)`); or a value, such as one of a checkpoint, which is copied.

    Attributes:
        given: the names of those that were given as values.

    Raises:
        RuleError: for a name that a module can't have or that is frozen and not there, a value that
            is neither a shape nor a tensor, or one that can't be trained (integers).

    Example: the frozen random matrices of VeRA (Kopiczko et al., arXiv:2310.11454), which all
    layers share, and a trained scale for each.
        >>> import fxtie
        >>> tensors = fxtie.Tensors(A=(2, 8), B=(8, 2), frozen=("A", "B"))
        >>> class Vera(nn.Module):
        ...     def __init__(self, rank, out):
        ...         super().__init__()
        ...         self.d, self.b = nn.Parameter(torch.ones(rank)), nn.Parameter(torch.zeros(out))
        ...     def forward(self, own, A, B):
        ...         return own + self.b[:, None] * (B @ (self.d[:, None] * A))
        >>> net = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
        >>> vera = fxtie.each(lambda i: Vera(2, 8))
        >>> tied = fxtie.transform(net, fxtie.Rule("*", ("{0}", tensors), weight=vera))
        >>> [name for name, _ in tied.named_buffers()]
        ['ties.tensors.A', 'ties.tensors.B']
    """

    def __init__(
        self,
        *,
        frozen: Collection[str] = (),
        dtype: torch.dtype | None = None,
        device: Any = None,
        **tensors: Sequence[int] | torch.Tensor,
    ) -> None:
        super().__init__()
        frozen = {frozen} if isinstance(frozen, str) else set(frozen)
        if not tensors:
            raise RuleError("Tensors hold one tensor or more: fxtie.Tensors(A=(2, 8)).")
        for name in sorted(frozen - tensors.keys()):
            raise RuleError(f"There is no tensor {name!r} to freeze.{closest(name, tensors)}")
        self._keys = tuple(tensors)
        self.given = tuple(n for n, value in tensors.items() if isinstance(value, torch.Tensor))
        for name, given in tensors.items():
            value = _value(name, given, dtype, device)
            try:
                if name in frozen:
                    self.register_buffer(name, value)
                else:
                    self.register_parameter(name, nn.Parameter(value))
            except (KeyError, RuntimeError) as error:  # a name of nn.Module's; integers
                raise RuleError(f"{name!r} can't be a tensor of fxtie.Tensors: {error}") from error

    def tensor_names(self) -> tuple[str, ...]:
        """The names of its tensors, in the order in which they were given."""
        return self._keys

    def __getitem__(self, name: str) -> Entry:
        """One tensor, as a source.

        Raises:
            RuleError: if there is none of this name.
        """
        if name not in self._keys:
            raise RuleError(f"There is no tensor {name!r} here.{closest(str(name), self._keys)}")
        return Entry(self, name)

    def extra_repr(self) -> str:
        parts = [f"{name}={tuple(getattr(self, name).shape)}" for name in self._keys]
        if self._buffers:
            parts.append(f"frozen={tuple(self._buffers)}")
        return ", ".join(parts)


def _is_shape(given: Any) -> bool:
    return isinstance(given, Sequence) and all(
        isinstance(size, SupportsIndex) and operator.index(size) >= 0 for size in given
    )


def drawn(
    shape: Sequence[int], dtype: torch.dtype | None = None, device: Any = None
) -> torch.Tensor:
    """A tensor as `nn.Linear` draws its weight: uniform within `1 / sqrt(fan_in)`."""
    bound = 1 / math.sqrt(max(1, math.prod(shape[1:])))
    return torch.empty(tuple(shape), dtype=dtype, device=device).uniform_(-bound, bound)


def _value(name: str, given: Any, dtype: torch.dtype | None, device: Any) -> torch.Tensor:
    if isinstance(given, torch.Tensor):
        return given.detach().clone()
    if not _is_shape(given):
        raise RuleError(
            f"{name!r} is given by its shape, such as (2, 8), or as a tensor, not as {given!r}."
        )
    return drawn(given, dtype, device)
