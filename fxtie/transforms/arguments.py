"""Checks of what users pass to constructors: the value as the type asked for, or a ValueError."""

from __future__ import annotations

import functools
import inspect
import math
import operator
from collections.abc import Sequence
from typing import Any

from torch import Tensor


def explain_calls(cls: type) -> None:
    """Let a call with wrong arguments say how the class is called, and not how `__init__` is."""
    init: Any = cls.__init__  # type: ignore[misc]
    signature = inspect.signature(init)
    _, *parameters = (p.replace(annotation=p.empty) for p in signature.parameters.values())
    call = f"{cls.__name__}{inspect.Signature(parameters)}"

    @functools.wraps(init)
    def explained(self: Any, *args: Any, **kwargs: Any) -> None:
        try:
            signature.bind(self, *args, **kwargs)
        except TypeError as error:
            raise TypeError(f"{call} can't be called like that: {error}.") from None
        init(self, *args, **kwargs)

    cls.__init__ = explained  # type: ignore[misc]


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
