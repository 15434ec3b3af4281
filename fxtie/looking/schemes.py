"""Schemes of sharing by name -> which blocks or layers of a model are derived from which.

"repeat", "adjacent" and "cycle 3" are about *stacks*: blocks of one parent which differ in their
number only. The others are "embeddings" and "autoencoder".
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import nn
from torch.nn.parameter import is_lazy

from fxtie.errors import FxtieError, closest
from fxtie.looking.candidates import Candidate, Layer, Link, find_layers, leading_back
from fxtie.looking.grouping import grouped
from fxtie.looking.spelling import Speller
from fxtie.planning.names import Names, Slot
from fxtie.tracing.user_class import user_class
from fxtie.transforms import same
from fxtie.words import join, list_names, split_index

_NAMES = ("repeat", "adjacent", "cycle", "embeddings", "autoencoder")
_MOST_TOLD = 6


def scheme_candidates(names: Names, speller: Speller, scheme: str) -> list[Candidate]:
    """What a scheme derives.

    Raises:
        FxtieError: if there is no such scheme, or nothing in the model that it applies to.
    """
    name, length = _parsed(scheme)
    if name == "embeddings":
        return _embeddings(names)
    if name == "autoencoder":
        return _autoencoder(names)
    stacks = find_stacks(names)
    if not stacks:
        raise FxtieError(
            f"The scheme {scheme!r} looks for repeated blocks: modules of one parent, alike in all "
            f"of their tensors, whose names are numbers or end in one. {_contents(names)}"
        )
    found = [stack for stack in stacks if len(stack.blocks) > length]
    if not found:
        longest = max(stacks, key=lambda stack: len(stack.blocks))
        raise FxtieError(
            f"The scheme {scheme!r} looks for more than {length} repeated blocks. The longest row "
            f"of them is {list_names(longest.names)}: {len(longest.blocks)}."
        )
    candidates = _stacked(found, speller, name, length)
    return [replace(candidate, kind=scheme) for candidate in candidates]


def _parsed(scheme: str) -> tuple[str, int]:
    """The name of a scheme, and for a cycle its length, else 1."""
    name, _, argument = scheme.strip().partition(" ") if isinstance(scheme, str) else ("", "", "")
    if name not in _NAMES:
        known = "'repeat', 'adjacent', 'cycle 3' (or another number), 'embeddings', 'autoencoder'"
        hint = closest(name, _NAMES)
        raise FxtieError(f"There is no scheme {scheme!r}. There are {known}.{hint}")
    if name == "cycle" and not (argument.isascii() and argument.isdigit() and int(argument)):
        raise FxtieError(f"A cycle has a length, as in 'cycle 3': {scheme!r} has none.")
    if name != "cycle" and argument:
        raise FxtieError(f"The scheme {name!r} takes no argument, but {argument!r} is given.")
    return name, int(argument or 1)


# -- stacks of blocks -----------------------------------------------------------------------------


@dataclass(frozen=True)
class Stack:
    """Blocks that differ in their number only."""

    parent: str  # the name of the module that holds them
    word: str  # what stands before the number in their names; mostly nothing
    numbers: tuple[int, ...]  # theirs, ascending
    blocks: tuple[Layer, ...]  # as layers with all of their tensors, by relative name

    @property
    def names(self) -> list[str]:
        return [block.name for block in self.blocks]

    @property
    def step(self) -> int:
        """From one number to the next; 0 if that differs."""
        steps = {b - a for a, b in zip(self.numbers, self.numbers[1:], strict=False)}
        return steps.pop() if len(steps) == 1 else 0


def find_stacks(names: Names) -> list[Stack]:
    """The outermost stacks of a model."""
    holders = _holders(names.model)
    families: dict[tuple[Any, ...], list[tuple[int, Layer]]] = {}
    for name, module in names.model.named_modules():
        parent, _, leaf = name.rpartition(".")
        numbered = re.fullmatch(r"([^\d*{}]*)(0|[1-9]\d{0,8})", leaf)
        if numbered is None or not _may_repeat(names, name, module):
            continue
        form = tuple((n, p.shape, p.dtype, p.device) for n, p in _parameters(module))
        layer = Layer(name, module, _own(module, holders))
        key = (parent, numbered[1], user_class(module), form)
        families.setdefault(key, []).append((int(numbered[2]), layer))
    stacks = []
    for (parent, word, *_), family in families.items():
        if len(family) > 1:
            numbers, blocks = zip(*sorted(family, key=lambda member: member[0]), strict=True)
            stacks.append(Stack(parent, word, numbers, blocks))
    inside = tuple(f"{name}." for stack in stacks for name in stack.names)
    return [stack for stack in stacks if not f"{stack.parent}.".startswith(inside)]


def _may_repeat(names: Names, name: str, module: nn.Module) -> bool:
    """Whether a module is a block by itself, all of which may be derived."""
    parent, _, leaf = name.rpartition(".")
    is_single = not module._modules
    if re.search(r"[*{}]|^re:", name):  # no name for a pattern
        return False
    if is_single and (not leaf.isdigit() or re.search(r"\d", parent)):
        return False  # `conv1` and `conv2` of one block have other roles
    parameters = list(_parameters(module))
    if not any(not is_lazy(p) and p.dim() > 1 for _, p in parameters):
        return False
    slots = [names.find(join(name, tensor)) for tensor, _ in parameters]
    return all(isinstance(s, Slot) and not s.faults_as_target() for s in slots)


def _parameters(module: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    return module.named_parameters(remove_duplicate=False)


def _holders(model: nn.Module) -> Counter[int]:
    """How many modules hold each Parameter."""
    held = (p for module in model.modules() for p in module._parameters.values())
    return Counter(id(p) for p in held if p is not None)


def _own(module: nn.Module, holders: Counter[int]) -> dict[str, nn.Parameter]:
    """The parameters that nothing outside of a module holds."""
    inside = _holders(module)
    return {n: p for n, p in module.named_parameters() if inside[id(p)] == holders[id(p)]}


def _source_of(scheme: str, length: int, position: int) -> int:
    """The position of the block that a block is derived from."""
    return {"repeat": 0, "adjacent": position // 2 * 2, "cycle": position % length}[scheme]


def _template(scheme: str, length: int, stack: Stack, wildcard: int) -> str | None:
    """The number of the source as a rule calculates it from the target's; None if it can't."""
    first, step = stack.numbers[0], stack.step
    if scheme == "repeat":
        return str(first)
    if not step:
        return None
    if scheme == "adjacent":
        period = 2 * step
        formula, counts_from_first = f"// {period} * {period}", first % period != 0
    else:
        formula, counts_from_first = f"% {length * step}", first != 0
    if counts_from_first:
        return f"{{({wildcard} - {first}) {formula} + {first}}}"
    return f"{{{wildcard} {formula}}}"


def _stacked(
    stacks: Sequence[Stack], speller: Speller, scheme: str, length: int
) -> Iterator[Candidate]:
    """One candidate for all stacks that one rule can say, else one for each."""

    def form(stack: Stack) -> object:
        words = tuple(word for word, _ in map(split_index, stack.parent.split(".")))
        return words, stack.word, stack.numbers[0], stack.step

    for group in grouped(stacks, form).values():
        together = _candidate(group, speller, scheme, length)
        if len(group) == 1 or together.spelled is not None:
            yield together
        else:
            yield from (_candidate([stack], speller, scheme, length) for stack in group)


def _candidate(stacks: Sequence[Stack], speller: Speller, scheme: str, length: int) -> Candidate:
    links: list[Link] = []
    for stack in stacks:
        at = [_source_of(scheme, length, i) for i in range(len(stack.blocks))]
        links += [(stack.blocks[i], stack.blocks[j]) for i, j in enumerate(at) if i != j]
    transforms = dict.fromkeys(links[0][0].tensors, same)
    candidate = Candidate(scheme, tuple(links), transforms, is_whole=True)
    target, source, n = [], [], 0
    for column in zip(
        *(map(split_index, stack.parent.split(".")) for stack in stacks), strict=True
    ):
        if len(set(column)) == 1:
            target.append("".join(column[0]))
            source.append(target[-1])
        else:
            target.append(f"{column[0][0]}*")
            source.append(f"{column[0][0]}{{{n}}}")
            n += 1
    template = _template(scheme, length, stacks[0], n)
    if template is None:
        return candidate
    word = stacks[0].word
    spelled = join(*target, f"{word}*"), join(*source, f"{word}{template}")
    named = [(a.name, b.name) for a, b in links]
    is_right = speller.rule(*spelled, named, most_excluded=len(named)) is not None
    return replace(candidate, spelled=spelled if is_right else None)


# -- single layers --------------------------------------------------------------------------------


def _embeddings(names: Names) -> list[Candidate]:
    """Each head as the first embedding with a weight of the same shape."""
    layers = [layer for layer in find_layers(names) if not layer.block]
    embeddings = [layer for layer in layers if isinstance(layer.module, nn.Embedding)]
    heads = [layer for layer in layers if isinstance(layer.module, nn.Linear)]
    found = []
    for head in heads:
        source = next((e for e in embeddings if _as(e) == _as(head)), None)
        if source is not None:
            found.append(Candidate("embeddings", ((head, source),), {"weight": same}))
    if not found:
        told = ", ".join(map(_told, [*embeddings, *heads][:_MOST_TOLD])) or "none"
        raise FxtieError(
            f"The scheme 'embeddings' looks for a Linear, outside of repeated blocks, whose weight "
            f"has the shape of an Embedding's and is not shared yet. The model's embeddings and "
            f"linear layers there: {told}."
        )
    return found


def _as(layer: Layer) -> object:
    weight = layer.tensors["weight"]
    return weight.shape, weight.dtype, weight.device


def _told(layer: Layer) -> str:
    size = "x".join(map(str, layer.tensors["weight"].shape)) if "weight" in layer.tensors else "-"
    return f"{layer.name!r} ({type(layer.module).__name__}, {size})"


def _autoencoder(names: Names) -> list[Candidate]:
    """Layers that lead back, those of a decoder, as the layers that they mirror."""
    found = [
        replace(candidate, kind="autoencoder")
        for candidate in leading_back(find_layers(names))
        if not any(isinstance(layer.module, nn.Embedding) for layer in candidate.links[0])
    ]
    if not found:
        raise FxtieError(
            f"The scheme 'autoencoder' looks for layers that lead back where earlier ones came "
            f"from: in parts called encoder and decoder, Conv and ConvTranspose, or in one "
            f"Sequential. {_contents(names)}"
        )
    return found


def _contents(names: Names) -> str:
    """What the model has, as a sentence."""
    children = [
        f"{name!r} ({type(child).__name__})" for name, child in names.model.named_children()
    ]
    more = f" and {len(children) - _MOST_TOLD} more" if len(children) > _MOST_TOLD else ""
    listed = ", ".join(children[:_MOST_TOLD]) or "no children"
    return f"The model, a {type(names.model).__name__}, has {listed}{more}."
