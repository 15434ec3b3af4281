"""The nodes by which a graph reads stored tensors and derives others from them.

In: a tensor that traced code reads. Out: its value in the trace, with the nodes that make it: one
`get_attr` per stored tensor, one copy of the transform's ops per derivation, just before the first
use. Called by `module_tracer.py`.
"""

from __future__ import annotations

from collections.abc import Set
from typing import TYPE_CHECKING, Any

import torch
from torch import fx, nn

from fxtie.lowering import Lowered
from fxtie.runtime.tied import Derived, Source
from fxtie.tracing.tracer import Traced, TracedTensor

if TYPE_CHECKING:
    from fxtie.tracing.module_tracer import ModuleTracer


class TensorReads:
    """The tensors that one trace has read.

    Args:
        tracer: the trace.
        borrowed: filled with modules outside of the region that it reads from, by the attribute
            name under which its graph refers to them.

    Attributes:
        used: the derived tensors that were read, by id.
    """

    def __init__(self, tracer: ModuleTracer, borrowed: dict[str, nn.Module]) -> None:
        self.tracer = tracer
        self.borrowed = borrowed
        self.used: set[int] = set()
        self._stored: dict[Any, Traced] = {}
        self._derived: dict[Any, Traced] = {}

    def read(self, key: Any, target: str, value: torch.Tensor | None, name: str = "") -> Traced:
        """A stored tensor, by the path in the region: one `get_attr` for all its uses.

        Args:
            value: the tensor; None for a module.
            name: what to show of it, if not the path.
        """
        if key not in self._stored:
            node = self.tracer.create_node("get_attr", target, (), {})
            if name:
                node.meta["reads"] = name
            if isinstance(value, nn.Parameter):
                node.meta["shape"] = value.shape
            self._stored[key] = self._value(node, torch.Size() if value is None else value.shape)
        return self._stored[key]

    def derive(self, derived: Derived) -> Any:
        """A derived tensor: its transform, inlined once."""
        if self.tracer.is_elsewhere():
            return derived.compute()
        self.used.add(id(derived))
        sources = [self._source(source, derived.stored) for source in derived.sources]
        # The plan lowers equal transforms to one object.
        key = (id(derived.transform), tuple(source.node for source in sources))
        if key not in self._derived:
            node = self._apply(derived, [source.node for source in sources])
            if node.meta.get("tie") == derived.name:
                node.meta["derived"] = derived.name  # the result, not a step on the way to it
                node.meta["shape"] = derived.shape
            self._derived[key] = self._value(node, derived.shape)
        return self._derived[key]

    def forget(self, erased: Set[fx.Node]) -> None:
        """Take back what was read by nodes that are erased."""
        for values in (self._stored, self._derived):
            for key in [key for key, value in values.items() if value.node in erased]:
                del values[key]

    def clear(self) -> None:
        """Hold on to no value any more."""
        self._stored.clear()
        self._derived.clear()

    def _value(self, node: fx.Node, shape: torch.Size) -> Traced:
        return self.tracer.follow(TracedTensor(node, self.tracer, shape))

    def _source(self, source: Source, stored: bool) -> Any:
        tracer, owner, attr = self.tracer, source.owner, source.attr
        if not stored and (tracer.covers(owner) or attr in getattr(owner, "_fxtie_derived", ())):
            return getattr(owner, attr)
        name = tracer.paths.get(owner)
        if name is None:
            name = self._borrow(owner, source.name.rpartition(".")[0])
        tensor = owner._parameters.get(attr, owner._buffers.get(attr))
        if tensor is not None:
            past = "_fxtie_stored" if stored else ""  # past the derived attribute
            target = ".".join(filter(None, (name, past, attr)))
            return self.read((id(owner), attr), target, tensor, source.name)
        # Computed by a parametrization, which a get_attr of torch.fx can't look behind.
        shown = source.name.rpartition(".")[0]
        module = self.read((id(owner), None), name, None, shown)
        return tracer.create_proxy("call_function", getattr, (module, attr), {})

    def _borrow(self, module: nn.Module, name: str) -> str:
        """The attribute by which the region refers to a module outside of it."""
        attribute = "_borrowed_" + name.replace(".", "_")
        while self.borrowed.setdefault(attribute, module) is not module:
            attribute += "_"
        return attribute

    def _apply(self, derived: Derived, sources: list[fx.Node]) -> fx.Node:
        transform, name = derived.transform, derived.name.replace(".", "_")
        if isinstance(transform, Lowered):
            return self._inline(transform.graph, derived, sources)
        create_node = self.tracer.create_node
        if isinstance(transform, nn.Module):
            path = self.tracer.paths.get(transform) or self._borrow(transform, name)
            node = create_node("call_module", path, tuple(sources), {}, name)
        else:
            node = create_node("call_function", transform, tuple(sources), {}, name)
        node.meta["tie"] = derived.name
        return node

    def _inline(self, graph: fx.Graph, derived: Derived, sources: list[fx.Node]) -> fx.Node:
        env: dict[fx.Node, fx.Node] = {}
        free = iter(sources)
        (result,) = graph.output_node().args
        for node in graph.nodes:
            if node.op == "placeholder":
                env[node] = next(free)
            elif node.op != "output":
                name = derived.name.replace(".", "_") if node is result else None
                args = fx.node.map_arg(node.args, env.__getitem__)
                kwargs = fx.node.map_arg(node.kwargs, env.__getitem__)
                copied = self.tracer.create_node(node.op, node.target, args, kwargs, name)
                copied.meta["tie"] = derived.name
                env[node] = copied
        assert isinstance(result, fx.Node)
        return env[result]
