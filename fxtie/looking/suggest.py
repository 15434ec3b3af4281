"""A model -> `Suggestions`: rules that it could have, and what each saves.

`candidates.py` finds layers, `schemes.py` whole blocks, `spelling.py` writes the rules.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from fxtie.errors import FxtieError
from fxtie.looking.candidates import Candidate, Layer, find_candidates
from fxtie.looking.grouping import grouped
from fxtie.looking.schemes import scheme_candidates
from fxtie.looking.spelling import Speller, pattern_of
from fxtie.looking.suggestions import Closeness, Suggestion, Suggestions
from fxtie.planning.names import Names
from fxtie.planning.own_ties import known_ties
from fxtie.rules.rule import Rule
from fxtie.transforms import FitsTarget, Transform, same
from fxtie.words import human_count, natural_key


def suggest(
    model: nn.Module, scheme: str | None = None, budget: float | None = None
) -> Suggestions:
    """Which layers of a model could be tied, and what that would save.

    Without a scheme, layers go together if they are the same layer of repeated blocks, if they have
    the same type, shape and name but for its number (`conv_1`, `conv_2`), if one maps back what the
    other maps (heads and embeddings, decoders and encoders), or if the shape of one divides that of
    another of such a name (tiles). Layers with different roles in one block, such as query and key
    or gate and up, never do: their names tell.

    Args:
        model: any module. It is only looked at. On the meta device nothing tells how alike the
            weights are.
        scheme: a way of sharing from the literature, as one rule where one rule can say it:

            * `"repeat"`: every repeated block is the first (ALBERT, arXiv:1909.11942).
            * `"adjacent"`: every second block is the one before (MobileLLM, arXiv:2402.14905).
            * `"cycle 3"`: block `i` is block `i % 3` (Relaxed Recursive Transformers,
              arXiv:2410.20672).
            * `"embeddings"`: the head's weight is the input embedding's (arXiv:1608.05859).
            * `"autoencoder"`: the decoder's weights are the encoder's, transposed for Linear and as
              they are for Conv to ConvTranspose.
        budget: the most parameters that the tied model may have: a number, or a fraction of the
            model's (0.5). Ties are picked until it fits: the closest weights first, or what saves
            most where there are no values or all weights are unrelated, as before training.

    Returns:
        The suggestions, and the rules for all that go together. It goes into `plan` and `transform`
        as it is. What is good for the model's accuracy is not known here: choose, transform, and
        train or `fit`.

    Raises:
        FxtieError: if it is no module, if the model has nothing that the scheme is about, or if no
            choice of ties meets the budget.

    Example:
        >>> import fxtie
        >>> block = lambda: nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 8))
        >>> net = nn.Sequential(block(), block(), block()).to("meta")
        >>> print(fxtie.suggest(net))
        layers      n  as    kind        saved
        --------  ---  ----  --------  -------
        *
        .0          2  0     repeated      576
        .2          2  0     repeated      528
        2 rules together: parameters 1.7k -> 552 (33.3%)
        >>> found = fxtie.suggest(net, "repeat")
        >>> found.rules
        [Rule('*', '0')]
        >>> tied = fxtie.transform(net, found)
    """
    model = getattr(model, "_orig_mod", model)
    if not isinstance(model, nn.Module):
        raise FxtieError(f"The model is a torch.nn.Module, not {type(model).__name__}: {model!r}.")
    parameters = sum(p.numel() for p in model.parameters() if not is_lazy(p))
    limit = None if budget is None else _limit(budget, parameters)
    names = Names(model)
    speller = Speller(names)
    if scheme is None:
        candidates = find_candidates(names)
    else:
        candidates = scheme_candidates(names, speller, scheme)
    if limit is not None:
        candidates = _within(limit, candidates, parameters)
    # No choice of candidates makes a cycle: sources are earlier layers or, for tiles, smaller ones.
    taken: set[Layer] = set()
    groups = []
    for candidate in sorted(candidates, key=_preference):
        targets = {target for target, _ in candidate.links}
        groups.append(_suggestion(candidate, speller, taken.isdisjoint(targets)))
        if groups[-1].chosen:
            taken |= targets
    groups.sort(key=lambda group: -group.saved)
    return Suggestions(tuple(groups), parameters, tuple(known_ties(names)))


# -- budgets --------------------------------------------------------------------------------------


def _limit(budget: float, parameters: int) -> int:
    """A budget as a number of parameters."""
    is_number = isinstance(budget, int | float) and not isinstance(budget, bool)
    if not is_number or not 0 < budget < math.inf:
        raise FxtieError(
            f"budget= is a number of parameters, or a fraction of the model's such as 0.5, not "
            f"{budget!r}."
        )
    limit = int(budget * parameters if isinstance(budget, float) and budget <= 1 else budget)
    if limit >= parameters:
        raise FxtieError(
            f"The model has {human_count(parameters)} parameters: it is within the budget of "
            f"{human_count(limit)} as it is."
        )
    return limit


def _within(limit: int, candidates: Iterable[Candidate], parameters: int) -> list[Candidate]:
    """The candidates with only the links that are picked to get down to a number of parameters.

    Raises:
        FxtieError: if all of them together don't.
    """
    single = [
        replace(candidate, links=(link,)) for candidate in candidates for link in candidate.links
    ]
    nearness = [_closeness(one) for one in single]
    by_distance = all(nearness) and not all(near.is_unrelated for near in nearness if near)

    def order(i: int) -> tuple[bool, float]:
        near = nearness[i]
        if near is None or not by_distance:
            return single[i].kind == "tiled", -single[i].saved
        return False, near.distance if math.isfinite(near.distance) else math.inf

    left = parameters
    picked: dict[Layer, Candidate] = {}
    for i in sorted(range(len(single)), key=order):
        target = single[i].links[0][0]
        if left > limit and target not in picked and single[i].saved:
            picked[target] = single[i]
            left -= single[i].saved
    if left > limit:
        raise FxtieError(
            f"No choice of ties gets down to {human_count(limit)} parameters: all that were found "
            f"leave {human_count(left)} of {human_count(parameters)}."
        )
    return _joined(picked.values())


def _joined(single: Iterable[Candidate]) -> list[Candidate]:
    """Those of one candidate as one again, in the model's order."""

    def key(one: Candidate) -> object:
        target, source = one.links[0]
        return one.kind, one.spelled, target.role, target.form, source.role, source.form

    joined = []
    for group in grouped(single, key).values():
        links = sorted((one.links[0] for one in group), key=lambda link: natural_key(link[0].name))
        joined.append(replace(group[0], links=tuple(links)))
    return joined


# -- suggestions ----------------------------------------------------------------------------------


def _preference(candidate: Candidate) -> tuple[bool, int]:
    """What saves most comes first; tiles last, since they leave a layer the least of its own."""
    return candidate.kind == "tiled", -candidate.saved


def _suggestion(candidate: Candidate, speller: Speller, chosen: bool) -> Suggestion:
    links = [(target.name, source.name) for target, source in candidate.links]
    return Suggestion(
        kind=candidate.kind,
        rules=_rules(candidate, links, speller),
        targets=tuple(target for target, _ in links),
        sources=tuple(source for _, source in links),
        block="" if candidate.spelled else _block(candidate),
        saved=candidate.saved,
        chosen=chosen,
        closeness=_closeness(candidate),
    )


def _rules(
    candidate: Candidate, links: Sequence[tuple[str, str]], speller: Speller
) -> tuple[Rule, ...]:
    if not candidate.is_whole:
        return speller.rules(links, _arguments(candidate))
    rule = None
    if candidate.spelled and len(links) > 1:
        rule = speller.rule(*candidate.spelled, links, most_excluded=len(links))
    return (rule,) if rule else tuple(Rule(target, source) for target, source in links)


def _block(candidate: Candidate) -> str:
    """The repeated part of the model that the targets are in, as a pattern."""
    first = candidate.links[0][0]
    peers = [layer.name for link in candidate.links for layer in link if layer.role == first.role]
    pattern = pattern_of(peers).split(".")[: len(first.block.split("."))] if first.block else []
    return ".".join(pattern) if any("*" in part for part in pattern) else ""


def _arguments(candidate: Candidate) -> dict[str, Transform | None]:
    """The transforms as arguments of a rule, whose default is `same`."""
    attrs = dict.fromkeys(attr for target, _ in candidate.links for attr in target.tensors)
    chosen = {attr: candidate.transforms.get(attr) for attr in attrs}
    return {attr: f for attr, f in chosen.items() if f is not same}


@torch.no_grad()
def _closeness(candidate: Candidate) -> Closeness | None:
    """Over all tensors of all links together; of blocks over matrices and kernels only.

    Norms start at 1 in all blocks: they would make any two blocks look alike.
    """
    sums = []
    for target, source in candidate.links:
        for attr, transform in candidate.transforms.items():
            own, read = target.tensors[attr], source.tensors[attr]
            if candidate.is_whole and own.dim() < 2:
                continue
            if own.is_meta or read.is_meta:
                return None
            if isinstance(transform, FitsTarget):
                transform = transform.for_target(own)
            wide = torch.float64 if own.dtype == torch.float64 else torch.float32
            derived, value = transform(read).to(wide).flatten(), own.to(wide).flatten()
            gap = derived - value
            pairs = (gap, gap), (derived, derived), (value, value), (derived, value)
            sums.append(torch.stack([a.dot(b) for a, b in pairs]))
    if not sums:
        return None
    # One transfer for all of them, since a device answers late.
    distance, square, own_square, product = torch.stack(sums).double().sum(0).tolist()
    scale = _ratio(product, square)
    left = max(0.0, own_square - product * scale) if square else own_square
    return Closeness(
        math.sqrt(_ratio(distance, own_square)), scale, math.sqrt(_ratio(left, own_square))
    )


def _ratio(a: float, b: float) -> float:
    return a / b if b else (math.nan if a == 0 else math.inf)
