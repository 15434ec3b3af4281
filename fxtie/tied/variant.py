"""One captured forward: its graph, its code, and the calls that it holds for."""

from __future__ import annotations

import inspect
import keyword
import operator
from collections.abc import Callable, Mapping, Set
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import fx
from torch.fx.graph import PythonCode

from fxtie import _torch
from fxtie.tied.casts import share_casts
from fxtie.tracing.graphs import graph_from_records, graph_to_records
from fxtie.tracing.guards import Guards, alike


@dataclass
class Variant:
    """One captured forward."""

    graph: fx.Graph
    # Arguments for which the trace took their default values.
    defaults: dict[str, Any] = field(default_factory=dict)
    # Arguments which the trace took for a tensor, or (`object`) not to be None.
    assumed: dict[str, type] = field(default_factory=dict)
    # Whether it holds only for calls that pass required arguments by position.
    by_position: bool = False
    guards: Guards = field(default_factory=Guards)  # what else it took for granted
    generated: PythonCode | None = None  # the code that is made of the graph, once it is needed
    forward: Callable[..., Any] | None = None  # the function that this defines
    # The same forward, reading derived tensors where this one derives them.
    reading: Variant | None = None
    has_checks: bool = False  # whether the graph raises where a check of the user's fails

    def with_graph(self, graph: Any) -> Variant:
        """The same with another graph, of which no code is made yet."""
        return replace(self, graph=graph, generated=None, forward=None, reading=None)

    def generate(self) -> PythonCode:
        """The code of the graph, made if there is none yet."""
        if self.generated is None:
            self.generated = self.graph.python_code("self")
            self.forward = _torch.forward_from_source(self.generated.src, self.generated.globals)
            checks = self.graph.find_nodes(op="call_function", target=torch._assert)
            self.has_checks = bool(checks)
        return self.generated

    @property
    def contents(self) -> tuple[Any, ...]:
        """Equal for variants whose forwards compute the same."""
        nodes = [(n.name, n.op, n.target, str(n.args), str(n.kwargs)) for n in self.graph.nodes]
        return tuple(nodes), repr(self.defaults), repr(self.assumed), self.by_position

    @property
    def may_be_wrong(self) -> bool:
        """Whether names that torch.fx writes as they are may be none to Python: keywords, say."""
        nodes = self.graph.nodes
        paths = (node.target for node in nodes if isinstance(node.target, str))
        return any(keyword.iskeyword(name) for path in paths for name in path.split(".")) or any(
            keyword.iskeyword(name) or not name.isidentifier()
            for node in nodes
            for name in node.kwargs
        )

    def make_reading(self, names: Set[str]) -> Variant:
        """Make `reading`, which takes derived tensors of these names from `_fxtie_values`."""
        graph = graph_from_records(graph_to_records(self.graph))
        first = next(node for node in graph.nodes if node.op != "placeholder")
        with graph.inserting_before(first):
            values = graph.get_attr("_fxtie_values")
        for node in list(graph.nodes):
            if (name := node.meta.get("derived")) in names:
                with graph.inserting_before(node):
                    read = graph.call_function(operator.getitem, (values, name))
                node.replace_all_uses_with(read)
                read.meta["derived"] = name
        for node in reversed(graph.nodes):
            if not node.users and (node.op == "get_attr" or "tie" in node.meta):
                graph.erase_node(node)
        share_casts(graph, at_least=1)  # with those of other graphs, too
        self.reading = self.with_graph(graph)
        self.reading.generate()
        return self.reading

    def accepts(self, arguments: Mapping[str, Any]) -> bool:
        """Whether the trace holds for these arguments."""
        for name, value in arguments.items():
            if name in self.defaults:
                if not alike(value, self.defaults[name]):
                    return False
            elif name in self.assumed and (
                value is None or not isinstance(value, self.assumed[name])
            ):
                return False
        return True


class Signature:
    """Which calls of a forward its graphs are for."""

    def __init__(self, forward: Callable[..., Any]) -> None:
        parameters = list(inspect.signature(forward).parameters.values())[1:]  # less self
        only_positional = [p.name for p in parameters if p.kind is p.POSITIONAL_ONLY]
        either = [p.name for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD]
        self.by_keyword = {p.name for p in parameters if p.kind is p.KEYWORD_ONLY}
        self.by_name = {*either, *self.by_keyword}
        self.positional = [*only_positional, *either]
        required = {p.name for p in parameters if p.default is p.empty}
        self.required = required.intersection((*self.positional, *self.by_keyword))
        self.counts = range(len(self.required), len(self.positional) + 1)
        if self.required & self.by_keyword:
            self.counts = range(0)

    def fits(self, count: int, keywords: Mapping[str, Any], *, exactly: bool) -> bool:
        """Whether a call with so many positional arguments and these keywords is one.

        If `exactly`, it must pass required arguments only, by position if it can: a decorator may
        tell the ways of passing them apart.
        """
        if not (keywords or exactly):
            return count in self.counts
        by_position, names = self.positional[:count], keywords.keys()
        if count > len(self.positional) or not names <= self.by_name:
            return False
        if exactly and not (self.required.issuperset(by_position) and names <= self.by_keyword):
            return False
        return self.required <= {*by_position, *names}
