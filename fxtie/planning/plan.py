"""Rules + model -> `Plan`: which tensors, from which, in which order; every fault at once.

A plan holds no tensor of the model. Nothing of the model's forward runs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.nn.parameter import is_lazy

from fxtie.errors import PlanError
from fxtie.planning.layers import Layer, layers_of
from fxtie.planning.own_ties import add_own_ties
from fxtie.planning.resolve import Resolver
from fxtie.planning.steps import Planner, Step
from fxtie.rules.rule import Rules, Tie, as_rules
from fxtie.shown import Paged
from fxtie.words import count, list_names, parameter_change


@dataclass(frozen=True, repr=False)
class Plan(Paged):
    """The ordered, checked list of ties for one model. `print` shows it as a table.

    Attributes:
        steps: one per tie; what a tie reads comes before it.
        modules: learnable transforms and banks, by the name under which the tied model registers
            them (below `ties`). Models that are tied by one plan share them.
        parameters: number of parameters of the model before.
        stored: tensors inside of modules that matched which stay stored, and why.
        layers: the model's modules that own parameters, for the picture.
    """

    steps: tuple[Step, ...]
    modules: dict[str, nn.Module] = field(default_factory=dict)
    parameters: int = 0
    stored: Mapping[str, str] = field(default_factory=dict)
    layers: tuple[Layer, ...] = ()

    @property
    def ties(self) -> tuple[Tie, ...]:
        """The ties, in the order in which they can be computed."""
        return tuple(step.tie for step in self.steps)

    @property
    def parameters_after(self) -> int:
        """Number of parameters of the tied model."""
        return self.parameters - sum(step.saved for step in self.steps)

    def summary(self) -> str:
        """The total, as one line."""
        change = parameter_change(self.parameters, self.parameters_after)
        larger = self.parameters_after > self.parameters
        return f"{count(len(self.steps), 'tie')}, {change}{': a larger model' if larger else ''}"

    def table(self) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
        """Headers, and a row of text for each tie."""
        return HEADERS, [row([step]) for step in self.steps]

    def to_dict(self) -> dict[str, Any]:
        """Plain data, ready for JSON.

        Keys: `parameters` (`before`, `after`), `ties` (a list; each has `target`, `sources`,
        `transform`, `shape`, `dtype`, and `saved`, a number of parameters).
        """
        return {
            "parameters": {"before": self.parameters, "after": self.parameters_after},
            "ties": [
                {
                    "target": step.tie.target,
                    "sources": list(step.tie.sources),
                    "transform": step.transform_name,
                    "shape": list(step.spec.shape),
                    "dtype": str(step.spec.dtype).removeprefix("torch."),
                    "saved": step.saved,
                }
                for step in self.steps
            ],
        }


HEADERS = ("target", "sources", "transform", "shape", "saved")


def row(steps: Sequence[Step]) -> tuple[str, ...]:
    """A row of text, below `HEADERS`, for ties that are alike."""
    first = steps[0]
    sources = zip(*(step.tie.sources for step in steps), strict=True)
    return (
        list_names([step.tie.target for step in steps]),
        ", ".join(list_names(list(dict.fromkeys(names))) for names in sources) or "-",
        first.transform_name,
        "x".join(map(str, first.spec.shape)) or "scalar",
        f"{sum(step.saved for step in steps):,}",
    )


def plan(model: nn.Module, rules: Rules) -> Plan:
    """Resolve and check rules against a model, without running it.

    Args:
        model: any module. It is only looked at.
        rules: one `Rule` or `Tie`, or several. A tensor may be the target of one tie only.

    Returns:
        The ties in an order in which each can be computed from what comes before it. A source that
        is itself derived is read as derived.

    Raises:
        PlanError: with every fault of the rule set in one message: names that are not there, a
            rule that matches nothing, two rules for one tensor, a cycle, a shape, dtype or device
            that doesn't fit, a transform that raises, targets with hooks or parametrizations,
            lazy tensors.

    Example:
        >>> import fxtie
        >>> net = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8))
        >>> print(fxtie.plan(net, fxtie.Rule("2", "0", weight=torch.square)))
        target    sources    transform    shape      saved
        --------  ---------  -----------  -------  -------
        2.weight  0.weight   square       8x8           64
        2.bias    0.bias     same         8              8
        2 ties, parameters 144 -> 72 (50.0%)
    """
    if not isinstance(model, nn.Module):
        raise PlanError(f"The model is a torch.nn.Module, not {type(model).__name__}: {model!r}.")
    if "_orig_mod" in model._modules:
        raise PlanError(
            "The model is compiled already. Tie what was compiled (`model._orig_mod`), and compile "
            "the result: fxtie.transform(model, rules, compile=True)."
        )
    if isinstance(model, nn.DataParallel | DistributedDataParallel):
        raise PlanError(
            f"The model is wrapped by {type(model).__name__} already, which would not reduce the "
            f"gradients of the tied one. Tie what it wraps (`model.module`), and wrap the result."
        )
    if isinstance(model, torch.jit.ScriptModule):
        raise PlanError(
            "The model is compiled to TorchScript, whose code can't be changed. Tie the Python "
            "module that it was made of, and use torch.jit.trace on the result."
        )
    return plan_with(model, rules, {})


def plan_with(model: nn.Module, rules: Rules, modules: Mapping[str, nn.Module]) -> Plan:
    """`plan`, with names for learnable transforms and free tensors that have one already."""
    resolver = Resolver(model)
    resolver.modules.update(modules)
    for rule in as_rules(rules):
        resolver.resolve(rule)
    add_own_ties(resolver)
    planner = Planner(resolver)
    planner.raise_faults()
    ordered = planner.order()
    planner.raise_faults()
    with torch.inference_mode(False):  # tensors of that mode tell of no changes
        steps = planner.check(ordered)
    planner.raise_faults()
    parameters = sum(p.numel() for p in model.parameters() if not is_lazy(p))
    derived = {step.tie.target for step in steps}
    stored = {name: why for name, why in resolver.stored.items() if name not in derived}
    return Plan(tuple(steps), resolver.modules, parameters, stored, layers_of(model))
