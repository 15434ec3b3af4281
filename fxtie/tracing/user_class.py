"""The class that the user wrote, for a module whose class fxtie has made."""

from __future__ import annotations

from torch import nn


def user_class(module: nn.Module) -> type[nn.Module]:
    """A module's class; for a copy (`tied/path_copy.py`), that of the original."""
    cls = type(module)
    return getattr(cls, "_fxtie_class", cls)
