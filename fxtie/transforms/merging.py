"""Weights between those of other models, for merged models.

The coefficient is a fixed number or, with `learn`, a parameter: one per layer or one for all.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fxtie.transforms.arguments import number
from fxtie.transforms.learned import Learned
from fxtie.transforms.protocol import HasCoefficient, Transform, set_fields, transform_name
from fxtie.transforms.registry import register


@register("interpolate")
@dataclass(frozen=True, repr=False)
class interpolate(HasCoefficient):
    """A point on the line between two sources: `(1 - t) * a + t * b`.

    Of a model before and after fine-tuning: Wortsman et al., "Robust fine-tuning of zero-shot
    models" (WiSE-FT), arXiv:2109.01903. Two sources of one shape, the target's.

    Args:
        t: a finite number: 0 is the first source, 1 the second, others lie beyond. A learned one is
            `learn(interpolate(t))`.

    Raises:
        ValueError: for a `t` that is not a finite number, or not two sources.

    >>> interpolate(0.25)(torch.tensor([0.0, 4.0]), torch.tensor([4.0, 8.0]))
    tensor([1., 5.])
    """

    t: float

    def __post_init__(self) -> None:
        set_fields(self, t=number(self.t, "interpolate(t)"))

    def coefficient(self) -> float:
        return self.t

    def run(self, coefficient: float | Tensor, *sources: Tensor) -> Tensor:
        if len(sources) != 2:
            raise ValueError(f"{self!r} takes 2 sources, not {len(sources)}.")
        return (1 - coefficient) * sources[0] + coefficient * sources[1]


@register("task_vector")
@dataclass(frozen=True, repr=False)
class task_vector(HasCoefficient):
    """The first source plus what fine-tuning has changed: `base + scale * sum(tuned - base)`.

    Ilharco et al., "Editing Models with Task Arithmetic", arXiv:2212.04089. The first source is the
    base model's tensor, each further one that of a model tuned on one task. All have one shape, the
    target's. A negative scale forgets the tasks.

    Args:
        scale: a finite number, the paper's lambda. Learned ones, one per layer as in AdaMerging
            (Yang et al., arXiv:2310.02575), are `learn(task_vector(0.3))`.

    Raises:
        ValueError: for a scale that is not a finite number, or fewer than two sources.

    >>> base, tuned = torch.tensor([1.0, 1.0]), torch.tensor([1.0, 3.0])
    >>> task_vector(0.5)(base, tuned)
    tensor([1., 2.])
    """

    scale: float = 1.0

    def __post_init__(self) -> None:
        set_fields(self, scale=number(self.scale, "task_vector(scale)"))

    def coefficient(self) -> float:
        return self.scale

    def run(self, coefficient: float | Tensor, *sources: Tensor) -> Tensor:
        if len(sources) < 2:
            raise ValueError(
                f"{self!r} takes a base and one or more tuned sources, not {len(sources)} in all."
            )
        base, *tuned = sources
        return (1 - len(tuned) * coefficient) * base + coefficient * torch.stack(tuned).sum(dim=0)


@register("learn")
class learn(Learned):
    """A transform whose number is a parameter: `learn(scale(1.0))`, `learn(interpolate(0.5))`.

    Shape of the sources: as `of` takes them. The parameter is the scalar `coefficient`, which
    starts at the number that `of` has.

    Args:
        of: `scale`, `interpolate` or `task_vector`, with the number to start from.
        shared: one coefficient for all targets. Otherwise each gets its own, in its dtype and on
            its device (see `for_target`); a shared one has torch's default dtype.

    Raises:
        ValueError: for another transform.

    >>> fitted = learn(interpolate(0.5)).for_target(torch.empty(2))
    >>> fitted
    learn(interpolate(0.5))
    >>> fitted.coefficient.item()
    0.5
    """

    coefficient: nn.Parameter

    def __init__(self, of: Transform, shared: bool = False) -> None:
        super().__init__()
        if not isinstance(of, HasCoefficient):
            raise ValueError(
                f"learn(of) takes a transform with one number, such as interpolate(0.5), not "
                f"{transform_name(of)}."
            )
        self.of = of
        self.shared = bool(shared)
        if self.shared:
            self.coefficient = nn.Parameter(torch.tensor(of.coefficient()))

    def for_target(self, target: Tensor) -> nn.Module:
        return self if self.shared else super().for_target(target)

    def _sizes(self, shape: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
        return {"coefficient": ()}

    def reset_parameters(self) -> None:
        """Back to the start, in place: the number that `of` has."""
        nn.init.constant_(self.coefficient, self.of.coefficient())

    def fit_to(self, target: Tensor, *sources: Tensor) -> dict[str, Tensor]:
        """The coefficient that brings the result closest to the target: least squares."""
        start = self.of.run(0.0, *sources)
        slope = self.of.run(1.0, *sources) - start
        square = (slope * slope).sum()
        return {"coefficient": ((target - start) * slope).sum() / (square + square.eq(0))}

    def forward(self, *sources: Tensor) -> Tensor:
        if not self.shared:
            self._fitted_shape()
        return self.of.run(self.coefficient, *sources)

    def extra_repr(self) -> str:
        return f"{self.of!r}{', shared=True' if self.shared else ''}"
