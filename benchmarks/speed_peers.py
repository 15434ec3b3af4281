"""The ways to tie a model, side by side: by hand, with torch's own tools, with fxtie.

In: a `Workload`. Out: `Contender`s, each on a copy of the same model. Called by
`speed_figures.py`.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from speed_models import Workload
from torch import nn
from torch.nn.utils import parametrize

import fxtie

Block = Callable[[], contextlib.AbstractContextManager[Any]]


@dataclass(frozen=True)
class Contender:
    """A model, and the block in which each of its steps or calls runs."""

    model: nn.Module
    block: Block = contextlib.nullcontext

    def compiled(self, **options: Any) -> Contender:
        return replace(self, model=torch.compile(self.model, **options))

    def inference(self, x: torch.Tensor) -> Callable[[], torch.Tensor]:
        model = self.model.eval()

        def infer() -> torch.Tensor:
            with torch.no_grad(), self.block():
                return model(x)

        return infer


class TrainStep:
    """Forward, backward and Adam on the same input. Between steps there are no gradients."""

    def __init__(self, contender: Contender, x: torch.Tensor, lr: float = 1e-3) -> None:
        self.model, self.block, self.x = contender.model.train(), contender.block, x
        trained = (p for p in self.model.parameters() if p.requires_grad)
        self.optimizer = torch.optim.Adam(trained, lr)

    def __call__(self) -> None:
        with self.block():
            self.model(self.x).sum().backward()
        self.optimizer.step()
        self.optimizer.zero_grad()

    def tensors(self) -> Iterator[torch.Tensor]:
        """What lives from step to step: parameters, buffers, the optimizer's states."""
        yield from self.model.parameters()
        yield from self.model.buffers()
        for state in self.optimizer.state.values():
            yield from (value for value in state.values() if isinstance(value, torch.Tensor))


def contenders(workload: Workload, *names: str) -> dict[str, Contender]:
    """The named ways to tie the workload's model, or all of them, and the untied model first."""
    ways: dict[str, Callable[[], Contender]] = {
        "untied": lambda: Contender(copy.deepcopy(workload.model)),
        "hand-linked": lambda: Contender(hand_linked(workload)),
        "parametrize": lambda: Contender(parametrized(workload)),
        "parametrize, cached": lambda: Contender(parametrized(workload), parametrize.cached),
        "functional_call": lambda: Contender(Functional(workload)),
        "fxtie": lambda: Contender(tied(workload)),
        "recompute": lambda: Contender(tied(workload, recompute=True)),
    }
    wanted = names or [name for name in ways if name != "recompute"]  # it costs time, on request
    return {name: ways[name]() for name in wanted}


def derivations(workload: Workload) -> Callable[[], None]:
    """What a tied model computes beside the untied one, and nothing else: each weight once."""
    weights: dict[str, torch.Tensor] = {}
    unlike = {(link.source, link.transform): link for link in workload.links}
    for link in unlike.values():
        weights[link.source] = workload.model.get_submodule(link.source).weight.detach()

    def derive() -> None:
        values = dict(weights)
        for link in unlike.values():
            values[link.target] = link.transform(values[link.source])

    return derive


def tied(workload: Workload, **options: Any) -> nn.Module:
    return fxtie.transform(copy.deepcopy(workload.model), workload.rules, **options)


# -- by hand ------------------------------------------------------------------------------------


class Linked(nn.Module):
    """A layer without tensors of its own, as one writes it by hand."""

    def __init__(self, layer: Any, source: nn.Module, transform: Callable[..., Any]) -> None:
        super().__init__()
        self.source = (source,)  # in a tuple, so that it isn't registered here too
        self.transform = transform

    @property
    def weight(self) -> Any:
        return self.transform(self.source[0].weight)

    @property
    def bias(self) -> Any:
        return self.source[0].bias


class LinkedLinear(Linked):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.linear(x, self.weight, self.bias)


class LinkedConv2d(Linked):
    def __init__(self, layer: nn.Conv2d, source: nn.Module, transform: Callable[..., Any]) -> None:
        super().__init__(layer, source, transform)
        self.stride, self.padding = layer.stride, layer.padding

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.conv2d(x, self.weight, self.bias, self.stride, self.padding)


def hand_linked(workload: Workload) -> nn.Module:
    model = copy.deepcopy(workload.model)
    for link in workload.links:
        layer = model.get_submodule(link.target)
        linked = LinkedConv2d if isinstance(layer, nn.Conv2d) else LinkedLinear
        source = model.get_submodule(link.source)
        model.set_submodule(link.target, linked(layer, source, link.transform))
    return model


# -- torch.nn.utils.parametrize -----------------------------------------------------------------


class Reads(nn.Module):
    """A parametrization that ignores its own tensor and reads another layer's."""

    def __init__(self, source: nn.Module, attr: str, transform: Callable[..., Any]) -> None:
        super().__init__()
        self.source, self.attr, self.transform = (source,), attr, transform

    def forward(self, _: torch.Tensor) -> Any:
        return self.transform(getattr(self.source[0], self.attr))


def parametrized(workload: Workload) -> nn.Module:
    model = copy.deepcopy(workload.model)
    for link in workload.links:
        layer, source = model.get_submodule(link.target), model.get_submodule(link.source)
        for attr, transform in (("weight", link.transform), ("bias", fxtie.same)):
            if getattr(layer, attr) is None:
                continue
            parametrize.register_parametrization(layer, attr, Reads(source, attr, transform))
            original = layer.parametrizations[attr].original
            original.requires_grad_(False)
            original.data = original.new_empty(0)  # parametrize keeps what it replaces
    return model


# -- torch.func.functional_call -----------------------------------------------------------------


class Functional(nn.Module):
    """Derives all tensors, then calls the model with them."""

    def __init__(self, workload: Workload) -> None:
        super().__init__()
        self.model = copy.deepcopy(workload.model)
        self.stored = dict(self.model.named_parameters())
        self.derivations: list[tuple[str, str, Callable[..., Any]]] = []
        for link in workload.links:
            for attr, transform in (("weight", link.transform), ("bias", fxtie.same)):
                target = f"{link.target}.{attr}"
                if target in self.stored:
                    self.stored.pop(target).requires_grad_(False)
                    self.derivations.append((target, f"{link.source}.{attr}", transform))

    def forward(self, x: torch.Tensor) -> Any:
        values: dict[str, torch.Tensor] = {}
        for target, source, transform in self.derivations:
            given = values[source] if source in values else self.stored[source]
            values[target] = transform(given)
        return torch.func.functional_call(self.model, values, (x,), tie_weights=False)
