"""Tensors that accelerate keeps on other devices, in memory or on a disk."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

from torch import nn

HOOK = "_hf_hook"  # of a module, what brings its tensors and inputs to its device


def loading(module: nn.Module) -> AbstractContextManager[Any]:
    """The context in which a module has the tensors that it is called with.

    A source is read by other modules as well, while it is not called itself.
    """
    from accelerate.utils import align_module_device

    context: AbstractContextManager[Any] = align_module_device(module)
    return context
