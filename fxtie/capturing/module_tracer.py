"""A module's forward -> a graph, with derived tensors lowered as they are read.

In: a path copy (`tied/path_copy.py`) whose targets are derived attributes, and the modules to
open. Out: a graph, and the guards under which it is what the forward computes.

Only modules on the way to a target are opened; all others stay one opaque call. An opened module
that can't be traced is rolled back to such a call, and reported as kept.
"""

from __future__ import annotations

import contextlib
import inspect
import types
from collections.abc import Iterable, Iterator, Sequence, Set
from typing import Any

import torch
from torch import fx, nn

from fxtie import _torch
from fxtie.capturing.attempt import Attempt
from fxtie.capturing.reach import Reach, Reached, runs_only_torch
from fxtie.capturing.reads import TensorReads
from fxtie.capturing.report import Kept
from fxtie.capturing.unseen_calls import UnseenCalls
from fxtie.tied.variant import Variant
from fxtie.tracing.gate import is_opaque
from fxtie.tracing.graphs import changed_in_place, changes_shape
from fxtie.tracing.guards import ATOMS, MISSING, Guards, has_hooks
from fxtie.tracing.inference import Aliases, is_tensor
from fxtie.tracing.stops import Stop
from fxtie.tracing.traced import Traced
from fxtie.tracing.user_class import user_class
from fxtie.words import join


class ModuleTracer(UnseenCalls):
    """The trace of the forward of one region in one mode. Raises `Stop` if that has none.

    Args:
        root: the root of the region.
        training: what every `training` flag is taken to be.
        opened: modules to trace through.
        borrowed: filled with what the graph reads from outside of the region, modules and
            tensors, by the attribute of the root under which it refers to them.
        shared: see `Reach`; the same for all traces of a model.

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
        shared: Reached | None = None,
    ) -> None:
        super().__init__()
        self.root = root
        self.training = training
        self.opened = opened
        self.switches = {}
        self.kept: dict[str, Kept] = {}
        self.inlined: dict[nn.Module, None] = {}
        self.borrowed = borrowed
        self.paths = {module: name for name, module in root.named_modules()}
        self.reads = TensorReads(self, self.paths, borrowed)
        self._defaults: dict[str, Any] = {}
        self._assumed: dict[str, type] = {}
        self._by_position = False
        self._stack: dict[str, tuple[str, type]] = {}
        self._calls: dict[str, int] = {}
        self._entered: list[str] = []  # paths of modules, in the order of their calls
        self._placed = {}
        self._seen = {}
        self._reach = Reach(shared or Reached())
        self._opaque = {}
        self._unseen = {}
        self._effects = []
        self._is_reshaped = False
        self._aliases = Aliases(root)
        self._trace()

    def _trace(self) -> None:
        forward = self.lookup(self.class_of(self.root, "the root").__mro__, "forward")
        self._guard_entry(self.root, "__dict__", "forward", MISSING)
        if "forward" in self.root.__dict__ or not isinstance(forward, types.FunctionType):
            raise Stop("has a forward that was replaced on the instance")
        args, kwargs = self._arguments(forward)
        result = self.call(forward, (self.root, *args), kwargs)
        self.is_exact = True
        output = self.argument(result)
        self.escape(result)
        self.create_node("output", "output", (output,))
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
        return False if self.is_tensor(value, assume=True) else None

    def is_tensor(self, value: Traced, *, assume: bool = False) -> bool:
        def assumed(argument: fx.Node) -> bool:
            if argument.op == "get_attr":
                self.reads.must_be_tensor(argument)
                return True
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
            self.class_of(module, name)
            if "return_indices" in module.__dict__:  # of a pooling
                self._guard_entry(module, "__dict__", "return_indices", module.return_indices)
            if module._modules:
                self.look(module._modules, name)
            return module

        return is_tensor(value.node, layer, assumed, lambda n: self._gives_tensor(n, assume))

    def shape(self, value: Traced) -> torch.Size:
        if self._is_reshaped:
            raise Stop("asks for a shape after it has changed one in place")
        for owner, attr, shape in self.reads.slots(value.node):
            self.may_have_changed(owner)
            self.guard("shape", owner, attr, shape, join(self.paths.get(owner, ""), attr))
        return super().shape(value)

    # -- modules --------------------------------------------------------------------------------

    def module_argument(self, module: nn.Module) -> fx.Node:
        if not (path := self.path(module)):
            raise Stop("passes itself on")
        return self.create_node("get_attr", path)

    def call_module(self, module: nn.Module, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        if self.is_fresh(module):
            return self.call(self.attribute(module, "forward"), args, kwargs)
        name = self.path(module)
        if module in self.opened and name not in self.kept:
            attempt = Attempt(self)
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
        for name in ("__call__", "_call_impl"):
            if self.lookup(cls.__mro__, name) is not vars(nn.Module)[name]:
                raise Stop(f"has a {name} of its own")
        forward = self.attribute(module, "forward")
        # Some modules choose one of their methods: `self.forward = self.forward_fused`.
        if getattr(forward, "__self__", None) is not module:
            raise Stop("has a forward that was replaced on the instance")
        result = self.call(forward, args, kwargs)
        self.inlined[module] = None
        self.guard("no_hooks", module, self.paths[module])
        return result

    def _call_leaf(self, module: nn.Module, name: str, args: Any, kwargs: Any) -> Traced:
        with self._inside(module):
            result = self.record("call_module", name, args, kwargs)
        self.escape(*args, *kwargs.values())
        given = result.node.all_input_nodes
        is_read = self.reads.any_in(self._aliases.of(given))
        if is_read and not self._changes_nothing(module, args, kwargs):
            self._changed(result.node, given)
        if isinstance(module, torch.jit.ScriptModule) or runs_only_torch(module):
            if any(getattr(m, "inplace", False) for m in module.modules()):
                self._changed(result.node, given)
            self.reads.forget({*module.modules()}, buffers_only=True)
            return result
        self._runs_unseen(self._reach.add(module, args, kwargs), module, args, kwargs)
        self._unseen[result.node] = module, args, kwargs
        return result

    @contextlib.contextmanager
    def _inside(self, module: nn.Module) -> Iterator[None]:
        """A block whose nodes belong to a call of `module`."""
        path, outer = self.paths[module], self._stack
        calls = self._calls[path] = self._calls.get(path, 0) + 1
        self._entered.append(path)
        key = path if calls == 1 else f"{path}@{calls - 1}"  # as torch.fx names them
        self._stack = {**outer, key: (path, user_class(module))}
        try:
            yield
        finally:
            self._stack = outer

    # -- nodes ----------------------------------------------------------------------------------

    def create_node(self, *args: Any, **kwargs: Any) -> fx.Node:
        node = super().create_node(*args, **kwargs)
        if self._stack:
            node.meta["nn_module_stack"] = dict(self._stack)
        return node

    def record(self, op: str, target: Any, args: Sequence[Any], kwargs: Any = None) -> Traced:
        if op == "call_method" and target == "backward":
            raise Stop("runs a backward, after which a derived tensor would need another graph")
        value = super().record(op, target, args, kwargs)
        if is_opaque(target) and self.reads.any_in(value.node.all_input_nodes):
            self.reads.forget(self.paths.keys(), buffers_only=False)
        self._changed(value.node, changed_in_place(value.node))
        if changes_shape(value.node):
            if len(value.node.all_input_nodes) > 1:
                raise Stop(f"gives a tensor another storage in place ({value.node.target})")
            self._is_reshaped = True
        return value

    def _changed(self, node: fx.Node, changed: Iterable[fx.Node]) -> None:
        """Note that a node changes the values of others in place."""
        for origin in self._aliases.of(changed):
            if "tie" in origin.meta:
                raise Stop("changes a derived tensor in place")
            owner = self.reads.owner_of_buffer(origin)
            if owner is None:  # an argument, say, which may be a stored tensor
                self._effects.append(node)
            if owner is None or self.borrowed:
                self.reads.derive_anew(self.paths.keys(), buffers_only=False)
            else:
                self.reads.derive_anew({owner}, buffers_only=True)

    def check(self, test: Iterator[Any], expected: bool, message: str) -> None:
        """As usual, but without rank checks of torch's layers: torch's functions check as well."""
        if not self.running[-1].is_of_torch:
            return super().check(test, expected, message)
        attempt = Attempt(self)
        try:
            value = next(test)
        except Stop:
            value = None
        if type(value) is bool:
            super().check(iter([value]), expected, message)
        else:
            attempt.undo_nodes()


def has_global_hooks() -> bool:
    """Whether hooks are registered for all modules: those inside of a graph would not call them."""
    return _torch.has_global_hooks()


def _is_constant(value: Any) -> bool:
    return type(value) in ATOMS or (type(value) is tuple and all(map(_is_constant, value)))
