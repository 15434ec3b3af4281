"""Layers in the order in which a forward calls them, as far as graphs tell.

Blocks that differ in their number only are sorted alike, since of some there may be a graph and of
others none; what no graph tells of stays behind.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from torch import fx

from fxtie.looking.matching import layer_of
from fxtie.planning.layers import Layer
from fxtie.words import join, role


def as_called(
    layers: tuple[Layer, ...], graphs: Iterable[tuple[str, fx.Graph]]
) -> tuple[Layer, ...]:
    """Layers sorted by what graphs tell, each given with the name of the module that it is of."""
    places: dict[str, dict[str, int]] = {}  # of the children of modules, by role
    for region, graph in graphs:
        for node in graph.nodes:
            _note(layer_of(node, region, by_stack=True), places, region)
    for layer in layers:  # what no graph has told of comes after that
        _note(layer.name, places)

    def key(layer: Layer) -> list[int]:
        return [places[role(module)][child] for module, child in _steps(layer.name)]

    return tuple(sorted(layers, key=key))


def _note(name: str, places: dict[str, dict[str, int]], inside: str = "") -> None:
    """Give children on the way to a layer the next place of their module, if they have none."""
    for module, child in _steps(name):
        if not inside or f"{module}.".startswith(f"{inside}."):
            children = places.setdefault(role(module), {})
            children.setdefault(child, len(children))


def _steps(name: str) -> Iterator[tuple[str, str]]:
    """The way to a layer: each module, and its child."""
    module = ""
    for child in filter(None, name.split(".")):
        yield module, child
        module = join(module, child)
