"""Classes of other libraries that fxtie treats in a way of their own.

In: declarations, by the dotted name of a class, so that it need not be imported (`integrations/`).
Out: those that hold for a class.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Foreign:
    """What is declared of a class.

    Attributes:
        methods: a class whose methods a tied model has before those of its own class, which they
            call by `super()`.
        own_ties: for a module, tensors that its library keeps the same: each with the one that it
            is the same as.
    """

    methods: type
    own_ties: Callable[[Any], Mapping[str, str]]


_declared: dict[str, Foreign] = {}


def declare(ancestor: str, foreign: Foreign) -> None:
    """Declare what holds for a class and what inherits from it, by its dotted name."""
    _declared[ancestor] = foreign


def foreign_of(cls: type) -> list[Foreign]:
    """What is declared of a class and its ancestors, nearest first."""
    names = (f"{one.__module__}.{one.__qualname__}" for one in cls.__mro__)
    return [_declared[name] for name in names if name in _declared]
