"""`fit` as a problem of numbers: variables in double precision, and how far off ties are.

Its components are ties that have variables in common, each to be solved by itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from fxtie.planning.names import Names
from fxtie.planning.plan import Plan
from fxtie.rules.rule import Tie
from fxtie.tied.tied_module import relative_distance
from fxtie.transforms.parts import Part, module_of


@dataclass(frozen=True)
class Component:
    """Ties that have variables in common."""

    # In the order in which they can be computed, with those that they read through.
    ties: tuple[Tie, ...]
    # Of each tie the variables that it depends on, also through other ties.
    reads: tuple[frozenset[int], ...]
    variables: frozenset[int]


class Problem:
    """Variables in float64, and how far what is derived from them is from the trained values."""

    def __init__(self, model: nn.Module, plan: Plan) -> None:
        self.plan = plan
        self.names = Names(model)
        for name, module in plan.modules.items():
            self.names.add_module(f"ties.{name}", module)
        targets = {self.names.get(tie.target).key for tie in plan.ties if not tie.is_self_derived}
        # The value of each target.
        self.trained = {
            tie.target: numbers(self.names.get(tie.target).tensor.detach()) for tie in plan.ties
        }
        # What may move, by identity: stored sources, and the parameters of learnable transforms.
        self.values: dict[int, tuple[nn.Parameter, torch.Tensor]] = {}  # each and its variable
        self.own: dict[int, torch.Tensor] = {}  # trained values of layers that are sources, too
        self.sources: dict[int, str] = {}  # names of those that are sources, in the plan's order
        self.held: set[int] = set()  # those that may not move any more
        self.frozen: list[str] = []  # names of what does not require gradients
        for tie in plan.ties:
            for name in tie.sources:
                slot = self.names.get(name)
                parameter = slot.owner._parameters.get(slot.attr)
                if slot.key in targets or parameter is None or id(parameter) in self.values:
                    continue
                is_own = not (name.startswith("ties.") or name == tie.target)
                if self.add(name, parameter):
                    self.sources[id(parameter)] = name
                    if is_own:
                        self.own[id(parameter)] = _wide(parameter.detach()).clone()
        for prefix, module in plan.modules.items():
            for name, parameter in module.named_parameters():
                self.add(f"ties.{prefix}.{name}", parameter)

    def add(self, name: str, parameter: nn.Parameter) -> bool:
        if not (parameter.is_floating_point() or parameter.is_complex()):
            return False
        if not parameter.requires_grad:
            self.frozen.append(name)
            return False
        if id(parameter) not in self.values:
            value = _wide(parameter.detach()).clone().requires_grad_()
            self.values[id(parameter)] = (parameter, value)
        return True

    def nothing_to_fit(self) -> str:
        if not self.frozen:
            return "There is nothing to fit: no source is a floating-point or complex parameter."
        names = list(dict.fromkeys(self.frozen))
        more = f" and {len(names) - 5} more" if len(names) > 5 else ""
        return (
            f"There is nothing to fit: all sources are frozen (requires_grad=False): "
            f"{', '.join(map(repr, names[:5]))}{more}. Call requires_grad_() on those that may "
            f"change."
        )

    def value_of(self, tensor: torch.Tensor) -> torch.Tensor:
        """The variable that stands for a tensor, or its value if it doesn't move."""
        if id(tensor) in self.values:
            return self.values[id(tensor)][1]
        return _wide(tensor.detach())

    def derived(
        self, ties: Iterable[Tie]
    ) -> Iterator[tuple[Tie, list[torch.Tensor], torch.Tensor]]:
        """Each tie, its sources and its value, in order."""
        found: dict[tuple[int, str], torch.Tensor] = {}
        for tie in ties:
            sources = [self.read(name, found, name == tie.target) for name in tie.sources]
            value = self.apply(tie.transform, sources)
            found[self.names.get(tie.target).key] = value
            yield tie, sources, value

    def read(self, name: str, found: Mapping[Any, torch.Tensor], own: bool) -> torch.Tensor:
        slot = self.names.get(name)
        if slot.key in found and not own:
            return found[slot.key]
        return self.value_of(slot.tensor)

    def apply(self, transform: Callable[..., Any], sources: list[torch.Tensor]) -> torch.Tensor:
        module = module_of(transform)
        if module is None:
            return transform(*sources)  # type: ignore[no-any-return]
        tensors = (*module.named_parameters(), *module.named_buffers())
        values = {name: self.value_of(tensor) for name, tensor in tensors}
        result: Any = torch.func.functional_call(module, values, tuple(sources))
        return result[transform.index] if isinstance(transform, Part) else result  # type: ignore[no-any-return]

    def components(self) -> list[Component]:
        """The ties that have variables, by what they have in common."""
        reads: list[frozenset[int]] = []
        upstream: list[set[int]] = []  # of each tie the positions of those that it reads through
        position: dict[tuple[int, str], int] = {}
        for i, tie in enumerate(self.plan.ties):
            keys = [self.names.get(name).key for name in tie.sources if name != tie.target]
            through = {position[key] for key in keys if key in position}
            module = module_of(tie.transform)
            found = {id(self.names.get(name).tensor) for name in tie.sources}
            found |= set(map(id, () if module is None else module.parameters()))
            moving = frozenset(found & self.values.keys() - self.held)
            reads.append(moving.union(*(reads[j] for j in through)))
            upstream.append(through.union(*(upstream[j] for j in through)))
            position[self.names.get(tie.target).key] = i
        found_components = []
        for group in _connected(reads):
            indices = sorted(set(group).union(*(upstream[i] for i in group)))
            own = tuple(reads[i] for i in indices)
            ties = tuple(self.plan.ties[i] for i in indices)
            found_components.append(Component(ties, own, frozenset().union(*own)))
        return found_components

    def loss(self, component: Component) -> torch.Tensor:
        """The sum of squares of what is off."""
        terms = [
            _square(numbers(value) - self.trained[tie.target])
            for tie, _, value in self.derived(component.ties)
        ]
        terms += [
            _square(self.values[key][1] - self.own[key])
            for key in component.variables & self.own.keys()
        ]
        return torch.stack(terms).sum()

    @torch.no_grad()
    def errors(self) -> dict[str, float]:
        return {
            tie.target: relative_distance(value, self.trained[tie.target])
            for tie, _, value in self.derived(self.plan.ties)
        }

    @torch.no_grad()
    def write_back(self) -> None:
        for parameter, value in self.values.values():
            parameter.copy_(value)


def _wide(tensor: torch.Tensor) -> torch.Tensor:
    """In double precision; an index or a mask stays what it is."""
    if tensor.is_complex():
        return tensor.to(torch.complex128)
    return tensor.double() if tensor.is_floating_point() else tensor


def numbers(tensor: torch.Tensor) -> torch.Tensor:
    """In double precision, whatever it is."""
    return _wide(tensor) if tensor.is_complex() else tensor.double()


def _square(difference: torch.Tensor) -> torch.Tensor:
    return (difference * difference.conj()).real.sum()


def _connected(reads: Sequence[frozenset[int]]) -> list[list[int]]:
    """The positions of sets that have elements in common, by chains of such sets."""
    groups: list[tuple[set[int], list[int]]] = []
    for i, found in enumerate(reads):
        if found:
            touched = [group for group in groups if not group[0].isdisjoint(found)]
            groups = [group for group in groups if group[0].isdisjoint(found)]
            keys = set(found).union(*(keys for keys, _ in touched))
            groups.append((keys, sorted([i, *(j for _, group in touched for j in group)])))
    return [indices for _, indices in groups]
