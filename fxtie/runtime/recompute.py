"""Derived tensors that are computed again in the backward pass instead of being stored for it.

In: the graph of a region. Out: the same, with a `Remember` after each derived tensor, and a forward
that runs `recomputing`. Called by `capture.py` and `region.py`.

Autograd stores what an op needs in its backward: of a convolution its weight, and so every derived
weight lives until then. In the forward of a region, hooks replace those by how they were computed
(https://docs.pytorch.org/docs/stable/autograd.html#torch.autograd.graph.saved_tensors_hooks).
torch.compile needs none of this: it decides by itself what to compute again.
"""

from __future__ import annotations

import contextlib
import threading
import weakref
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx
from torch.autograd.graph import saved_tensors_hooks

from fxtie.graphs import changed_in_place, map_arg, repeats
from fxtie.lowering import Lowered


def remember_derived(graph: fx.Graph) -> None:
    """Let a graph remember how it computes its derived tensors, of those that can be repeated."""
    places = {node: place for place, node in enumerate(graph.nodes)}
    changing = {node.meta.get("tie") for node in graph.nodes if changed_in_place(node)}
    for node in list(graph.nodes):
        if "derived" not in node.meta or node.meta["tie"] in changing:
            continue
        if (found := _subgraph(node, places)) is None:
            continue
        steps, sources = found
        users = list(node.users)
        with graph.inserting_after(node):
            remembered = graph.create_node(
                "call_function", Remember(steps), (node, *sources), name=f"{node.name}_remembered"
            )
        remembered.meta = dict(node.meta)
        del node.meta["derived"]
        for user in users:
            user.replace_input_with(node, remembered)


def _subgraph(
    result: fx.Node, places: Mapping[fx.Node, int]
) -> tuple[Lowered, list[fx.Node]] | None:
    """The ops that compute a derived tensor, and the nodes that they start from."""
    name = result.meta["tie"]
    steps: dict[fx.Node, None] = {}
    sources: dict[fx.Node, None] = {}
    pending = [result]
    while pending:
        node = pending.pop()
        if node.meta.get("tie") != name:
            sources[node] = None
        elif not repeats(node):
            return None
        elif node not in steps:
            steps[node] = None
            pending += node.all_input_nodes
    graph = fx.Graph()
    env = {source: graph.placeholder(f"source_{i}") for i, source in enumerate(sources)}
    for node in sorted(steps, key=places.__getitem__):
        args, kwargs = map_arg((node.args, node.kwargs), env.__getitem__)
        env[node] = graph.create_node(node.op, node.target, args, kwargs)
    graph.output(env[result])
    return Lowered(graph, name), list(sources)


class Remember:
    """Hands on a derived tensor, and notes for autograd how it was computed.

    It has the attributes by which torch.fx names a function in generated code.

    Args:
        steps: what computes it.
    """

    def __init__(self, steps: Lowered) -> None:
        self.steps = steps
        self.__name__ = self.__qualname__ = "remember"
        self.__module__ = "fxtie_recompute"

    def __call__(self, value: torch.Tensor, *sources: torch.Tensor) -> torch.Tensor:
        recipes: dict[int, _Recipe] | None = getattr(_here, "recipes", None)
        if recipes is None or torch.compiler.is_compiling():
            return value
        if _place(value) not in map(_place, sources):  # else it is a view of what is stored anyway
            inputs = [_recipe(recipes, source) or source for source in sources]
            versions = tuple(source._version for source in sources)
            recipes[_place(value)] = _Recipe(weakref.ref(value), self.steps, inputs, versions)
        return value

    def __reduce__(self) -> Any:
        return Remember, (self.steps,)

    def __deepcopy__(self, memo: dict[int, Any]) -> Remember:
        return self  # immutable


def _place(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def _recipe(recipes: dict[int, _Recipe], tensor: torch.Tensor) -> _Recipe | None:
    """How a tensor, or that of which it is a view, was computed, if that is known."""
    recipe = recipes.get(_place(tensor))
    # A dead value's place may be another's by now.
    return None if recipe is None or recipe.value() is None else recipe


_here = threading.local()  # what the forward that runs in this thread remembers


@dataclass(frozen=True)
class _Recipe:
    """How a derived tensor was computed.

    Attributes:
        value: the tensor. While it lives, its storage's place is its own.
        steps: what computes it.
        inputs: from what: tensors, or recipes of derived ones.
        versions: of the sources, by which autograd tells that they were changed.
    """

    value: weakref.ref[torch.Tensor]
    steps: Lowered
    inputs: list[torch.Tensor | _Recipe]
    versions: tuple[int, ...]

    def compute(self) -> torch.Tensor:
        if (value := self.value()) is not None:
            return value
        for source, version in zip(self.inputs, self.versions, strict=True):
            if isinstance(source, torch.Tensor) and source._version != version:
                raise RuntimeError(
                    f"A source of {self.steps.name!r}, which is computed again for the backward "
                    f"pass (recompute=True), was changed in place after the forward: it is at "
                    f"version {source._version}, expected version {version}."
                )
        return self.steps(*(i.compute() if isinstance(i, _Recipe) else i for i in self.inputs))


def recomputing(forward: Callable[..., Any]) -> Callable[..., Any]:
    """A region's forward that stores recipes in the place of derived tensors."""

    def stored(*args: Any, **kwargs: Any) -> Any:
        if torch.compiler.is_compiling() or not torch.is_grad_enabled():
            return forward(*args, **kwargs)
        with _remembering() as recipes, saved_tensors_hooks(_packer(recipes), _unpack):
            return forward(*args, **kwargs)

    stored.__wrapped__ = forward  # type: ignore[attr-defined]  # its signature
    return stored


@contextlib.contextmanager
def _remembering() -> Iterator[dict[int, _Recipe]]:
    outer = getattr(_here, "recipes", None)
    _here.recipes = recipes = {} if outer is None else outer
    try:
        yield recipes
    finally:
        _here.recipes = outer


_Layout = tuple[torch.Size, tuple[int, ...], int | torch.SymInt]


def _packer(recipes: dict[int, _Recipe]) -> Callable[[torch.Tensor], Any]:
    def pack(tensor: torch.Tensor) -> torch.Tensor | tuple[_Recipe, _Layout]:
        recipe = _recipe(recipes, tensor)
        if recipe is None or tensor._version:  # what was changed in place can't be repeated
            return tensor
        return recipe, (tensor.shape, tensor.stride(), tensor.storage_offset())

    return pack


def _unpack(packed: torch.Tensor | tuple[_Recipe, _Layout]) -> torch.Tensor:
    if isinstance(packed, torch.Tensor):
        return packed
    recipe, layout = packed
    with torch.no_grad():
        return recipe.compute().as_strided(*layout)
