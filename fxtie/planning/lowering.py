"""Transforms -> `Lowered` ones: small graphs that run without the user's function.

They can be copied into a larger graph, and pickled. A transform that can't be traced stays a call
of the user's function.
"""

from __future__ import annotations

import copy
import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import fx, nn

from fxtie._torch import FakeTensorMode
from fxtie.planning.spec import fake_like
from fxtie.tracing.evaluator import Evaluator
from fxtie.tracing.graphs import changed_in_place, graph_from_records, graph_to_records, repeats
from fxtie.tracing.guards import Guards, has_name
from fxtie.tracing.stops import Stop
from fxtie.tracing.traced import Traced
from fxtie.transforms import Transform
from fxtie.transforms.protocol import transform_name


class Lowered:
    """A transform as torch ops: callable on tensors, independent of the user's function."""

    def __init__(
        self,
        graph: fx.Graph,  # one placeholder per source, and an output
        name: str,  # for people
        guards: Guards | None = None,  # of what else it depends on: globals, say
        function: Callable[..., Any] | None = None,  # the user's, where these do not hold
        shapes: tuple[torch.Size, ...] | None = None,  # of the sources, if it has asked for one
    ) -> None:
        self.graph = graph
        self.name = name
        self.is_general = shapes is None  # for tensors of any shape
        self.guards = guards or Guards()
        self.function = function if len(self.guards) or shapes else None
        self.shapes = shapes
        self.gives_several = isinstance(graph.output_node().args[0], tuple | list)
        # Whether it gives the same for the same sources: not if it is random.
        self.is_repeatable = all(
            node.op in ("placeholder", "output") or repeats(node) for node in graph.nodes
        )
        # Now, since torch.compile can't look through code that is made while it traces.
        generated = graph.python_code("self")
        namespace = dict(generated.globals)
        exec(compile(generated.src, f"<transform {name}>", "exec"), namespace)
        self._forward: Callable[..., torch.Tensor] = namespace["forward"]

    def __call__(self, *sources: torch.Tensor) -> torch.Tensor:
        if self.function is not None and (
            torch.compiler.is_dynamo_compiling() or not self._holds(sources)
        ):
            return self.function(*sources)  # type: ignore[no-any-return]
        return self._forward(None, *sources)

    def again(self, sources: Sequence[torch.Tensor]) -> Callable[..., Any] | None:
        """What gives the same for these sources whenever it is called; None if nothing does so."""
        if not self.is_repeatable or (self.function is not None and not self._holds(sources)):
            return None
        return functools.partial(self._forward, None)

    def _holds(self, sources: Sequence[torch.Tensor]) -> bool:
        shapes = tuple(source.shape for source in sources)
        return self.guards.broken() is None and self.shapes in (None, shapes)

    def __repr__(self) -> str:
        return self.name

    def __reduce__(self) -> Any:
        records = graph_to_records(self.graph), self.name
        depends = self.shapes is not None or self.guards.depends_on_values
        if depends and self.function is not None and has_name(self.function):
            return _lowered_from_records, (*records, self.guards, self.function, self.shapes)
        return _lowered_from_records, records

    def __deepcopy__(self, memo: dict[int, Any]) -> Lowered:
        return self  # immutable


def _lowered_from_records(records: Any, name: str, *guarded: Any) -> Lowered:
    return Lowered(graph_from_records(records), name, *guarded)


class Opaque:
    """A transform that a graph can only call, and why: its code branches on values, say.

    It has the attributes by which torch.fx names a function in generated code.
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
) -> tuple[Lowered | Opaque | nn.Module, Any]:
    """The transform as a graph if it can be traced, and what it gives. Modules stay modules.

    `sources` are fake tensors of `mode`. Raises whatever the transform raises.
    """
    if isinstance(transform, nn.Module):
        tensors = itertools.chain(transform.parameters(), transform.buffers())
        # Its buffers and counters are not to change. The copy has tensors without data.
        with mode:
            memo = {id(t): fake_like(t, mode) for t in tensors}
            return transform, copy.deepcopy(transform, memo)(*sources)
    tracer = _TransformTracer(sources, mode)
    try:
        graph = tracer.trace_function(transform)
    except Stop as stop:
        with mode:
            return Opaque(transform, str(stop)), transform(*sources)
    shapes = tuple(source.shape for source in sources) if tracer.reads_shapes else None
    lowered = Lowered(graph, transform_name(transform), Guards(tracer.facts), transform, shapes)
    return lowered, tracer.result


class _TransformTracer(Evaluator):
    """Traces a transform with the shape of every value known: transforms may read shapes."""

    def __init__(self, sources: Sequence[torch.Tensor], mode: FakeTensorMode) -> None:
        super().__init__()
        self.sources = sources
        self.mode = mode
        self.result: Any = None
        self.reads_shapes = False
        self._values: dict[fx.Node, Any] = {}

    def trace_function(self, transform: Transform) -> fx.Graph:
        sources = []
        for i, source in enumerate(self.sources):
            node = self.create_node("placeholder", f"source_{i}")
            self._values[node] = source
            sources.append(Traced(node, source.shape))
        returned = self.argument(self.call(transform, sources))
        self.result = fx.node.map_aggregate(
            returned,
            lambda value: self._values.get(value, value) if isinstance(value, fx.Node) else value,
        )
        # Where it is inlined, readers of a result come right after the node that makes it.
        nodes = list(self.graph.nodes)
        results = returned if isinstance(returned, tuple | list) else (returned,)
        first = min((nodes.index(node) for node in results if node in nodes), default=0)
        last = nodes[first + 1 :]
        if any(map(changed_in_place, last)):
            raise Stop("changes in place what it returns")
        self.create_node("output", "output", (returned,))
        return self.graph

    def value(self, node: fx.Node) -> Traced:
        args = fx.node.map_arg(node.args, self._values.__getitem__)
        kwargs = fx.node.map_arg(node.kwargs, self._values.__getitem__)
        with self.mode:
            if node.op == "call_method":
                receiver, *rest = args
                value = getattr(receiver, str(node.target))(*rest, **kwargs)
            else:
                assert callable(node.target)
                value = node.target(*args, **kwargs)
        self._values[node] = value
        return Traced(node, value.shape if isinstance(value, torch.Tensor) else None)

    def shape(self, value: Traced) -> torch.Size:
        self.reads_shapes = True
        shape: torch.Size = self._values[value.node].shape  # of now: `w.t_()` changes it
        return shape

    def is_none(self, value: Traced) -> bool | None:
        return None if value.shape_known is None else False
