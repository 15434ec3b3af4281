"""A `Plan` -> what the tie picture shows, as plain data."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from torch import nn

from fxtie.looking.grouping import grouped
from fxtie.planning.layers import Layer
from fxtie.planning.plan import Plan
from fxtie.planning.steps import Step
from fxtie.rules.free import Free
from fxtie.transforms.parts import module_of
from fxtie.transforms.protocol import formula
from fxtie.words import join

SHARED = "shared in the model"


@dataclass(frozen=True)
class DrawnTie:
    """One derived tensor."""

    target: str
    sources: tuple[str, ...]  # the names of what it is derived from
    transform: str  # as tables show it; `SHARED` for a Parameter that the model itself has twice
    shape: tuple[int, ...]
    stored: bool = False  # whether it keeps a stored value, which is one of its sources
    learned: int = 0  # the number of parameters that its transform brings
    saved: int = 0  # the number of parameters that the tied model has less of by it

    @property
    def owner(self) -> str:
        """The layer of the target."""
        return self.target.rpartition(".")[0]

    @property
    def attr(self) -> str:
        """The target's name in its layer."""
        return self.target.rpartition(".")[2]

    @property
    def kind(self) -> str:
        """The transform without its arguments and without the number of a part."""
        return re.split(r"[(\[]", self.transform)[0]

    @property
    def formula(self) -> str:
        """What it is derived as: `square(conv_1.weight)`."""
        return formula("same" if self.transform == SHARED else self.transform, self.sources)


@dataclass(frozen=True)
class Scene:
    """What there is to draw."""

    layers: tuple[Layer, ...]  # those of the model; free tensors stand ahead of them
    ties: dict[str, list[DrawnTie]]  # by the layer of their target
    parameters: tuple[int, int]  # number of parameters before and after
    summary: str  # the totals, as one line
    # Of the layers: "as defined" in the model's code, or "as called" by its graphs.
    order: str = "as defined"


def scene_of(plan: Plan, order: str = "as defined") -> Scene:
    """The scene of a plan."""
    free = (
        Layer(f"ties.{name}", type(owner).__name__, _shapes(owner))
        for name, owner in plan.modules.items()
        if isinstance(owner, Free)
    )
    canonical = {alias: layer.name for layer in plan.layers for alias in layer.aliases}
    ties = [*_shared(plan.layers), *_drawn(plan.steps, canonical)]
    after = {tie.target: tie for tie in ties}  # a tensor that is tied again is what it is now
    by_owner = grouped(sorted(after.values(), key=lambda tie: tie.attr), lambda tie: tie.owner)
    parameters = plan.parameters, plan.parameters_after
    return Scene((*free, *plan.layers), by_owner, parameters, plan.summary(), order)


def _shapes(module: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(p.shape) for name, p in module.named_parameters()}


def _shared(layers: tuple[Layer, ...]) -> Iterator[DrawnTie]:
    """What the model itself shares between layers, as if it were tied."""
    for layer in layers:
        for attr, source in layer.shared.items():
            yield DrawnTie(join(layer.name, attr), (source,), SHARED, layer.shapes[attr])


def _drawn(steps: tuple[Step, ...], canonical: dict[str, str]) -> Iterator[DrawnTie]:
    seen: set[nn.Module] = set()

    def name_of(tensor: str) -> str:
        owner, dot, attr = tensor.rpartition(".")
        return canonical.get(owner, owner) + dot + attr

    for step in steps:
        module, learned = module_of(step.tie.transform), 0
        if module is not None and module not in seen:
            seen.add(module)
            learned = sum(p.numel() for p in module.parameters())
        yield DrawnTie(
            name_of(step.tie.target),
            tuple(map(name_of, step.tie.sources)),
            step.transform_name,
            step.spec.shape,
            step.tie.is_self_derived,
            learned,
            step.saved,
        )
