"""A model's layers as plain data: what a picture of it says of each."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import nn
from torch.nn.parameter import is_lazy

from fxtie.words import join


@dataclass(frozen=True)
class Layer:
    """A module that owns parameters."""

    name: str  # its dotted name, empty for the root
    type: str
    shapes: Mapping[str, tuple[int, ...]]  # its parameters, by attribute
    # Those among them that an earlier layer owns as well, and the name they have there.
    shared: Mapping[str, str] = field(default_factory=dict)
    aliases: tuple[str, ...] = ()  # other names of the module

    @property
    def sizes(self) -> dict[str, int]:
        """The number of elements of each parameter that no earlier layer owns."""
        return {a: math.prod(s) for a, s in self.shapes.items() if a not in self.shared}


def layers_of(model: nn.Module) -> tuple[Layer, ...]:
    """The layers in the order of the model's modules. Lazy parameters have no size yet."""
    names: dict[nn.Module, list[str]] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        names.setdefault(module, []).append(name)
    owner: dict[int, str] = {}
    layers = []
    for module, (name, *aliases) in names.items():
        own = {a: p for a, p in module._parameters.items() if p is not None and not is_lazy(p)}
        if not own:
            continue
        shared = {attr: owner[id(p)] for attr, p in own.items() if id(p) in owner}
        for attr, p in own.items():
            owner.setdefault(id(p), join(name, attr))
        shapes = {attr: tuple(p.shape) for attr, p in own.items()}
        layers.append(Layer(name, type(module).__name__, shapes, shared, tuple(aliases)))
    return tuple(layers)
