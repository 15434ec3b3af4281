"""Ties for a model that nobody wrote rules for: all layers of equal type and shape together.

In: a model. Out: ties, with transforms that keep activations alive, so that comparing outputs
proves something. Called by the zoo and the tests.
"""

from __future__ import annotations

import torch
from torch import nn

import fxtie

_TENSORS = ("weight", "bias", "in_proj_weight", "in_proj_bias", "gamma")


def flip(w: torch.Tensor) -> torch.Tensor:
    """Reverse the first dimension: a transform that is seen in the output and keeps the scale."""
    return w.flip(0)


def enliven(model: nn.Module) -> None:
    """Give constant parameters (zeroed heads, unit scales) random values, in place.

    A comparison of outputs that vanish, or of scales that are all one, would prove nothing.
    """
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.numel() > 1 and parameter.is_floating_point() and parameter.std() < 1e-4:
                mean = parameter.mean().abs() if parameter.dim() == 1 else 0.0
                spread = 0.1 if parameter.dim() == 1 else 0.02
                parameter.copy_(torch.randn_like(parameter) * spread + mean)
            elif parameter.numel() == 1 and parameter == 0:
                parameter.fill_(0.5)  # the gate of a residual branch


def tie_groups(model: nn.Module, *, only_pair: bool = False) -> list[fxtie.Tie]:
    """Ties from the first layer of every group of equal type and shape to the others of it.

    Args:
        only_pair: only one tie, of the largest weight.
    """
    enliven(model)
    groups: dict[tuple[object, ...], list[tuple[str, nn.Parameter]]] = {}
    seen = set()
    for name, module in model.named_modules():
        for attr, parameter in module._parameters.items():
            if parameter is None or attr not in _TENSORS or id(parameter) in seen:
                continue
            seen.add(id(parameter))
            key = (type(module), attr, tuple(parameter.shape), parameter.dtype)
            full = f"{name}.{attr}" if name else attr
            groups.setdefault(key, []).append((full, parameter))
    ties = []
    for members in groups.values():
        (source, _), *targets = members
        ties += [fxtie.Tie(name, source, flip) for name, _ in targets]
    if only_pair and ties:
        sizes = {name: p.numel() for members in groups.values() for name, p in members}
        ties = [max(ties, key=lambda tie: sizes[tie.target])]
    return ties
