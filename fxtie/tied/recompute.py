"""Derived tensors that are computed again in the backward pass instead of being stored for it.

Autograd stores what an op needs in its backward: of a convolution its weight, and so every derived
weight lives until then. In the forward of a region, hooks replace those by how they were computed
(https://docs.pytorch.org/docs/stable/autograd.html#torch.autograd.graph.saved_tensors_hooks).
torch.compile needs none of this: it decides by itself what to compute again.
"""

from __future__ import annotations

import contextlib
import threading
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import fx, nn
from torch.autograd.graph import saved_tensors_hooks

from fxtie._torch import (
    conjugate_view,
    has_storage,
    in_functorch,
    is_dtensor,
    negative_view,
    storage_id,
)
from fxtie.planning.lowering import Lowered
from fxtie.tied.dtensors import as_dtensor, local_part
from fxtie.tracing.graphs import changed_in_place, map_arg, repeats
from fxtie.transforms.parts import Part


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
    """Hands on a derived tensor, and notes for autograd which steps have computed it.

    It has the attributes by which torch.fx names a function in generated code.
    """

    def __init__(self, steps: Lowered) -> None:
        self.steps = steps
        self.__name__ = self.__qualname__ = "remember"
        self.__module__ = "fxtie_recompute"

    def __call__(self, value: torch.Tensor, *sources: torch.Tensor) -> torch.Tensor:
        _note(self.steps.name, self.steps, value, sources)
        return value

    def __reduce__(self) -> Any:
        return Remember, (self.steps,)

    def __deepcopy__(self, memo: dict[int, Any]) -> Remember:
        return self  # immutable


def noted(name: str, function: Callable[..., Any], *sources: torch.Tensor) -> Any:
    """Call a function, and note for autograd how its result was computed: for tensor `name`.

    The function gives the same for the same sources: a tensor or several.
    """
    result = function(*sources)
    if isinstance(result, tuple):
        for i, value in enumerate(result):
            _note(name, Part(function, i, ()), value, sources)
    else:
        _note(name, function, result, sources)
    return result


def _note(
    name: str,
    steps: Callable[..., torch.Tensor],
    value: torch.Tensor,
    sources: Sequence[torch.Tensor],
) -> None:
    """Note how a tensor was computed, if a forward runs `recomputing`."""
    if (recipes := _current()) is None:
        return
    tensors = (value, *sources)
    if not all(map(_is_plain, tensors)) or any(t.is_inference() for t in tensors):
        return
    if (place := _place(value)) not in map(_place, sources):  # else a view of what is stored
        recipes[place] = _Recipe(
            name,
            weakref.ref(value),
            value._version,
            _Layout.of(value),
            steps,
            [_recipe(recipes, source) or source for source in sources],
            tuple(source._version for source in sources),
            {tensor.device: autocast_dtype(tensor.device) for tensor in tensors},
        )


def _is_plain(tensor: torch.Tensor) -> bool:
    """Whether a tensor, or its part of a DTensor, is nothing but a view of a storage."""
    part = local_part(tensor)  # may be sparse, or of a subclass
    return type(part) in (torch.Tensor, nn.Parameter) and has_storage(part)


def _place(tensor: torch.Tensor) -> int:
    return storage_id(local_part(tensor))


def _recipe(recipes: dict[int, _Recipe], tensor: torch.Tensor) -> _Recipe | None:
    """How a tensor, or that of which it is a view, was computed, if that is known."""
    recipe = recipes.get(_place(tensor))
    # A dead value's place may be another's by now.
    return None if recipe is None or recipe.value() is None else recipe


_here = threading.local()


def _current() -> dict[int, _Recipe] | None:
    """What the forward that runs `recomputing` in this thread has noted, by storage."""
    if torch.compiler.is_compiling():
        return None
    recipes: dict[int, _Recipe] | None = getattr(_here, "recipes", None)
    return recipes


def is_recomputing() -> bool:
    """Whether a forward runs that stores nothing that can be computed again."""
    return _current() is not None


class _Layout(NamedTuple):
    """How a tensor, or its part of a DTensor, views its storage; and the layout of that DTensor."""

    dtype: torch.dtype
    shape: torch.Size
    stride: tuple[int, ...]
    offset: int | torch.SymInt
    is_conj: bool
    is_neg: bool
    placement: tuple[Any, ...] | None

    @classmethod
    def of(cls, tensor: Any) -> _Layout:
        part, placement = tensor, None
        if is_dtensor(tensor):
            whole = tensor.shape, tensor.stride()
            part, placement = local_part(tensor), (tensor.device_mesh, tensor.placements, *whole)
        return cls(
            part.dtype,
            part.shape,
            part.stride(),
            part.storage_offset(),
            part.is_conj(),
            part.is_neg(),
            placement,
        )

    def differences(self, expected: _Layout) -> list[str]:
        """What is not as expected, each as `dtype is torch.float64, expected torch.float32`."""
        triples = zip(self._fields, self, expected, strict=True)
        return [f"{name} is {a}, expected {b}" for name, a, b in triples if a != b]

    def view(self, tensor: torch.Tensor) -> torch.Tensor:
        """The storage of a tensor, viewed like this."""
        storage = local_part(tensor).untyped_storage()
        view = torch.empty(0, dtype=self.dtype, device=tensor.device)
        view.set_(storage, self.offset, self.shape, self.stride)
        view = conjugate_view(view) if self.is_conj else view
        view = negative_view(view) if self.is_neg else view
        return view if self.placement is None else as_dtensor(view, *self.placement)


@dataclass(eq=False)
class _Recipe:
    """How a derived tensor was computed."""

    name: str
    value: weakref.ref[torch.Tensor]  # the tensor. While it lives, its storage's place is its own
    version: int
    layout: _Layout
    steps: Callable[..., torch.Tensor]  # what computes it
    inputs: list[torch.Tensor | _Recipe]  # from what: tensors, or recipes of derived ones
    versions: tuple[int, ...]  # of the sources, by which autograd tells that they were changed
    # The dtype that autocast cast to, or None, by device.
    autocast: Mapping[torch.device, torch.dtype | None]

    def compute(self) -> torch.Tensor:
        value = self.value()
        if value is not None and value._version == self.version:
            return value
        for source, version in zip(self.inputs, self.versions, strict=True):
            if isinstance(source, torch.Tensor) and source._version != version:
                raise RuntimeError(
                    f"A source of {self.name!r}, which is computed again for the backward "
                    f"pass (recompute=True), was changed in place after the forward: it is at "
                    f"version {source._version}, expected version {version}."
                )
        inputs = [i.compute() if isinstance(i, _Recipe) else i for i in self.inputs]
        with _autocast(self.autocast):
            value = self.steps(*inputs)
        if (layout := _Layout.of(value)) != self.layout:
            raise RuntimeError(
                f"{self.name!r}, computed again for the backward pass (recompute=True), is "
                f"not what it was in the forward: its "
                f"{', its '.join(layout.differences(self.layout))}. The transform depends on "
                f"something that has changed since. Restore that before the backward, or "
                f"transform the model with recompute=False."
            )
        return value


def autocast_dtype(device: torch.device) -> torch.dtype | None:
    """The dtype that autocast casts to, where it is enabled. The meta device has none."""
    kind = device.type
    if kind == "meta" or not torch.is_autocast_enabled(kind):
        return None
    return torch.get_autocast_dtype(kind)


def _autocast(
    dtypes: Mapping[torch.device, torch.dtype | None],
) -> contextlib.AbstractContextManager[Any]:
    """Autocast as it was in the forward: a backward mostly runs outside of it."""
    stack = contextlib.ExitStack()
    for device, dtype in dtypes.items():
        if dtype is not None or autocast_dtype(device) is not None:
            # A cache would hand casts that were made without gradients to later forwards.
            stack.enter_context(
                torch.autocast(device.type, dtype, dtype is not None, cache_enabled=False)
            )
    return stack


def recomputing(forward: Callable[..., Any]) -> Callable[..., Any]:
    """A region's forward that stores recipes in the place of derived tensors."""

    def stored(*args: Any, **kwargs: Any) -> Any:
        if (
            torch.compiler.is_compiling()
            or not torch.is_grad_enabled()
            or in_functorch()  # has no such hooks
        ):
            return forward(*args, **kwargs)
        with _remembering() as recipes, saved_tensors_hooks(_packer(recipes), _unpack):
            return forward(*args, **kwargs)

    stored.__wrapped__ = forward  # type: ignore[attr-defined]  # its signature
    return stored


@contextlib.contextmanager
def _remembering() -> Iterator[dict[int, _Recipe]]:
    outer = _current()
    _here.recipes = recipes = {} if outer is None else outer
    try:
        yield recipes
    finally:
        _here.recipes = outer


def _packer(recipes: dict[int, _Recipe]) -> Callable[[torch.Tensor], Any]:
    def pack(tensor: torch.Tensor) -> torch.Tensor | tuple[_Recipe, _Layout]:
        if not _is_plain(tensor) or tensor.is_inference():
            return tensor
        recipe = _recipe(recipes, tensor)
        # What was changed in place since can't be repeated.
        if recipe is None or tensor._version != recipe.version:
            return tensor
        return recipe, _Layout.of(tensor)

    return pack


def _unpack(packed: torch.Tensor | tuple[_Recipe, _Layout]) -> torch.Tensor:
    if isinstance(packed, torch.Tensor):
        return packed
    recipe, layout = packed
    with torch.no_grad():
        return layout.view(recipe.compute())
