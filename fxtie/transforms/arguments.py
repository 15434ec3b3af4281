"""Checks of what users pass to constructors.

In: any value. Out: the value as the type that was asked for, or a ValueError that says where.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from typing import Any

from torch import Tensor


def integer(value: Any, where: str) -> int:
    """An integer, of Python or numpy."""
    try:
        return int(operator.index(value))
    except TypeError:
        raise ValueError(f"{where} takes integers, not {value!r}.") from None


def integers(value: Any, where: str) -> tuple[int, ...]:
    """One integer or a sequence of them, as a tuple."""
    several = value if isinstance(value, Sequence) and not isinstance(value, str) else (value,)
    return tuple(integer(item, where) for item in several)


def number(value: Any, where: str) -> float:
    """A finite number that is neither a bool nor a tensor."""
    if isinstance(value, bool | Tensor) or not isinstance(value, int | float):
        raise ValueError(f"{where} takes a number, not {value!r}.")
    if not math.isfinite(value):
        raise ValueError(f"{where} takes a finite number, not {value!r}.")
    return float(value)
