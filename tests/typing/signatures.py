"""What type checkers see of the public functions. Read by mypy and pyright, never called.

In: a model of the user's class, or an exported program. Out: `assert_type` of each result.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.export import ExportedProgram
from typing_extensions import assert_type

import fxtie


class Net(nn.Module):
    """A user's model, with an attribute that a plain nn.Module does not have."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
        self.classes = 10

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.layers(x))


RULE = fxtie.Rule("layers.1", "layers.0", weight=torch.square)


def models(net: Net, options: dict[str, Any]) -> None:
    """A model keeps its class."""
    tied = fxtie.transform(net, RULE)
    assert_type(tied, Net)
    assert_type(tied.classes, int)
    assert_type(fxtie.transform(net, [RULE], recompute=True, strict=True, trace=False), Net)
    assert_type(fxtie.transform(net, fxtie.plan(net, RULE)), Net)
    assert_type(fxtie.transform(tied, fxtie.Rule("a", "b")), Net)
    assert_type(fxtie.materialize(tied), Net)
    assert_type(fxtie.freeze(tied), Net)
    assert_type(fxtie.load("tied.safetensors", net), Net)
    assert_type(fxtie.transform(nn.Linear(4, 4), RULE), nn.Linear)


def compiled_models(net: Net, options: dict[str, Any], compile: bool) -> None:
    """torch.compile wraps a model in a module of another class."""
    assert_type(fxtie.transform(net, RULE, compile=True), nn.Module)
    assert_type(fxtie.transform(net, RULE, compile=options), nn.Module)
    assert_type(fxtie.transform(net, RULE, compile=compile), nn.Module)
    assert_type(fxtie.transform(net, RULE, compile=False), Net)


def programs(program: ExportedProgram) -> None:
    """A program gives a program."""
    tied = fxtie.transform(program, RULE)
    assert_type(tied, ExportedProgram)
    assert_type(fxtie.freeze(tied), ExportedProgram)


def refused(program: ExportedProgram) -> None:
    """Errors that are expected: both checkers report an ignore comment that hides none."""
    fxtie.transform(program, RULE, compile=True)  # type: ignore[call-overload]
    fxtie.transform(program, RULE, recompute=True)  # type: ignore[call-overload]
    fxtie.load("tied.safetensors", program)  # type: ignore[type-var]
    fxtie.materialize(program)  # type: ignore[type-var]
    fxtie.freeze(RULE)  # type: ignore[call-overload]
