"""Which layers of a model could be derived alike, found by names, types and shapes, not values.

All four ways rest on the *role* of a layer: its name without the indices. `blocks.0.fc` and
`blocks.1.fc` have one role, `blocks.*.fc`. Layers of one role, type and shape are a *class*.
"""

from __future__ import annotations

import functools
import itertools
import math
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

from torch import nn

from fxtie import transforms as T
from fxtie.looking.grouping import grouped
from fxtie.planning.names import Names, Slot
from fxtie.planning.own_ties import known_ties
from fxtie.tracing.user_class import user_class
from fxtie.words import join, split_index
from fxtie.words import role as without_numbers

_MOST_COPIES = 8  # of a source in a target: more of them leave too little to learn
_CONVS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


@dataclass(frozen=True, eq=False)
class Layer:
    """A module with matrices or kernels of its own."""

    name: str
    module: nn.Module
    tensors: dict[str, nn.Parameter]  # all parameters of its own, by attribute

    @functools.cached_property
    def form(self) -> object:
        """What alike layers have in common: type, shapes, dtypes, devices."""
        tensors = self.tensors.items()
        return user_class(self.module), tuple((k, p.shape, p.dtype, p.device) for k, p in tensors)

    @functools.cached_property
    def role(self) -> str:
        """The name with `*` for each index."""
        return ".".join(f"{word}*" if index else word for word, index in split_name(self.name))

    @functools.cached_property
    def block(self) -> str:
        """The name of the innermost repeated part that it is in; empty if there is none."""
        *parents, _ = split_name(self.name)
        while parents and not parents[-1][1]:
            parents.pop()
        return ".".join(map("".join, parents))

    @property
    def leaf(self) -> str:
        """What it is called in its parent."""
        return self.name.rpartition(".")[2]

    @property
    def coder(self) -> str:
        """`enc` or `dec` if it is in a part of such a name; else empty."""
        found = re.search(r"(?:^|[._])(enc|dec)", self.name)
        return found[1] if found else ""


Link: TypeAlias = tuple[Layer, Layer]
"""A target, and its source."""


@dataclass(frozen=True)
class Candidate:
    """Layers that could be derived alike."""

    kind: str  # as of a `Suggestion`
    links: tuple[Link, ...]  # each target, with its source. All targets have one role
    # By attribute of the targets; attributes that are not in it stay their own.
    transforms: dict[str, T.Transform]
    is_whole: bool = False  # whether they are blocks with all that is in them
    # Of blocks the pattern of the targets and that of their sources, if there is one.
    spelled: tuple[str, str] | None = None

    @property
    def saved(self) -> int:
        """Number of parameters that the targets no longer have."""
        return sum(t.tensors[attr].numel() for t, _ in self.links for attr in self.transforms)


def split_name(name: str) -> list[tuple[str, str]]:
    """The parts of a dotted name, each with its index if it has one.

    The last part says what the layer is for, as `conv1` does here, unless it is all that counts.

    >>> split_name("layer2.0.conv1")
    [('layer', '2'), ('', '0'), ('conv1', '')]
    >>> split_name("features.26")
    [('features', ''), ('', '26')]
    """
    *parents, leaf = name.split(".")
    parts = [split_index(part) for part in parents]
    counts = leaf.isdecimal() and not any(index for _, index in parts)
    return [*parts, ("", leaf) if counts else (leaf, "")]


def find_candidates(names: Names) -> list[Candidate]:
    """All candidates of a model. One tensor may be a target of several."""
    layers = list(find_layers(names))
    classes = list(grouped(layers, lambda layer: (layer.role, layer.form)).values())
    return [*_repeated(classes), *_alike(layers), *leading_back(layers), *_tiled(classes)]


def find_layers(names: Names) -> Iterator[Layer]:
    """The layers that may be derived and read: plain parameters that nothing else holds."""
    known = [name for tie in known_ties(names) for name in (tie.target, *tie.sources)]
    taken = {slot.key for slot in map(names.find, known) if isinstance(slot, Slot)}
    for name, module in names.model.named_modules():
        if re.search(r"[*{}]|^re:", name):  # no name for a pattern
            continue
        tensors = {attr: p for attr, p in module._parameters.items() if p is not None}
        slots = [names.find(join(name, attr)) for attr in tensors]
        if (
            all(isinstance(s, Slot) and not s.faults_as_target() for s in slots)
            and taken.isdisjoint((id(module), attr) for attr in tensors)
            and any(p.dim() > 1 for p in tensors.values())
            and all(p.is_floating_point() for p in tensors.values())
        ):
            yield Layer(name, module, tensors)


# -- the four ways --------------------------------------------------------------------------------


def _repeated(classes: Iterable[Sequence[Layer]]) -> Iterator[Candidate]:
    """The same layer of every block, as that of the first block."""
    for first, *others in classes:
        if others:
            yield Candidate("repeated", tuple((layer, first) for layer in others), _all_same(first))


def _alike(layers: Iterable[Layer]) -> Iterator[Candidate]:
    """Layers of no block that differ in the number of their name only: `conv_1`, `conv_2`.

    Other names tell that layers have other roles, as a query's and a key's.
    """
    first: dict[object, Layer] = {}
    links = []
    for layer in layers:
        source = first.setdefault((layer.form, without_numbers(layer.name)), layer)
        if not layer.block and source.role != layer.role:  # else they are repeated
            links.append((layer, source))
    for group in _by_roles(links):
        yield Candidate("alike", group, _all_same(group[0][1]))


def leading_back(layers: Iterable[Layer]) -> Iterator[Candidate]:
    """A layer from n to m values, and a later one from m to n, as brackets pair.

    First those that have nothing but a number for a name, then those whose names or types tell that
    one is the other's mirror.
    """
    flows = {layer: flow for layer in layers if (flow := _Flow.of(layer)) is not None}
    pairs = list(_pairs(flows, _are_numbered))
    for layer in itertools.chain.from_iterable(link for link, _ in pairs):
        del flows[layer]
    pairs += _pairs(flows, _mirrors)
    for group in _by_roles(link for link, is_transposed in pairs if not is_transposed):
        # The two layouts differ by a transposition already.
        yield Candidate("transposed", group, {"weight": T.same})
    for group in _by_roles(link for link, is_transposed in pairs if is_transposed):
        kernel = group[0][0].tensors["weight"].shape[2:]
        transform: T.Transform = T.transpose()
        if math.prod(kernel) > 1:
            transform = T.chain(transform, T.flip(*range(-len(kernel), 0)))
        yield Candidate("transposed", group, {"weight": transform})


def _are_numbered(source: Layer, target: Layer) -> bool:
    """Whether nothing but numbers tells two layers apart, in no part called encoder or decoder."""
    return (source.block, source.role) == (target.block, target.role) and not source.coder


def _mirrors(source: Layer, target: Layer) -> bool:
    """Whether names or types tell that the target leads back from where the source led."""

    def are(kind: Any, other: Any) -> bool:
        pairs = ((source.module, target.module), (target.module, source.module))
        return any(isinstance(a, kind) and isinstance(b, other) for a, b in pairs)

    is_adjoint, is_head = are(_CONVS, _TRANSPOSED), are(nn.Embedding, nn.Linear)
    is_decoder = (source.coder, target.coder) == ("enc", "dec")
    if source.block or target.block:
        return is_decoder and (is_adjoint or source.leaf == target.leaf)
    return is_decoder or is_adjoint or is_head


def _pairs(
    flows: dict[Layer, _Flow], fit: Callable[[Layer, Layer], bool]
) -> Iterator[tuple[Link, bool]]:
    """Each layer with the last one before that it can mirror, if it is free and they fit.

    With each pair: whether its weight has to be transposed.
    """
    free: dict[_Flow, list[Layer]] = {}
    for layer, flow in flows.items():
        for is_transposed, wanted in flow.ways_back(fit is _mirrors and not layer.block):
            sources = free.get(wanted, [])
            source = next((s for s in reversed(sources) if fit(s, layer)), None)
            if source is not None:
                sources.remove(source)
                yield (layer, source), is_transposed
                break
        else:
            free.setdefault(flow, []).append(layer)


def _tiled(classes: Iterable[Sequence[Layer]]) -> Iterator[Candidate]:
    """The first of each class, as copies of that of a smaller class with such a name."""

    def family_of(layer: Layer) -> tuple[str, type]:
        return re.sub(r"\d+", "#", layer.name), user_class(layer.module)

    firsts = [first for first, *_ in classes]
    wide = [f for f in firsts if "weight" in f.tensors and f.tensors["weight"].dim() > 1]
    links = []
    for family in grouped(wide, family_of).values():
        for target in family:
            sources = [
                source
                for source in family
                if (source.leaf == target.leaf or source.role == target.role)
                and 1 < _copies(source, target) <= _MOST_COPIES
            ]
            if sources:
                largest = max(sources, key=lambda s: s.tensors["weight"].numel())
                links.append((target, largest))
    for group in _by_roles(links, lambda layer: layer.role):
        yield Candidate("tiled", group, {"weight": T.tile()})


def _copies(source: Layer, target: Layer) -> int:
    """How many copies of a weight make up another one of the same kernel size; 0 if none do."""
    small, large = source.tensors["weight"], target.tensors["weight"]
    if (small.dim(), small.dtype, small.device) != (large.dim(), large.dtype, large.device):
        return 0
    if small.shape[2:] != large.shape[2:] or not small.numel():
        return 0
    if any(n % m for m, n in zip(small.shape, large.shape, strict=True)):
        return 0
    return large.numel() // small.numel()


def _all_same(layer: Layer) -> dict[str, T.Transform]:
    return dict.fromkeys(layer.tensors, T.same)


def _by_roles(
    links: Iterable[Link],
    key: Callable[[Layer], object] = lambda layer: (layer.role, layer.form),
) -> Iterator[tuple[Link, ...]]:
    """Links put together whose targets, and whose sources, are of one kind."""
    yield from map(tuple, grouped(links, lambda link: (key(link[0]), key(link[1]))).values())


@dataclass(frozen=True)
class _Flow:
    """What a layer maps to what, and how its weight is laid out."""

    family: object  # layers that can mirror each other: dense ones, or convolutions of one kernel
    groups: int  # of a convolution
    ends: tuple[int, int]  # numbers of values that go in and come out
    out_first: bool  # whether dimension 0 of the weight counts what comes out

    @classmethod
    def of(cls, layer: Layer) -> _Flow | None:
        module, weight = layer.module, layer.tensors.get("weight")
        kernel: tuple[int, ...] = ()
        groups, out_first = 1, True
        if weight is None:
            return None
        if isinstance(module, nn.Linear):
            ends = module.in_features, module.out_features
        elif isinstance(module, nn.Embedding):
            ends, out_first = (module.num_embeddings, module.embedding_dim), False
        elif isinstance(module, _CONVS + _TRANSPOSED):
            ends, out_first = (module.in_channels, module.out_channels), isinstance(module, _CONVS)
            kernel, groups = module.kernel_size, module.groups
        else:
            return None
        first, second = ends[::-1] if out_first else ends
        if weight.shape != (first, second // groups, *kernel):
            return None  # a subclass with a layout of its own
        return cls((kernel, weight.dtype, weight.device), groups, ends, out_first)

    def ways_back(self, squares: bool) -> Iterator[tuple[bool, _Flow]]:
        """What this one can mirror, and whether the weight has to be transposed for that.

        If `squares`, a layer from n to n values may be the mirror of one of its kind.
        """
        back = self.ends[::-1]
        yield False, replace(self, ends=back, out_first=not self.out_first)
        if (squares or back != self.ends) and self.groups == 1:
            yield True, replace(self, ends=back)
