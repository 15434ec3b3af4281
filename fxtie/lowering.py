"""Transforms -> small graphs, checked on fake tensors.

In: a transform (any callable on tensors) and the shapes it gets. Out: a `Lowered` transform, which
runs without the user's function, can be copied into a larger graph and can be pickled. A transform
that can't be traced stays a call of the user's function. Called by `plan.py`.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from fxtie.graphs import graph_from_records, graph_to_records
from fxtie.rules import Transform, transform_name
from fxtie.tracing import Stop, TracedTensor, Tracer, strictly


@dataclass(frozen=True)
class Spec:
    """Shape, dtype and device of a tensor, without its data."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device
    stride: tuple[int, ...]

    @classmethod
    def of(cls, tensor: torch.Tensor) -> Spec:
        return cls(tuple(tensor.shape), tensor.dtype, tensor.device, tensor.stride())

    def fake(self, mode: FakeTensorMode) -> torch.Tensor:
        with mode:
            return torch.empty_strided(
                self.shape, self.stride, dtype=self.dtype, device=self.device
            )


def fake_mode() -> FakeTensorMode:
    """Where transforms are tried out: no memory, no compute. Their own modules are let in."""
    return FakeTensorMode(allow_non_fake_inputs=True)


class Lowered:
    """A transform as torch ops: callable on tensors, independent of the user's function.

    Args:
        graph: one placeholder per source, and an output.
        name: the transform's name, for people.
    """

    def __init__(self, graph: fx.Graph, name: str) -> None:
        self.graph = graph
        self.name = name
        self._run = fx.GraphModule(nn.Module(), graph)

    def __call__(self, *sources: torch.Tensor) -> torch.Tensor:
        return self._run(*sources)  # type: ignore[no-any-return]

    def __repr__(self) -> str:
        return self.name

    def __reduce__(self) -> Any:
        return _lowered_from_records, (graph_to_records(self.graph), self.name)

    def __deepcopy__(self, memo: dict[int, Any]) -> Lowered:
        return self  # immutable


def _lowered_from_records(records: Any, name: str) -> Lowered:
    return Lowered(graph_from_records(records), name)


class Opaque:
    """A transform that a graph can only call: its code branches on values, say.

    It has the attributes by which torch.fx names a function in generated code.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function
        name = transform_name(function)
        self.__name__ = self.__qualname__ = "".join(c if c.isalnum() else "_" for c in name)
        self.__module__ = "fxtie_transforms"

    def __call__(self, *sources: torch.Tensor) -> torch.Tensor:
        return self.function(*sources)  # type: ignore[no-any-return]

    def __repr__(self) -> str:
        return transform_name(self.function)

    def __reduce__(self) -> Any:
        return Opaque, (self.function,)

    def __deepcopy__(self, memo: dict[int, Any]) -> Opaque:
        return Opaque(copy.deepcopy(self.function, memo))


def lower(transform: Transform, sources: Sequence[torch.Tensor]) -> Lowered | Opaque | nn.Module:
    """The transform as a graph if it can be traced; modules stay modules.

    Args:
        transform: the user's callable.
        sources: tensors of the shapes that it will get.
    """
    if isinstance(transform, nn.Module):
        return transform
    tracer = _TransformTracer(sources)
    try:
        with strictly(tracer):
            graph = tracer.trace_function(transform)
    # Whatever a user's function raises on proxies only means that it can't be traced: it has run
    # on fake tensors before, so its real faults have been told already.
    except Exception:
        return Opaque(transform)
    return Lowered(graph, transform_name(transform))


class _TransformTracer(Tracer):
    def __init__(self, sources: Sequence[torch.Tensor]) -> None:
        super().__init__()
        self.sources = sources

    def trace_function(self, transform: Transform) -> fx.Graph:
        self.graph = fx.Graph()
        self.root = nn.Module()
        self.tensor_attrs = {}
        self.submodule_paths = {}
        proxies = []
        for i, source in enumerate(self.sources):
            node = self.create_node("placeholder", f"source_{i}", (), {})
            proxies.append(TracedTensor(node, self, source.shape))
        result = transform(*proxies)
        if not issubclass(type(result), fx.Proxy):
            raise Stop("makes its result without its sources")
        self.create_node("output", "output", (self.create_arg(result),), {})
        return self.graph

    def create_arg(self, a: Any) -> Any:
        # A tensor that the function closes over would become an attribute of a root; there is none.
        if isinstance(a, torch.Tensor | nn.Module):
            raise Stop("uses a tensor that is not one of its sources")
        return super().create_arg(a)
