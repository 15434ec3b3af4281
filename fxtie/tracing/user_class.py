"""Modules that `tied` has made: the class that the user wrote, and which tensors are derived."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn


def user_class(value: Any) -> Any:
    """The class of a value, or a class; of what is made in `tied/path_copy.py`, the user's."""
    kind = type(value)
    cls = value if issubclass(kind, type) else kind
    made = getattr(cls, "_fxtie_made", None)
    return cls if made is None else made.user


def derived_of(module: nn.Module) -> Mapping[str, Any]:
    """The derived tensors of a module, by attribute."""
    state = module.__dict__.get("_fxtie")
    return {} if state is None else state.derived
