"""Learned combinations of several sources, such as a `fxtie.Bank`: `Mix` and `basis`."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from fxtie._torch import is_jit_traced
from fxtie.transforms.arguments import integer
from fxtie.transforms.learned import Learned
from fxtie.transforms.protocol import Shape
from fxtie.transforms.registry import register


@register("Mix")
class Mix(Learned):
    """A learned mixture of sources of one shape: the sum of `weights[i] * sources[i]`.

    With a `fxtie.Bank` as the source it is soft parameter sharing (Savarese and Maire, "Learning
    Implicitly Recurrent CNNs Through Parameter Sharing", arXiv:1902.09701).

    Each target gets weights of its own (see `for_target`), a random direction of length 1. So the
    mixture starts with the variance that its sources have, which for a bank is the one that Linear
    and Conv start with; and targets of one bank start different from each other. The plain mean of
    the sources is `mean`.

    Shape of the sources: all the same, and the target's unless the mixture goes on into a `chain`.

    Args:
        n: number of sources; planning counts them if None.

    Raises:
        ValueError: for an `n` below 1, or where the number of sources is not `n`.

    >>> mix = Mix().for_target(torch.empty(2), sources=2)
    >>> mix
    Mix(2)
    >>> mix.weights.data = torch.tensor([0.5, 2.0])
    >>> mix(torch.tensor([1.0, 2.0]), torch.tensor([3.0, 6.0])).tolist()
    [6.5, 13.0]
    """

    weights: nn.Parameter

    def __init__(self, n: int | None = None) -> None:
        super().__init__()
        self.n = None if n is None else integer(n, "Mix(n)")
        if self.n is not None and self.n < 1:
            raise ValueError(f"Mix(n): n is positive, not {n}.")

    def for_target(self, target: Tensor, *, sources: int | None = None) -> nn.Module:
        if self.n is None and sources is not None:
            counted = copy.deepcopy(self)
            counted.n = sources
            return Learned.for_target(counted, target)
        return super().for_target(target)

    def _sizes(self, shape: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
        if self.n is None:
            raise ValueError(
                "Mix() doesn't know the number of its sources. Write Mix(n), or "
                "for_target(target, sources=n), as planning does."
            )
        return {"weights": (self.n,)}

    def reset_parameters(self) -> None:
        """A new start, in place: a random direction of length 1."""
        nn.init.normal_(self.weights)
        with torch.no_grad():
            self.weights.div_(torch.linalg.vector_norm(self.weights))

    def fit_to(self, target: Tensor, *sources: Tensor) -> dict[str, Tensor]:
        """The weights that bring the mixture closest to the target: least squares."""
        columns = torch.stack([source.flatten() for source in sources], dim=1)
        return {"weights": torch.linalg.lstsq(columns, target.flatten()[:, None]).solution[:, 0]}

    def forward(self, *sources: Tensor) -> Tensor:
        self._fitted_shape()
        if len(sources) != self.n:
            raise ValueError(f"{self!r} takes {self.n} sources, not {len(sources)}.")
        weighted = [self.weights[i] * source for i, source in enumerate(sources)]
        return torch.stack(weighted).sum(dim=0)

    def extra_repr(self) -> str:
        return "" if self.n is None else str(self.n)


@register("basis")
class basis(Learned):
    """Every output channel as a learned combination of `k` shared basis filters.

    Wang et al., "Basis Sharing: Cross-Layer Parameter Sharing for Large Language Model
    Compression", arXiv:2410.03765: layers share a matrix of `k` basis vectors, and each has its own
    coefficients, `W = C @ basis`. Where `Mix` has one weight per source, this has one per source
    and output channel, so targets of one basis may differ in their number of output channels.

    Shapes: sources of shape `(rows, in, ...)` for a target of shape `(out, in, ...)`, with `k` rows
    in all: `Bank(k, (1, in, ...))`, or the weight of one layer with `k` outputs. Each target gets
    `coefficients` of shape `(out, k)`, in its dtype and on its device. They start normal with
    variance `1 / k`, so the derived tensor starts with the variance of the basis.

    Args:
        k: number of basis filters. Below `out` it saves parameters if the basis is shared.

    Raises:
        ValueError: for a `k` below 1, a target without dimensions, or sources of other shapes.

    >>> fitted = basis(2).for_target(torch.empty(8, 3))
    >>> fitted.coefficients.shape
    torch.Size([8, 2])
    >>> fitted(torch.ones(1, 3), torch.ones(1, 3)).shape
    torch.Size([8, 3])
    """

    coefficients: nn.Parameter

    def __init__(self, k: int) -> None:
        super().__init__()
        self.k = integer(k, "basis(k)")
        if self.k < 1:
            raise ValueError(f"basis(k): k is positive, not {k}.")

    def _sizes(self, shape: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
        if not shape:
            raise ValueError(f"{self!r} needs a target of one or more dimensions.")
        return {"coefficients": (shape[0], self.k)}

    def reset_parameters(self) -> None:
        """A new start, in place: normal with variance `1 / k`."""
        nn.init.normal_(self.coefficients, std=1 / math.sqrt(self.k))

    def fit_to(self, target: Tensor, *sources: Tensor) -> dict[str, Tensor]:
        """The coefficients that bring the combination closest to the target: least squares."""
        rows, columns = torch.cat(sources).reshape(self.k, -1), target.reshape(len(target), -1)
        return {"coefficients": torch.linalg.lstsq(rows.T, columns.T).solution.T}

    @staticmethod
    def fit_together(
        transforms: Sequence[basis],
        targets: Sequence[Tensor],
        sources: Sequence[Tensor],
        moments: Sequence[Tensor | None],
    ) -> tuple[list[Tensor], list[dict[str, Tensor]]]:
        """The basis and all coefficients at once: the singular vectors of the stacked targets.

        `moments` are, of each target's layer, the sum of `x x^T` over its inputs. If all are known,
        the error of the outputs is least, else that of the weights. See `fit_solvers.py`.
        """
        k = transforms[0].k
        rows = torch.cat([target.reshape(len(target), -1) for target in targets])
        known = [moment for moment in moments if moment is not None]
        values, vectors = torch.linalg.eigh(
            torch.stack(known).sum(0)
            if len(known) == len(targets)
            else torch.eye(rows.shape[1], dtype=rows.dtype, device=rows.device)
        )
        # Directions that no input has get next to no weight, but some.
        scale = values.clamp(min=values.max() * torch.finfo(values.dtype).eps).sqrt()
        _, _, right = torch.linalg.svd(rows @ (vectors * scale), full_matrices=False)
        right = nn.functional.pad(right[:k], (0, 0, 0, max(0, k - len(right))))
        found = right @ (vectors / scale).mT
        # Basis vectors have length 1 whatever the inputs were. If their size went into the
        # coefficients, a step of Adam, which moves all numbers alike, would undo the basis.
        lengths = torch.linalg.vector_norm(found, dim=1, keepdim=True)
        lengths = lengths.clamp(min=torch.finfo(found.dtype).tiny)
        new = (found / lengths).split([len(source) for source in sources])
        shaped = [part.reshape(source.shape) for part, source in zip(new, sources, strict=True)]
        back = (vectors * scale) @ (right * lengths).mT
        return shaped, [
            {"coefficients": target.reshape(len(target), -1) @ back} for target in targets
        ]

    def forward(self, *sources: Tensor) -> Tensor:
        shape = self._fitted_shape()
        if not is_jit_traced():  # sizes are traced values there
            self._check_rows(shape, [tuple(source.shape) for source in sources])
        return (self.coefficients @ torch.cat(sources).reshape(self.k, -1)).reshape(shape)

    def _check_rows(self, shape: Shape, shapes: list[Shape]) -> None:
        fits = all(len(size) == len(shape) and size[1:] == shape[1:] for size in shapes)
        if not fits or sum(size[0] for size in shapes) != self.k:
            raise ValueError(
                f"{self!r} for a target of shape {shape} takes sources with {self.k} rows of shape "
                f"{shape[1:]} in all, such as fxtie.Bank({self.k}, {(1, *shape[1:])}), not "
                f"{', '.join(map(str, shapes)) or 'none'}."
            )

    def extra_repr(self) -> str:
        return str(self.k)
