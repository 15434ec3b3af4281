"""The nodes by which a graph reads stored tensors and derives others from them.

In: a tensor that traced code reads. Out: its value in the trace, with the nodes that make it: one
`get_attr` per stored tensor, one copy of the transform's ops per derivation, just before the first
use.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable, Iterator, Mapping, Set
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn

from fxtie.capturing.reach import key_of
from fxtie.planning.lowering import Lowered
from fxtie.tied.derived import Derived, Source
from fxtie.tracing.evaluator import Evaluator
from fxtie.tracing.guards import MISSING
from fxtie.tracing.traced import Traced
from fxtie.tracing.user_class import derived_of
from fxtie.transforms.parts import Part
from fxtie.words import free_name, join


class TensorReads:
    """The tensors that one trace has read.

    Args:
        tracer: the trace.
        paths: the modules of the region, with their names.
        borrowed: filled with modules outside of the region that it reads from, by the attribute
            of the root under which its graph refers to them.

    Attributes:
        used: the derived tensors that were read, by id.
        stored: owner, mapping and name of the tensors of the region, by id.
        holders: the module that has a tensor, by what `key_of` gives.
        sharing: the modules that have a tensor that shares memory with that of another one.
    """

    def __init__(
        self, tracer: Evaluator, paths: Mapping[nn.Module, str], borrowed: dict[str, Any]
    ) -> None:
        self.tracer, self.paths = tracer, paths
        self.borrowed = borrowed
        self.used: set[int] = set()
        self.stored: dict[int, tuple[nn.Module, str, str]] = {}
        self.sharing: set[nn.Module] = set()
        self.holders: dict[int, nn.Module] = {}
        for kind in ("_parameters", "_buffers"):
            for owner in paths:
                for attr, tensor in getattr(owner, kind).items():
                    if tensor is None:
                        continue
                    self.stored.setdefault(id(tensor), (owner, kind, attr))
                    if (first := self.holders.setdefault(key_of(tensor), owner)) is not owner:
                        self.sharing |= {first, owner}
        self._parameters: dict[Any, Traced] = {}
        self._others: dict[Any, Traced] = {}  # buffers and modules, which may be replaced
        self._derived: dict[Any, Traced] = {}
        self._runs: dict[Any, list[fx.Node]] = {}  # of transforms that return several tensors
        self._origins: dict[fx.Node, _Stored | Derived] = {}
        self._owners: set[nn.Module] = set()  # of the stored tensors that were read
        # From what each of `_derived` is derived, and the owners of those that are buffers.
        self._slots: dict[Any, tuple[tuple[nn.Module, str], ...]] = {}
        self._owners_of_buffers: set[nn.Module] = set()

    def read(
        self, owner: nn.Module, attr: str, target: str, value: torch.Tensor | None, name: str
    ) -> Traced:
        """A stored tensor, by the path in the region: one `get_attr` for all its uses.

        Args:
            owner: the module that has it.
            attr: under which name.
            target: the path.
            value: the tensor; None for a module.
            name: what to show of it.
        """
        key = id(owner), attr
        read = self._parameters if isinstance(value, nn.Parameter) else self._others
        if key not in read:
            node = self.tracer.create_node("get_attr", target)
            node.meta["reads"] = name
            if isinstance(value, nn.Parameter):
                node.meta["shape"] = value.shape
            self._origins[node] = _Stored(owner, attr, value)
            self._owners.add(owner)
            read[key] = Traced(node, None if value is None else value.shape)
        return read[key]

    def derive(self, derived: Derived) -> Traced:
        """A derived tensor: its transform, inlined once."""
        self.used.add(id(derived))
        sources = [self._source(source).node for source in derived.sources]
        # The plan lowers equal transforms to one object.
        run, part = (derived.identity, *sources), derived.part
        key = run if part is None else (*run, part.index)
        if key not in self._derived:
            if part is None:
                (node,) = self._apply(derived, derived.transform, sources)
            else:
                node = self._part(run, part, derived, sources)
            group = (derived.name,) if part is None else part.of
            if node.meta.get("tie") in group and "derived" not in node.meta:
                node.meta["derived"] = derived.name  # the result, not a step on the way to it
                node.meta["shape"] = derived.shape
                self._origins[node] = derived
            self._derived[key] = Traced(node, derived.shape)
            self._slots[key] = slots = tuple(_sources(derived))
            self._owners_of_buffers |= {o for o, attr in slots if attr not in o._parameters}
        return self._derived[key]

    # -- what is known of them ------------------------------------------------------------------

    def slots(self, node: fx.Node) -> Iterator[tuple[nn.Module, str, torch.Size]]:
        """Owner, attribute and shape of the stored tensors on which the shape of one depends."""
        origin = self._origins.get(node)
        if isinstance(origin, Derived):
            yield from _slots(origin)
        elif origin is not None and origin.value is not None:
            yield origin.owner, origin.attr, origin.value.shape

    def must_be_tensor(self, node: fx.Node) -> None:
        """Guard that what a node reads is a tensor, and not None."""
        for owner, attr, _ in self.slots(node):
            kinds = ("_parameters", "_buffers", "__dict__")
            mapping = next((kind for kind in kinds if attr in getattr(owner, kind)), None)
            if mapping is not None:
                self.tracer.guard("is_tensor", owner, mapping, attr, attr)

    # -- what is read anew ----------------------------------------------------------------------

    def take_back(self, erased: Set[fx.Node]) -> None:
        """Take back what was read by nodes that are erased."""
        for values in (self._parameters, self._others, self._derived):
            for key in [key for key, value in values.items() if value.node in erased]:
                del values[key]
        for run in [run for run, nodes in self._runs.items() if not erased.isdisjoint(nodes)]:
            del self._runs[run]

    def owner_of_buffer(self, node: fx.Node) -> nn.Module | None:
        """The module that has what a node reads, if that is a buffer of the region."""
        origin = self._origins.get(node)
        if isinstance(origin, _Stored) and origin.owner in self.paths:
            return origin.owner if origin.attr in origin.owner._buffers else None
        return None

    def any_in(self, nodes: Iterable[fx.Node]) -> bool:
        """Whether one of these nodes reads or derives a tensor."""
        return any(node in self._origins for node in nodes)

    def forget(self, owners: Set[nn.Module], *, buffers_only: bool) -> None:
        """Read the tensors of these modules anew from here on: others may be in their places.

        Args:
            owners: the modules.
            buffers_only: whether it can have been their buffers only, as by torch's own layers.
        """
        if owners.isdisjoint(self._owners) and owners.isdisjoint(self.sharing):
            return
        # Torch's own layers put no other Parameters there.
        for reads in (self._others,) if buffers_only else (self._others, self._parameters):
            for key, read in list(reads.items()):
                origin = self._origins[read.node]
                if isinstance(origin, _Stored) and origin.owner in owners:
                    del reads[key]
        self.derive_anew(owners, buffers_only=buffers_only)

    def derive_anew(self, owners: Set[nn.Module], *, buffers_only: bool) -> None:
        """Derive anew from here on what depends on tensors of these modules: they have changed."""
        if not owners.isdisjoint(self.sharing):
            owners = owners | self.sharing
        if buffers_only and any(vars(o).get("max_norm") is not None for o in owners):
            buffers_only = False  # an nn.Embedding
        if buffers_only and owners.isdisjoint(self._owners_of_buffers):
            return
        for key in list(self._derived):
            if any(
                owner in owners and not (buffers_only and attr in owner._parameters)
                for owner, attr in self._slots[key]
            ):
                del self._derived[key]
                self._runs.pop(key[:-1], None)

    # -- nodes ----------------------------------------------------------------------------------

    def _source(self, source: Source) -> Traced:
        tracer, owner, attr = self.tracer, source.owner, source.attr
        paths = self.paths
        if not source.is_own and (owner in paths or attr in derived_of(owner)):
            value = tracer.attribute(owner, attr) if owner in paths else None
            if value is None:
                value = self.derive(derived_of(owner)[attr])
            if type(value) is Traced:
                self._guard_place(source)
                return value
        shown = source.name.rpartition(".")[0]
        tracer.guard("entry", owner, "__dict__", attr, MISSING, shown)
        name = paths.get(owner)
        if name is None:
            name = self._borrow(owner, source.name.rpartition(".")[0])
        self._guard_place(source)
        tensor = owner._parameters.get(attr, owner._buffers.get(attr))
        if tensor is not None:
            past = "_fxtie_stored" if source.is_own else ""  # past the derived attribute
            return self.read(owner, attr, join(name, past, attr), tensor, source.name)
        # Computed by a parametrization, which a get_attr of torch.fx can't look behind.
        module = self.read(owner, "", name, None, shown)
        return tracer.record("call_function", getattr, (module, attr))

    def _guard_place(self, source: Source) -> None:
        """Guard that a source's owner is still where it was: it is read by name."""
        for parent, name, child in source.steps():
            self.tracer.guard("entry", parent, "_modules", name, child, type(parent).__name__)

    def _borrow(self, module: nn.Module, name: str) -> str:
        """The attribute by which the region refers to a module outside of it."""
        taken = {known for known, other in self.borrowed.items() if other is not module}
        attribute = free_name("_borrowed_" + name.replace(".", "_"), taken)
        self.borrowed[attribute] = module
        return attribute

    def _part(self, run: Any, part: Part, derived: Derived, sources: list[fx.Node]) -> fx.Node:
        """One of the tensors that one run of a transform gives."""
        if run not in self._runs:
            self._runs[run] = self._apply(derived, part.whole, sources)
        results = self._runs[run]
        if isinstance(part.whole, Lowered) and part.whole.gives_several:
            return results[part.index]
        name = derived.name.replace(".", "_")
        item = (*results, part.index)
        node = self.tracer.create_node("call_function", operator.getitem, item, {}, name)
        node.meta["tie"] = results[0].meta["tie"]
        return node

    def _apply(self, derived: Derived, transform: Any, sources: list[fx.Node]) -> list[fx.Node]:
        """The ops of a transform. Returns its results, or the one call that gives all of them."""
        name = derived.name.replace(".", "_")
        if isinstance(transform, Lowered):
            self.tracer.facts += transform.guards.facts
            if not transform.is_general:
                for source in sources:
                    self.tracer.shape(Traced(source, torch.Size()))
            return self._inline(transform.graph, derived, sources)
        create_node = self.tracer.create_node
        if isinstance(transform, nn.Module):
            path = self.paths.get(transform) or self._borrow(transform, name)
            node = create_node("call_module", path, tuple(sources), {}, name)
        else:
            node = create_node("call_function", transform, tuple(sources), {}, name)
        node.meta["tie"] = derived.name
        return [node]

    def _inline(self, graph: fx.Graph, derived: Derived, sources: list[fx.Node]) -> list[fx.Node]:
        env: dict[fx.Node, fx.Node] = {}
        free = iter(sources)
        (returned,) = graph.output_node().args
        results: Any = returned if isinstance(returned, tuple | list) else (returned,)
        targets = (derived.name,) if derived.part is None else derived.part.of
        names = dict(reversed([*zip(results, targets)]))  # noqa: B905  # there may be more results
        for node in graph.nodes:
            if node.op == "placeholder":
                env[node] = next(free)
            elif node.op != "output":
                name = names[node].replace(".", "_") if node in names else None
                args = fx.node.map_arg(node.args, env.__getitem__)
                kwargs = fx.node.map_arg(node.kwargs, env.__getitem__)
                copied = self.tracer.create_node(node.op, node.target, args, kwargs, name)
                copied.meta["tie"] = derived.name
                env[node] = copied
        return [env[result] for result in results]


@dataclass(frozen=True, eq=False)
class _Stored:
    """A tensor that is read, or a module (then `value` is None)."""

    owner: nn.Module
    attr: str
    value: torch.Tensor | None


def _sources(derived: Derived) -> Iterator[tuple[nn.Module, str]]:
    """Owners and attributes of the stored tensors that one is derived from."""
    for source in derived.sources:
        inner = derived_of(source.owner).get(source.attr)
        if inner is not None and not source.is_own:
            yield from _sources(inner)
        else:
            yield source.owner, source.attr


def _slots(derived: Derived) -> Iterator[tuple[nn.Module, str, torch.Size]]:
    for owner, attr in _sources(derived):
        tensor = owner._parameters.get(attr, owner._buffers.get(attr))
        if tensor is not None:
            yield owner, attr, tensor.shape
