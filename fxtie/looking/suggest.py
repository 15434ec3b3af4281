"""A model without rules -> rules that it could have.

In: a model. Out: `Suggestions`: which layers could be derived from others, what each saves, how
alike the weights are now, and the rules that say so. `candidates.py` finds the layers,
`spelling.py` writes the rules.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, overload

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from fxtie.errors import FxtieError
from fxtie.looking.candidates import Candidate, Layer, find_candidates
from fxtie.looking.spelling import Speller, pattern_of
from fxtie.planning.names import Names
from fxtie.rules.rule import Rule
from fxtie.rules.writer import write_rules
from fxtie.shown import Printed
from fxtie.transforms import FitsTarget, Transform, same
from fxtie.words import count, parameter_change


@dataclass(frozen=True)
class Closeness:
    """How far weights are from what they would be derived as.

    Attributes:
        distance: `|derived - own| / |own|`.
        scale: the factor of the derived weights that brings them closest.
        scaled_distance: the distance that is left then: 1 for unrelated weights.
    """

    distance: float
    scale: float
    scaled_distance: float


@dataclass(frozen=True)
class Suggestion:
    """Layers that could be derived alike.

    Attributes:
        kind: "repeated": as the same layer of the first block. "alike": as another layer of the
            same type and shape, of the same block if there are blocks. "transposed": as a layer
            that maps the other way, such as an encoder's. "tiled": as copies of a smaller layer.
        rules: what says so; for `transform`, `plan` and the others.
        targets: names of the layers that would be derived.
        sources: names of the layers that they would be derived from, one for each.
        block: the repeated part of the model that the targets belong to, as a pattern; empty if
            they belong to none.
        saved: number of parameters that go.
        chosen: whether it is one of those that go together, all at once.
        closeness: how alike the weights are; None if they have no values (on the meta device).
    """

    kind: str
    rules: tuple[Rule, ...]
    targets: tuple[str, ...] = field(repr=False)
    sources: tuple[str, ...] = field(repr=False)
    block: str
    saved: int
    chosen: bool
    closeness: Closeness | None

    def to_dict(self) -> dict[str, Any]:
        """Plain data, ready for JSON. `rules` are as in rule files."""
        closeness = None
        if self.closeness is not None:
            values = vars(self.closeness).items()
            closeness = {key: value if math.isfinite(value) else None for key, value in values}
        return {
            "kind": self.kind,
            "block": self.block,
            "targets": list(self.targets),
            "sources": list(self.sources),
            "saved": self.saved,
            "chosen": self.chosen,
            "closeness": closeness,
            "rules": write_rules(self.rules)["rule"],
        }


@dataclass(frozen=True)
class Suggestions(Printed, Sequence[Suggestion]):
    """What could be tied, what saves most first. `print` shows a table, block by block.

    Attributes:
        groups: every suggestion. One layer may be a target of several: the one that saves most of
            these is chosen, tiles only if there is no other.
        parameters: number of parameters of the model, each counted once.
    """

    groups: tuple[Suggestion, ...]
    parameters: int

    @property
    def rules(self) -> list[Rule]:
        """The rules of all that go together, ready for `transform`."""
        return [rule for group in self if group.chosen for rule in group.rules]

    @property
    def saved(self) -> int:
        """Number of parameters that go with `rules`."""
        return sum(group.saved for group in self if group.chosen)

    @overload
    def __getitem__(self, index: int) -> Suggestion: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[Suggestion, ...]: ...
    def __getitem__(self, index: int | slice) -> Suggestion | tuple[Suggestion, ...]:
        return self.groups[index]

    def __len__(self) -> int:
        return len(self.groups)

    def summary(self) -> str:
        """What all of it would save, as one line."""
        if not self.groups:
            return "no two layers go together: nothing to suggest"
        change = parameter_change(self.parameters, self.parameters - self.saved)
        return f"{count(len(self.rules), 'rule')} together: {change}"

    def to_dict(self) -> dict[str, Any]:
        """Plain data, ready for JSON.

        Keys: `parameters` (`before`, and `after` all that go together), `suggestions` (a list with
        the attributes of each; `rules` are as in rule files).
        """
        return {
            "parameters": {"before": self.parameters, "after": self.parameters - self.saved},
            "suggestions": [group.to_dict() for group in self],
        }


def suggest(model: nn.Module) -> Suggestions:
    """Which layers of a model could be tied, and what that would save.

    Layers go together if they are the same layer of repeated blocks, if they have the same type and
    shape within one block, if one maps back what the other maps (transposed weights), or if the
    shape of one divides that of another of such a name (tiles).

    Args:
        model: any module. It is only looked at. On the meta device nothing tells how alike the
            weights are.

    Returns:
        The suggestions, and the rules for all that go together. What is good for the model's
        accuracy is not known here: choose, transform, and train or `fit`.

    Raises:
        FxtieError: if it is no module.

    Example:
        >>> import fxtie
        >>> block = lambda: nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 8))
        >>> net = nn.Sequential(block(), block(), block()).to("meta")
        >>> found = fxtie.suggest(net)
        >>> print(found)
        layers      n  as    kind          saved
        --------  ---  ----  ----------  -------
        *
        .2          3  .0    transposed      768
        .0          2  0     repeated        576
        (.2)        2  0     repeated        528
        (layers): left out of the rules, since another row has them
        2 rules together: parameters 1.7k -> 312 (18.8%)
        >>> found[0].rules
        (Rule('*.2', '{0}.0', weight=transpose(), bias=None),)
        >>> tied = fxtie.transform(net, found.rules)
    """
    model = getattr(model, "_orig_mod", model)
    if not isinstance(model, nn.Module):
        raise FxtieError(f"The model is a torch.nn.Module, not {type(model).__name__}: {model!r}.")
    names = Names(model)
    speller = Speller(names)
    # No choice of candidates makes a cycle: sources are earlier layers or, for tiles, smaller ones.
    taken: set[Layer] = set()
    groups = []
    for candidate in sorted(find_candidates(names), key=_preference):
        targets = {target for target, _ in candidate.links}
        groups.append(_suggestion(candidate, speller, taken.isdisjoint(targets)))
        if groups[-1].chosen:
            taken |= targets
    groups.sort(key=lambda group: -group.saved)
    parameters = sum(p.numel() for p in model.parameters() if not is_lazy(p))
    return Suggestions(tuple(groups), parameters)


def _preference(candidate: Candidate) -> tuple[bool, int]:
    """What saves most comes first; tiles last, since they leave a layer the least of its own."""
    return candidate.kind == "tiled", -candidate.saved


def _suggestion(candidate: Candidate, speller: Speller, chosen: bool) -> Suggestion:
    links = [(target.name, source.name) for target, source in candidate.links]
    return Suggestion(
        kind=candidate.kind,
        rules=speller.rules(links, _arguments(candidate)),
        targets=tuple(target for target, _ in links),
        sources=tuple(source for _, source in links),
        block=_block(candidate),
        saved=candidate.saved,
        chosen=chosen,
        closeness=_closeness(candidate),
    )


def _block(candidate: Candidate) -> str:
    """The repeated part of the model that the targets are in, as a pattern."""
    first = candidate.links[0][0]
    peers = [layer.name for link in candidate.links for layer in link if layer.role == first.role]
    pattern = pattern_of(peers).split(".")[: len(first.block.split("."))] if first.block else []
    return ".".join(pattern) if any("*" in part for part in pattern) else ""


def _arguments(candidate: Candidate) -> dict[str, Transform | None]:
    """The transforms as arguments of a rule: `same` is the default for weights and biases."""
    attrs = dict.fromkeys(attr for target, _ in candidate.links for attr in target.tensors)
    chosen = {attr: candidate.transforms.get(attr) for attr in attrs}
    default = {attr: same if attr in ("weight", "bias") else None for attr in chosen}
    return {attr: f for attr, f in chosen.items() if f is not default[attr]}


@torch.no_grad()
def _closeness(candidate: Candidate) -> Closeness | None:
    """Over all tensors of all links together."""
    sums = []
    for target, source in candidate.links:
        for attr, transform in candidate.transforms.items():
            own, read = target.tensors[attr], source.tensors[attr]
            if own.is_meta or read.is_meta:
                return None
            if isinstance(transform, FitsTarget):
                transform = transform.for_target(own)
            wide = torch.float64 if own.dtype == torch.float64 else torch.float32
            derived, value = transform(read).to(wide).flatten(), own.to(wide).flatten()
            gap = derived - value
            pairs = (gap, gap), (derived, derived), (value, value), (derived, value)
            sums.append(torch.stack([a.dot(b) for a, b in pairs]))
    # One transfer for all of them, since a device answers late.
    distance, square, own_square, product = torch.stack(sums).double().sum(0).tolist()
    scale = _ratio(product, square)
    left = max(0.0, own_square - product * scale) if square else own_square
    return Closeness(
        math.sqrt(_ratio(distance, own_square)), scale, math.sqrt(_ratio(left, own_square))
    )


def _ratio(a: float, b: float) -> float:
    return a / b if b else (math.nan if a == 0 else math.inf)
