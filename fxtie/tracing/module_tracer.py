"""A module's forward -> a graph, with derived tensors lowered as they are read.

In: a path copy (`runtime/copying.py`) whose targets are derived attributes, and the modules to
open. Out: a graph, and the guards under which it is what the forward computes.

Only modules on the way to a target are opened; all others stay one opaque call. An opened module
that can't be traced is rolled back to such a call, and reported as kept.
"""

from __future__ import annotations

import contextlib
import copy
import inspect
import itertools
import types
from collections.abc import Iterator, Sequence, Set
from typing import Any

import torch
from torch import fx, nn

from fxtie.graphs import changed_in_place
from fxtie.names import has_hooks, join
from fxtie.report import Kept
from fxtie.runtime.copied import user_class
from fxtie.runtime.guards import ATOMS, MISSING, Guards
from fxtie.runtime.region import Variant
from fxtie.tracing.evaluator import Evaluator
from fxtie.tracing.gate import is_opaque
from fxtie.tracing.inference import aliases, is_tensor
from fxtie.tracing.reach import Reach
from fxtie.tracing.reads import TensorReads
from fxtie.tracing.recorder import CONTAINERS, containers_in
from fxtie.tracing.stops import Stop
from fxtie.tracing.traced import Traced


class ModuleTracer(Evaluator):
    """The trace of the forward of one region in one mode.

    Args:
        root: the root of the region.
        training: what every `training` flag is taken to be.
        opened: modules to trace through.
        borrowed: filled with what the graph reads from outside of the region, modules and
            tensors, by the attribute of the root under which it refers to them.

    Raises:
        Stop: with the reason, if it can't be traced.

    Attributes:
        switches: modules whose `training` flag was asked for.
        kept: opened modules that were rolled back to a call, by name.
        inlined: modules whose forward stands in the graph, beside the root's.
        reads: how stored tensors are read and derived ones made.
        variant: the graph, with what it took for granted.
    """

    def __init__(
        self,
        root: nn.Module,
        training: bool,
        opened: Set[nn.Module],
        borrowed: dict[str, Any],
    ) -> None:
        super().__init__()
        self.root = root
        self.training = training
        self.opened = opened
        self.switches: dict[nn.Module, None] = {}
        self.kept: dict[str, Kept] = {}
        self.inlined: dict[nn.Module, None] = {}
        self.borrowed = borrowed
        self.reads = TensorReads(self, borrowed)
        self.paths: dict[nn.Module, str] = {m: name for name, m in root.named_modules()}
        self._tensors: dict[int, tuple[nn.Module, str, str]] = {}
        for kind in ("_parameters", "_buffers"):
            for owner in self.paths:
                for attr, tensor in getattr(owner, kind).items():
                    if tensor is not None:
                        self._tensors.setdefault(id(tensor), (owner, kind, attr))
        self._defaults: dict[str, Any] = {}
        self._assumed: dict[str, type] = {}
        self._by_position = False
        self._stack: dict[str, tuple[str, type]] = {}
        self._calls: dict[str, int] = {}
        self._entered: list[str] = []  # paths of modules, in the order of their calls
        self._placed: dict[nn.Module, None] = {}  # whose place is guarded
        self._reach = Reach()
        self._opaque: list[tuple[nn.Module, Any, Any]] = []  # calls of code that is not looked into
        self._trace()

    def _trace(self) -> None:
        cls = user_class(self.root)
        forward = self.lookup(cls.__mro__, "forward")
        self.guard("of_class", self.root, cls, "the root")
        self._guard_entry(self.root, "__dict__", "forward", MISSING)
        if "forward" in self.root.__dict__ or not isinstance(forward, types.FunctionType):
            raise Stop("has a forward that was replaced on the instance")
        args, kwargs = self._arguments(forward)
        result = self.call(forward, (self.root, *args), kwargs)
        found = [id(container) for container in containers_in(result)]
        if len(set(found)) < len(found) or self._escaped.keys() & set(found):
            raise Stop("returns a container that is elsewhere as well")
        self.escape(result)
        self._escaped.clear()
        self.create_node("output", "output", (self.argument(result),))
        self.guard("answer", has_global_hooks, (), False)

    @property
    def variant(self) -> Variant:
        guards = Guards(self.facts)
        return Variant(self.graph, self._defaults, self._assumed, self._by_position, guards)

    # -- inputs ---------------------------------------------------------------------------------

    def _arguments(self, forward: types.FunctionType) -> tuple[list[Any], dict[str, Any]]:
        """The arguments of the root's forward, as values to trace with.

        Optional ones take their default, and there are no keywords beside those that are named, so
        that code may test for them. Calls are checked for both.
        """
        given: list[Any] = []
        by_keyword: dict[str, Any] = {}
        self._by_position = hasattr(forward, "__wrapped__")  # a wrapper may tell them apart
        for p in list(inspect.signature(forward).parameters.values())[1:]:
            if p.kind is p.VAR_KEYWORD:
                continue
            is_optional = p.default is not p.empty
            if is_optional and not _is_constant(p.default):
                raise Stop(f"has a default argument that a graph can't hold ({p.name})")
            default = (p.default,) if is_optional else ()
            if p.kind is p.VAR_POSITIONAL:
                self.create_node("placeholder", f"*{p.name}", ())
                self._defaults[f"*{p.name}"] = ()
                continue
            node = self.create_node("placeholder", p.name, default)
            if p.annotation is torch.Tensor:
                node.type = p.annotation
            if is_optional:
                self._defaults[p.name] = p.default
            elif p.kind is p.KEYWORD_ONLY:
                by_keyword[p.name] = Traced(node)
            else:
                given.append(Traced(node))
        return given, by_keyword

    # -- what is known of traced values ---------------------------------------------------------

    def is_none(self, value: Traced) -> bool | None:
        if value.node.op == "placeholder":
            self._assumed.setdefault(str(value.node.target), object)
            return False
        if value.node.op == "get_attr" or self.is_tensor(value):
            self.reads.must_be_tensor(value.node)
            return False
        return None

    def is_tensor(self, value: Traced, *, assume: bool = False) -> bool:
        def assumed(argument: fx.Node) -> bool:
            name = str(argument.target)
            if assume:
                self._assumed[name] = torch.Tensor
            return self._assumed.get(name) is torch.Tensor

        def layer(name: str) -> nn.Module:
            """A module that does what its class does."""
            module = self.root.get_submodule(name)
            if has_hooks(module) or "forward" in module.__dict__:
                return nn.Module()
            self.guard("no_hooks", module, name)
            self._guard_entry(module, "__dict__", "forward", MISSING)
            return module

        return is_tensor(value.node, layer, assumed)

    def shape(self, value: Traced) -> torch.Size:
        for owner, attr, shape in self.reads.slots(value.node):
            self.may_have_changed(owner)
            self.guard("shape", owner, attr, shape, join(self.paths.get(owner, ""), attr))
        return super().shape(value)

    # -- modules --------------------------------------------------------------------------------

    def module_argument(self, module: nn.Module) -> fx.Node:
        return self.create_node("get_attr", self._path(module))

    def _path(self, module: nn.Module) -> str:
        """The name by which the graph refers to a module, guarded: it may have others."""
        if module not in self.paths:
            raise Stop(f"uses a module that is no registered part of it ({type(module).__name__})")
        name = self.paths[module]
        if module not in self._placed:
            self._placed[module] = None
            parent: Any = self.root
            for part in filter(None, name.split(".")):
                self._guard_entry(parent, "_modules", part, parent._modules[part])
                parent = parent._modules[part]
        return name

    def call_module(self, module: nn.Module, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        if self.is_fresh(module):
            return self.call(self.attribute(module, "forward"), args, kwargs)
        name = self._path(module)
        if module in self.opened and name not in self.kept:
            attempt = _Attempt(self)
            try:
                with self._inside(module):
                    return self._inline(module, args, kwargs)
            except Stop as stop:
                attempt.undo()
                self.kept[name] = Kept.because(name, module, stop)
        return self._call_leaf(module, name, args, kwargs)

    def _inline(self, module: nn.Module, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        """Run the forward that the user wrote."""
        cls = user_class(module)
        if has_hooks(module):
            raise Stop("has hooks")
        if cls.__call__ is not nn.Module.__call__ or "_call_impl" in module.__dict__:
            raise Stop("has a __call__ of its own")
        forward = self.attribute(module, "forward")
        # Some modules choose one of their methods: `self.forward = self.forward_fused`.
        if getattr(forward, "__self__", None) is not module:
            raise Stop("has a forward that was replaced on the instance")
        result = self.call(forward, args, kwargs)
        self.inlined[module] = None
        self.guard("no_hooks", module, self.paths[module])
        self.guard("of_class", module, cls, self.paths[module])
        return result

    def _call_leaf(self, module: nn.Module, name: str, args: Any, kwargs: Any) -> Traced:
        with self._inside(module):
            result = self.record("call_module", name, args, kwargs)
        is_known = _is_known(module)
        if not is_known:
            self.escape(*args, *kwargs.values())
            self._opaque.append((module, args, kwargs))
        passed = [m for m in (*args, *kwargs.values()) if isinstance(m, nn.Module)]
        within = {inner for m in (module, *passed) for inner in m.modules()}
        self.reads.forget(within, buffers_only=is_known)
        return result

    @contextlib.contextmanager
    def _inside(self, module: nn.Module) -> Iterator[None]:
        """Nodes note that they are made in a call of `module`."""
        path, outer = self.paths[module], self._stack
        calls = self._calls[path] = self._calls.get(path, 0) + 1
        self._entered.append(path)
        key = path if calls == 1 else f"{path}@{calls - 1}"  # as torch.fx names them
        self._stack = {**outer, key: (path, user_class(module))}
        try:
            yield
        finally:
            self._stack = outer

    def may_have_changed(self, holder: Any) -> None:
        if not self._opaque:
            return
        unknown = []
        for call in self._opaque:
            module, args, kwargs = call
            if not self._reach.includes(module, call, holder):
                unknown.append(call)
            elif not self._changes_nothing(module, args, kwargs):
                kind = type(module).__name__
                raise Stop(f"reads what {self.paths[module]} ({kind}), which it calls, may change")
        self._opaque = unknown

    def _changes_nothing(self, module: nn.Module, args: Any, kwargs: Any) -> bool:
        """Whether the forward of a module that stays a call only does what a trace may do."""
        if self.paths[module] in self.kept:
            return False
        graph, self.graph = self.graph, fx.Graph()  # whose names are its own
        attempt, opened = _Attempt(self), self.opened
        self._opaque, opaque = [], self._opaque
        self.opened = set(module.modules())
        try:
            self._inline(module, args, kwargs)
            proved = not self._opaque and self.kept == attempt.copies["kept"]
        except Stop:
            proved = False
        self.opened, self._opaque = opened, opaque
        facts = self.facts[attempt.lengths["facts"] :] if proved else []
        try:
            attempt.undo()
        finally:
            self.graph = graph
        self.facts += facts
        return proved

    # -- attributes of modules ------------------------------------------------------------------

    def module_attribute(self, module: nn.Module, name: str) -> Any:
        cls = user_class(module)
        if cls.__getattribute__ is not object.__getattribute__:
            raise Stop("has a __getattribute__ of its own")
        label = "" if self.is_fresh(module) else self._path(module)
        if name == "training":
            return self._flag(module, cls)
        members = module.__dict__
        derived = members.get("_fxtie_derived", {}).get(name)
        if derived is not None:
            return self.reads.derive(derived)
        found = self.lookup(cls.__mro__, name)
        if hasattr(type(found), "__set__"):  # a data descriptor comes first
            return self._bound(found, module)
        label = join(label, name)
        if name in members:
            return self._member(module, name, members[name], label)
        self._guard_entry(module, "__dict__", name, MISSING)
        if found is not MISSING:
            return self._bound(found, module)
        if cls.__getattr__ is not nn.Module.__getattr__:
            raise Stop("has a __getattr__ of its own")
        # A name is in one of these only: nn.Module sees to that.
        kinds = ("_parameters", "_buffers", "_modules")
        for mapping in kinds:
            entries = members.get(mapping, {})
            if name in entries:
                return self._registered(module, mapping, name, entries[name], label)
        for mapping in kinds:
            self._guard_entry(module, mapping, name, MISSING)
        return MISSING

    def _guard_entry(self, module: nn.Module, mapping: str, name: str, value: Any) -> None:
        if not self.is_fresh(module):
            self.guard("entry", module, mapping, name, value, self.paths[module])

    def _flag(self, module: nn.Module, cls: type) -> bool:
        if self.lookup(cls.__mro__, "training") is not MISSING:
            raise Stop("has a `training` flag of its own")
        if self.is_fresh(module):
            return module.training
        self.may_have_changed(module)
        self.switches[module] = None
        return self.training

    def _member(self, module: nn.Module, name: str, value: Any, label: str) -> Any:
        """A plain attribute of a module."""
        if name.startswith("_fxtie_") or name in ("_parameters", "_buffers"):
            raise Stop(f"reads .{name}")
        if self.is_fresh(module):
            return self.fresh(value) if name == "_modules" else self.taken(value)
        if isinstance(value, torch.Tensor) and id(value) not in self._tensors:
            self.guard("is_tensor", module, "__dict__", name, label)
            return self.reads.read(module, name, join(self.paths[module], name), value, label)
        if name != "_modules":
            self.may_have_changed(module)
        self._guard_entry(module, "__dict__", name, value)
        if type(value) in CONTAINERS:
            self.labels[id(value)] = label
        return self.taken(value)

    def _registered(
        self, module: nn.Module, mapping: str, name: str, value: Any, label: str
    ) -> Any:
        """A parameter, a buffer or a child of a module."""
        if isinstance(value, torch.Tensor):
            if self.is_fresh(module):
                raise Stop("makes a module that has tensors")
            return self.reads.read(module, name, label, value, label)
        if value is None:
            self.may_have_changed(module)
        self._guard_entry(module, mapping, name, value)
        return value

    # -- tensors --------------------------------------------------------------------------------

    def tensor(self, tensor: torch.Tensor) -> Traced:
        if id(tensor) in self._tensors:  # found in a list of the user's, say
            owner, mapping, attr = self._tensors[id(tensor)]
            self._guard_entry(owner, mapping, attr, tensor)
            label = join(self.paths[owner], attr)
            return self.reads.read(owner, attr, label, tensor, label)
        if isinstance(tensor, nn.Parameter):
            raise Stop("uses a parameter that is not part of it")
        name = next((n for n, known in self.borrowed.items() if known is tensor), None)
        if name is None:
            names = (f"_tensor_constant{i}" for i in itertools.count())
            taken = {*self.borrowed, *self.root.__dict__}
            name = next(name for name in names if name not in taken)
            self.borrowed[name] = tensor
        return self.reads.read(self.root, name, name, tensor, name)

    # -- nodes ----------------------------------------------------------------------------------

    def create_node(self, *args: Any, **kwargs: Any) -> fx.Node:
        node = super().create_node(*args, **kwargs)
        if self._stack:
            node.meta["nn_module_stack"] = dict(self._stack)
        return node

    def record(self, op: str, target: Any, args: Sequence[Any], kwargs: Any = None) -> Traced:
        value = super().record(op, target, args, kwargs)
        if is_opaque(target) and self.reads.any_in(value.node.all_input_nodes):
            self.reads.forget(self.paths.keys(), buffers_only=False)
        for changed in changed_in_place(value.node):
            for origin in aliases(changed):
                if "tie" in origin.meta:
                    raise Stop("changes a derived tensor in place")
                if origin.op != "placeholder":
                    self.reads.forget(self.paths.keys(), buffers_only=False)
        return value

    def check(self, test: Iterator[Any], expected: bool, message: str) -> None:
        """A rank check of torch's own layers stands ahead of a function that checks for itself."""
        if not self.running[-1].is_of_torch:
            return super().check(test, expected, message)
        attempt = _Attempt(self)
        try:
            value = next(test)
        except Stop:
            value = None
        if type(value) is bool:
            super().check(iter([value]), expected, message)
        else:
            attempt.undo()


class _Attempt:
    """The state of a trace, to go back to."""

    def __init__(self, tracer: ModuleTracer) -> None:
        self.tracer, self.made, self.writes = tracer, tracer.made, len(tracer.writes)
        self.last = next(iter(reversed(tracer.graph.nodes)), None)
        # Lengths of what grows with the model: copies would make the trace quadratic.
        self.lengths = {name: len(getattr(tracer, name)) for name in _GROWING}
        self.copies = {name: copy.copy(getattr(tracer, name)) for name in _COPIED}

    def undo(self) -> None:
        """Take back everything since."""
        tracer, erased = self.tracer, set()
        for node in reversed(tracer.graph.nodes):
            if node is self.last:
                break
            tracer.graph.erase_node(node)
            erased.add(node)
        tracer.reads.take_back(erased)
        for path in tracer._entered[self.lengths["_entered"] :]:
            tracer._calls[path] -= 1
        for name, length in self.lengths.items():
            grown = getattr(tracer, name)
            while len(grown) > length:
                grown.popitem() if isinstance(grown, dict) else grown.pop()
        for name, value in self.copies.items():
            setattr(tracer, name, copy.copy(value))
        tracer.looked_up = {}  # whose facts may be gone
        if any(number < self.made for number in tracer.writes[self.writes :]):
            raise Stop("hands a container to a part that can't be captured and writes to it")


_GROWING = ("facts", "inlined", "_placed", "_entered")
_COPIED = ("kept", "_assumed", "_opaque", "_escaped")


def has_global_hooks() -> bool:
    """Whether hooks are registered for all modules: those inside of a graph would not call them."""
    return bool(nn.modules.module._has_any_global_hook())  # type: ignore[no-untyped-call]


def _is_known(module: nn.Module) -> bool:
    """Whether a call runs nothing but torch's own layers, which change only themselves."""
    return isinstance(module, torch.jit.ScriptModule) or all(
        type(m).__module__.startswith(("torch.nn.", "einops."))
        and not (has_hooks(m) or "forward" in m.__dict__)
        for m in module.modules()
    )


def _is_constant(value: Any) -> bool:
    return type(value) in ATOMS or (type(value) is tuple and all(map(_is_constant, value)))
