"""What `suggest` returns: groups of ties that a model could have, and their table."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, overload

from fxtie.looking.grouping import grouped
from fxtie.looking.spelling import pattern_of
from fxtie.rules.rule import Rule, Tie
from fxtie.rules.writer import write_rules
from fxtie.shown import Printed
from fxtie.words import count, human_count, list_names, parameter_change

_LEAST_SHOWN = 0.001  # of all parameters: what saves less gets no row
_MOST_SHOWN = 20
_MOST_KNOWN = 3
_UNRELATED = 0.95  # of the norm is left at the best scale: less than a tenth of the square goes
_HEADERS = ("layers", "n", "as", "kind", "saved", "distance", "best scale")


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

    @property
    def is_unrelated(self) -> bool:
        """Whether no multiple of the derived weights comes near: 95% of the norm is left."""
        return self.scaled_distance > _UNRELATED


@dataclass(frozen=True, repr=False)
class Suggestion:
    """Layers, or whole blocks, that could be derived alike.

    Attributes:
        kind: without a scheme "repeated": as the same layer of the first block. "alike": as
            another layer of the same type, shape and name but for its number. "transposed": as a
            layer that maps the other way, such as an encoder's. "tiled": as copies of a smaller
            layer. With a scheme its name.
        rules: what says so; for `transform`, `plan` and the others.
        targets: names of the modules that would be derived.
        sources: names of the modules that they would be derived from, one for each.
        block: the repeated part of the model that the targets belong to, as a pattern; empty if
            they belong to none.
        saved: number of parameters that go.
        chosen: whether it is one of those that go together, all at once.
        closeness: how alike the weights are; None if they have no values (on the meta device).
    """

    kind: str
    rules: tuple[Rule, ...]
    targets: tuple[str, ...]
    sources: tuple[str, ...]
    block: str
    saved: int
    chosen: bool
    closeness: Closeness | None

    def __repr__(self) -> str:
        saved = human_count(self.saved)
        return f"<Suggestion: {self.kind}, {list_names(self.targets)}, saves {saved}>"

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


@dataclass(frozen=True, repr=False)
class Suggestions(Printed, Sequence[Suggestion]):
    """What could be tied, largest saving first. Goes into `plan` and `transform` as it is.

    `print` shows a table, block by block, and so does a notebook.

    Attributes:
        groups: every suggestion. One layer may be a target of several: the one that saves most of
            these is chosen, tiles only if there is no other.
        parameters: number of parameters of the model, each counted once.
        known: ties that the model has already, which nothing here doubles: Parameters that several
            modules hold, and what its library keeps the same (`tie_word_embeddings` of
            transformers).
    """

    groups: tuple[Suggestion, ...]
    parameters: int
    known: tuple[Tie, ...] = ()

    @property
    def rules(self) -> list[Rule]:
        """The rules of all that go together."""
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

    def table(self) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
        """Headers, and rows of text, the blocks that save most first.

        A row of one cell names the block of the rows below it.
        """
        by_block = grouped(self._shown, lambda group: group.block)
        rows: list[tuple[str, ...]] = []
        for block, groups in by_block.items():
            if len(by_block) > 1 or block:
                rows.append((block or "other layers",))
            rows += [_row(group, self._with_values) for group in groups]
        return _HEADERS if self._with_values else _HEADERS[:-2], rows

    def notes(self) -> Iterator[str]:
        """What the rows leave out, and what their marks mean."""
        if left_out := self[len(self._shown) :]:
            saved = sum(group.saved for group in left_out)
            yield f"… {len(left_out)} more, which save {human_count(saved)} together"
        if not all(group.chosen for group in self._shown):
            yield "(layers): left out of the rules, since another row has them"
        if self._shown and self._with_values:
            yield "distance: |derived - own| / |own|; (...): at the best scale"
        if self.known:
            pairs = [f"{tie.target} = {tie.sources[0]}" for tie in self.known[:_MOST_KNOWN]]
            more = len(self.known) - len(pairs)
            yield f"tied already: {', '.join(pairs)}{f', … {more} more' if more else ''}"

    @property
    def _shown(self) -> tuple[Suggestion, ...]:
        shown = [g for g in self if g.saved >= _LEAST_SHOWN * self.parameters]
        return tuple(shown[:_MOST_SHOWN])

    @property
    def _with_values(self) -> bool:
        return all(group.closeness is not None for group in self._shown)

    def to_dict(self) -> dict[str, Any]:
        """Plain data, ready for JSON.

        Keys: `parameters` (`before`, and `after` all that go together), `suggestions` (a list with
        the attributes of each; `rules` are as in rule files), `known` (a list of targets, each with
        its source).
        """
        return {
            "parameters": {"before": self.parameters, "after": self.parameters - self.saved},
            "known": [[tie.target, *tie.sources] for tie in self.known],
            "suggestions": [group.to_dict() for group in self],
        }


def _span(names: Sequence[str]) -> str:
    """The first and the last name: how many there are stands elsewhere."""
    return names[0] if len(set(names)) == 1 else f"{names[0]} … {names[-1]}"


def _inside(block: str, name: str) -> str:
    """`.mlp.fc1`: a name as seen from its block; empty if it is not in there."""
    return name.removeprefix(block) if block and name.startswith(f"{block}.") else ""


def _row(group: Suggestion, with_values: bool) -> tuple[str, ...]:
    targets = [pattern_of(group.targets)] if group.block else group.targets
    title = _span([_inside(group.block, name) or name for name in targets])
    numbers = itertools.count()
    same_block = re.sub(r"\*", lambda _: f"{{{next(numbers)}}}", group.block)

    def source(name: str) -> str:
        if title.startswith(".") and name.endswith(title):
            return name.removesuffix(title)  # the same layer of another block
        return _inside(same_block, name) or name

    row = (
        title if group.chosen else f"({title})",
        str(len(group.targets)),
        _span([source(s) for rule in group.rules for s in rule.names[:1]]),
        group.kind,
        human_count(group.saved),
    )
    near = group.closeness
    return row if not with_values or near is None else (*row, *_values(near))


def _values(near: Closeness) -> tuple[str, str]:
    best = f"{round(near.scale, 2) + 0.0:.2f} ({_percent(near.scaled_distance)})"
    if near.is_unrelated:
        best = "unrelated"
    return _percent(near.distance), best if math.isfinite(near.scale) else "-"


def _percent(ratio: float) -> str:
    return f"{ratio:.1%}" if math.isfinite(ratio) else "-"
