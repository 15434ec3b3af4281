"""Figures of benchmarks as plain data: what is measured, and the goals. Needs no torch.

In: samples of a ratio. Out: `Ratio`s and `Figure`s.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Ratio:
    """The median of a ratio's samples, with the quartiles around it."""

    median: float
    low: float
    high: float
    samples: int

    @classmethod
    def of(cls, samples: Iterable[float]) -> Ratio:
        samples = list(samples)
        if len(samples) == 1:
            return cls(samples[0], samples[0], samples[0], 1)
        low, median, high = statistics.quantiles(samples, n=4, method="inclusive")
        return cls(median, low, high, len(samples))


@dataclass(frozen=True)
class Figure:
    """One figure: of `subject`, against something else, for one workload.

    Attributes:
        what: what is measured.
        goal: the value to reach; None for what is told beside it.
        at_least: the goal is to be reached from above.
        within_spread: reached by the better quartile is reached.
        unit: of `ratio`, if it is none.
    """

    what: str
    workload: str
    subject: str
    against: str
    ratio: Ratio
    goal: float | None = None
    at_least: bool = False
    within_spread: bool = False
    unit: str = ""

    @property
    def met(self) -> bool | None:
        """Whether the goal is reached; None without one."""
        if self.goal is None:
            return None
        if self.at_least:
            return self.ratio.median >= self.goal
        return (self.ratio.low if self.within_spread else self.ratio.median) <= self.goal
