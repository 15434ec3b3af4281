"""Tied models with adapters of PEFT, and tied adapters. PEFT is not imported.

Adapters are saved so that the plain class loads them, and not merged where others read the layer.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from fxtie.errors import FxtieError
from fxtie.life.plain import plain_state
from fxtie.tied.state import state_of


class TiedPeft(nn.Module):
    """What a tied model does in place of the `PeftModel` that its class inherits from."""

    def save_pretrained(self, save_directory: str, *args: Any, **kwargs: Any) -> None:
        """As `PeftModel.save_pretrained`: adapters with derived tensors computed."""
        save: Any = super().save_pretrained  # type: ignore[misc]
        state = {**self.state_dict(), **(kwargs.pop("state_dict", None) or {})}
        save(save_directory, *args, state_dict=plain_state(self, state), **kwargs)


class TiedAdapters(nn.Module):
    """What a layer with adapters does in a tied model."""

    def merge(self, *args: Any, **kwargs: Any) -> None:
        """As PEFT's, unless others read what would change.

        PEFT adds to `base.weight.data`. Of a derived tensor, that is lost; of a source, it reaches
        what is derived from it.

        Raises:
            FxtieError: if the layer has derived tensors or sources of such.
        """
        layer: Any = self
        state = state_of(layer.get_base_layer())
        faults = [f"{derived.name!r} is derived" for derived in state.derived.values()]
        faults += [f"{name!r} is a source of derived tensors" for name in state.read.values()]
        if faults:
            raise FxtieError(
                f"Adapters can't be merged here: {faults[0]}. Merge those of the plain model, "
                f"fxtie.materialize(peft_model).merge_and_unload(). Layers before this one may be "
                f"merged by now: call peft_model.unmerge_adapter() before that, or, if they are "
                f"unloaded, make the model again."
            )
        merge: Any = super().merge  # type: ignore[misc]
        merge(*args, **kwargs)
