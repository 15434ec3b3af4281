"""Tied models with adapters of PEFT.

In: a layer with adapters, and the layer that is to take its place. Out: why not, if not.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from fxtie.tied.state import state_of


def merging(layer: Any, base: Any) -> str | None:
    """Refuse a derived layer that adapters were merged into.

    PEFT adds to `base.weight.data`. Of a derived tensor, that is lost; of a source, it reaches what
    is derived from it.
    """
    if not (isinstance(base, nn.Module) and layer.merged):
        return None
    names = [derived.name for derived in state_of(base).derived.values()]
    if not names or layer.get_base_layer() is not base:
        return None
    return (
        f"{names[0]!r} is derived, so adapters can't be merged into it. Adapters of layers before "
        f"it are merged by now: make or load the model again, and merge those of the plain one, "
        f"fxtie.materialize(peft_model).merge_and_unload()."
    )
