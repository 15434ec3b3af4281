"""Transforms -> small graphs, checked on fake tensors.

In: a transform (any callable on tensors) and the shapes it gets. Out: a `Lowered` transform, which
runs without the user's function, can be copied into a larger graph and can be pickled. A transform
that can't be traced stays a call of the user's function. Called by `plan.py`;
`tracing/reads.py` puts what it makes into graphs.
"""

from __future__ import annotations

import contextlib
import copy
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._mode_utils import no_dispatch

from fxtie.graphs import changed_in_place, graph_from_records, graph_to_records
from fxtie.tracing.stops import Stop
from fxtie.tracing.tracer import Traced, TracedTensor, Tracer, strictly
from fxtie.tracing.watching import without_random_numbers
from fxtie.transforms import Transform
from fxtie.transforms.protocol import transform_name


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
        with no_dispatch():  # past modes: asking `mode` for an empty tensor takes much longer
            meta = torch.empty_strided(self.shape, self.stride, dtype=self.dtype, device="meta")
        return FakeTensor(mode, meta, self.device)


def fake_mode() -> FakeTensorMode:
    """Where transforms are tried out: no memory, no compute. Their own modules are let in."""
    return FakeTensorMode(allow_non_fake_inputs=True)


class Lowered:
    """A transform as torch ops: callable on tensors, independent of the user's function.

    Args:
        graph: one placeholder per source, and an output.
        name: the transform's name, for people.
        is_general: whether it is for tensors of any shape.
    """

    def __init__(self, graph: fx.Graph, name: str, is_general: bool = False) -> None:
        self.graph = graph
        self.name = name
        self.is_general = is_general
        # Now, since torch.compile can't look through code that is made while it traces.
        generated = graph.python_code("self")
        namespace = dict(generated.globals)
        exec(compile(generated.src, f"<transform {name}>", "exec"), namespace)
        self._forward: Callable[..., torch.Tensor] = namespace["forward"]

    def __call__(self, *sources: torch.Tensor) -> torch.Tensor:
        return self._forward(None, *sources)

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

    Args:
        function: the user's callable.
        reason: why it can't be traced.
    """

    def __init__(self, function: Callable[..., Any], reason: str) -> None:
        self.function = function
        self.reason = reason
        name = transform_name(function)
        self.__name__ = self.__qualname__ = "".join(c if c.isalnum() else "_" for c in name)
        self.__module__ = "fxtie_transforms"

    def __call__(self, *sources: torch.Tensor) -> torch.Tensor:
        return self.function(*sources)  # type: ignore[no-any-return]

    def __repr__(self) -> str:
        return transform_name(self.function)

    def __reduce__(self) -> Any:
        return Opaque, (self.function, self.reason)

    def __deepcopy__(self, memo: dict[int, Any]) -> Opaque:
        return Opaque(copy.deepcopy(self.function, memo), self.reason)


def lower(
    transform: Transform, sources: Sequence[torch.Tensor], mode: FakeTensorMode
) -> Lowered | Opaque | nn.Module:
    """The transform as a graph if it can be traced; modules stay modules.

    Args:
        transform: the user's callable.
        sources: fake tensors of the shapes that it will get.
        mode: the mode that they belong to.
    """
    if isinstance(transform, nn.Module):
        return transform
    tracer = _TransformTracer(sources, mode)
    try:
        with strictly(tracer), without_random_numbers():
            graph = tracer.trace_function(transform)
    # Whatever a user's function raises on proxies only means that it can't be traced: it has run
    # on fake tensors before, so its real faults have been told already.
    except Exception as error:
        return Opaque(transform, f"{type(error).__name__}: {error}")
    return Lowered(graph, transform_name(transform), not tracer.reads_shapes)


class _TransformTracer(Tracer):
    """Traces a transform with the shape of every value known: transforms may read shapes."""

    def __init__(self, sources: Sequence[torch.Tensor], mode: FakeTensorMode) -> None:
        super().__init__()
        self.sources = sources
        self.mode = mode
        self.values: dict[fx.Node, Any] = {}

    def trace_function(self, transform: Transform) -> fx.Graph:
        self.graph = fx.Graph()
        self.root = nn.Module()
        self.tensor_attrs = {}
        self.submodule_paths = {}
        proxies = []
        for i, source in enumerate(self.sources):
            node = self.create_node("placeholder", f"source_{i}", (), {})
            self.values[node] = source
            proxies.append(TracedTensor(node, self, source.shape))
        result = transform(*proxies)
        self.raise_swallowed()
        returned = self.create_arg(result)
        # Where it is inlined, readers of the result come right after the node that makes it.
        last = itertools.takewhile(lambda node: node is not returned, reversed(self.graph.nodes))
        if any(map(changed_in_place, last)):
            raise Stop("changes in place what it returns")
        self.create_node("output", "output", (returned,), {})
        return self.graph

    def proxy(self, node: fx.Node) -> Traced:
        value = self.values[node] = self._run(node)
        if isinstance(value, torch.Tensor):
            return TracedTensor(node, self, value.shape)
        return Traced(node, self)

    def _run(self, node: fx.Node) -> Any:
        args = fx.node.map_arg(node.args, self.values.__getitem__)
        kwargs = fx.node.map_arg(node.kwargs, self.values.__getitem__)
        with torch._C.DisableTorchFunction(), self.mode, self._looking_ahead():
            if node.op == "call_method":
                receiver, *rest = args
                return getattr(receiver, str(node.target))(*rest, **kwargs)
            assert callable(node.target)
            return node.target(*args, **kwargs)

    @contextlib.contextmanager
    def _looking_ahead(self) -> Iterator[None]:
        self.looks_ahead = True
        try:
            yield
        finally:
            self.looks_ahead = False

    def create_other_arg(self, a: Any) -> Any:
        # A tensor that the function closes over would become an attribute of a root; there is none.
        if isinstance(a, torch.Tensor | nn.Module):
            raise Stop("uses a tensor that is not one of its sources")
        return super().create_other_arg(a)
