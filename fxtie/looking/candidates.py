"""Which layers of a model could share weights, found by names, types and shapes.

In: a model. Out: `Candidate`s: layers that could be derived alike, each from a layer named with it.
Nothing here reads a value.

There are four ways in which layers go together, and one function for each. What all of them rest on
is the *role* of a layer: its name without the indices. `blocks.0.fc` and `blocks.1.fc` have one
role, `blocks.*.fc`. Layers of one role, type and shape are a *class*.
"""

from __future__ import annotations

import functools
import itertools
import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

from torch import nn

from fxtie import transforms as T
from fxtie.planning.names import Names, Slot
from fxtie.tracing.user_class import user_class

_MOST_COPIES = 8  # of a source in a target: more of them leave too little to learn
_CONVS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


@dataclass(frozen=True, eq=False)
class Layer:
    """A module with matrices or kernels of its own.

    Attributes:
        name: its dotted name.
        module: itself.
        tensors: all parameters of its own, by attribute.
    """

    name: str
    module: nn.Module
    tensors: dict[str, nn.Parameter]

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
    def part(self) -> str:
        """The word that the name begins with: `encoder`, or `layer` of `layer1.0.conv1`."""
        word, index = split_name(self.name)[0]
        return word or index


Link: TypeAlias = tuple[Layer, Layer]
"""A target, and its source."""


@dataclass(frozen=True)
class Candidate:
    """Layers that could be derived alike.

    Attributes:
        kind: "repeated", "alike", "transposed" or "tiled", see `suggest.Suggestion`.
        links: each target, with its source. All targets have one role.
        transforms: by attribute of the targets; attributes that are not in it stay their own.
    """

    kind: str
    links: tuple[Link, ...]
    transforms: dict[str, T.Transform]

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
    found = [re.fullmatch(r"(.*?)(\d*)", part) for part in parents]
    parts = [(match[1], match[2]) for match in found if match]
    counts = leaf.isdecimal() and not any(index for _, index in parts)
    return [*parts, ("", leaf) if counts else (leaf, "")]


def find_candidates(names: Names) -> list[Candidate]:
    """All candidates of a model. One tensor may be a target of several."""
    layers = list(_layers(names))
    classes: dict[object, list[Layer]] = {}
    for layer in layers:
        classes.setdefault((layer.role, layer.form), []).append(layer)
    ways = (_repeated(classes.values()), _alike(layers), _leading_back(layers), _tiled(classes))
    return list(itertools.chain.from_iterable(ways))


def _layers(names: Names) -> Iterator[Layer]:
    """The layers that may be derived and read: plain parameters that nothing else holds."""
    first_name = {module: name for name, module in reversed(names.modules.items())}
    holders = Counter(
        id(p) for module in first_name for p in module._parameters.values() if p is not None
    )
    for name, module in names.modules.items():
        tensors = {attr: p for attr, p in module._parameters.items() if p is not None}
        if first_name[module] != name or re.search(r"[*{}]|^re:", name):  # no name for a pattern
            continue
        slots = [names.find(f"{name}.{attr}" if name else attr) for attr in tensors]
        if not all(isinstance(s, Slot) and not s.faults_as_target() for s in slots):
            continue
        if any(p.dim() > 1 for p in tensors.values()) and all(
            p.is_floating_point() and holders[id(p)] == 1 for p in tensors.values()
        ):
            yield Layer(name, module, tensors)


# -- the four ways --------------------------------------------------------------------------------


def _repeated(classes: Iterable[Sequence[Layer]]) -> Iterator[Candidate]:
    """The same layer of every block, as that of the first block."""
    for first, *others in classes:
        if others:
            yield Candidate("repeated", tuple((layer, first) for layer in others), _all_same(first))


def _alike(layers: Iterable[Layer]) -> Iterator[Candidate]:
    """Layers of one block (or of none) that have one form, as the first of them."""
    first: dict[object, Layer] = {}
    links = []
    for layer in layers:
        source = first.setdefault((layer.form, layer.block), layer)
        if source.role != layer.role:  # else they are repeated
            links.append((layer, source))
    for group in _by_roles(links):
        yield Candidate("alike", group, _all_same(group[0][1]))


def _leading_back(layers: Iterable[Layer]) -> Iterator[Candidate]:
    """A layer from n to m values, and a later one from m to n, as brackets pair.

    First within blocks, so that the two layers of each find each other. Then between parts of the
    model that have other names: decoders mirror their encoders.
    """
    flows = {layer: flow for layer in layers if (flow := _Flow.of(layer)) is not None}
    pairs = list(_pairs(flows, lambda one, other: one.block == other.block))
    for layer in itertools.chain.from_iterable(link for link, _ in pairs):
        del flows[layer]
    pairs += _pairs(flows, lambda one, other: one.part != other.part)
    for group in _by_roles(link for link, is_transposed in pairs if not is_transposed):
        # The two layouts differ by a transposition already.
        yield Candidate("transposed", group, {"weight": T.same})
    for group in _by_roles(link for link, is_transposed in pairs if is_transposed):
        kernel = group[0][0].tensors["weight"].shape[2:]
        transform: T.Transform = T.transpose()
        if math.prod(kernel) > 1:
            transform = T.chain(transform, T.flip(*range(-len(kernel), 0)))
        yield Candidate("transposed", group, {"weight": transform})


def _pairs(
    flows: dict[Layer, _Flow], fit: Callable[[Layer, Layer], bool]
) -> Iterator[tuple[Link, bool]]:
    """Each layer with the last one before that it can mirror, if it is free and they fit.

    With each pair: whether its weight has to be transposed.
    """
    free: dict[_Flow, list[Layer]] = {}
    for layer, flow in flows.items():
        for is_transposed, wanted in flow.ways_back():
            sources = free.get(wanted, [])
            source = next((s for s in reversed(sources) if fit(s, layer)), None)
            if source is not None:
                sources.remove(source)
                yield (layer, source), is_transposed
                break
        else:
            free.setdefault(flow, []).append(layer)


def _tiled(classes: dict[Any, list[Layer]]) -> Iterator[Candidate]:
    """The first of each class, as copies of that of a smaller class with such a name."""
    families: dict[object, list[Layer]] = {}
    for first, *_ in classes.values():
        if "weight" in first.tensors and first.tensors["weight"].dim() > 1:
            stem = re.sub(r"\d+", "#", first.name)
            families.setdefault((stem, user_class(first.module)), []).append(first)
    links = []
    for family in families.values():
        for target in family:
            sources = [source for source in family if 1 < _copies(source, target) <= _MOST_COPIES]
            if sources:
                leaf = target.name.rpartition(".")[2]
                alike = [source for source in sources if source.name.rpartition(".")[2] == leaf]
                largest = max(alike or sources, key=lambda s: s.tensors["weight"].numel())
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
    groups: dict[object, list[Link]] = {}
    for target, source in links:
        groups.setdefault((key(target), key(source)), []).append((target, source))
    yield from map(tuple, groups.values())


@dataclass(frozen=True)
class _Flow:
    """What a layer maps to what, and how its weight is laid out.

    Attributes:
        family: layers that can mirror each other: dense ones, or convolutions of one kernel.
        groups: of a convolution.
        ends: numbers of values that go in and come out.
        out_first: whether dimension 0 of the weight counts what comes out.
    """

    family: object
    groups: int
    ends: tuple[int, int]
    out_first: bool

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

    def ways_back(self) -> Iterator[tuple[bool, _Flow]]:
        """What this one can mirror, and whether the weight has to be transposed for that."""
        back = self.ends[::-1]
        yield False, replace(self, ends=back, out_first=not self.out_first)
        if back != self.ends and self.groups == 1:
            yield True, replace(self, ends=back)
