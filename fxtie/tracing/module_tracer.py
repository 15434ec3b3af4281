"""A module's forward -> a graph, with derived tensors lowered as they are read.

In: a path copy (`runtime/copying.py`) whose targets are derived attributes, and the modules to
open. Out: a traced graph and what it took for granted. Called by `capture.py`.

Only modules on the way to a target are opened; all others stay one opaque call. An opened module
that can't be traced is rolled back to such a call, and told as kept.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import inspect
import itertools
import operator
import sys
import types
import weakref
from collections.abc import Callable, Set
from typing import Any, TypeVar

import torch
from torch import fx, nn

from fxtie.graphs import changed_in_place
from fxtie.names import has_hooks, join
from fxtie.report import Kept
from fxtie.runtime import tied
from fxtie.runtime.copied import user_class
from fxtie.runtime.region import Variant
from fxtie.tracing.branches import checked_outcome
from fxtie.tracing.concrete import ConcreteTensors
from fxtie.tracing.inference import is_tensor
from fxtie.tracing.listening import listening, record_imported_math, tells_of_its_mode
from fxtie.tracing.reads import TensorReads
from fxtie.tracing.side_effects import take_back, unchanged
from fxtie.tracing.stops import Stop
from fxtie.tracing.tracer import CONSTANTS, Traced, Tracer, strictly
from fxtie.tracing.watching import RandomNumbers, patched

_T = TypeVar("_T", bound=Traced)


@listening
def trace_module(
    module: nn.Module, training: bool, opened: Set[nn.Module], borrowed: dict[str, nn.Module]
) -> ModuleTracer:
    """Trace `module` in one mode.

    Args:
        module: the root of the region.
        training: what every `training` flag is taken to be.
        opened: modules to trace through.
        borrowed: filled with modules outside of the region that it reads from, by the attribute
            name under which its graph refers to them.

    Raises:
        Stop: with the reason, if the module's own forward can't be traced.
    """
    # A look at the generators takes as long as several nodes: one after each call, to find the
    # module that draws, is worth it only if any does.
    with RandomNumbers() as numbers:
        tracer, stop = _try(ModuleTracer(training, opened, borrowed, may_draw=True), module)
    if numbers.drawn:
        tracer.take_back_constants()
        tracer, stop = _try(ModuleTracer(training, opened, borrowed, may_draw=False), module)
    if stop is not None:
        raise stop
    return tracer


def _try(tracer: ModuleTracer, module: nn.Module) -> tuple[ModuleTracer, Stop | None]:
    """Let a tracer trace. Returns it, and what stopped it."""
    stop = None
    try:
        with strictly(tracer), patched(tied, "reader", tracer.reads.derive):
            tracer.trace(module)
    # The user's forward runs on proxies, which no code has to bear: whatever it raises means that
    # it can't be traced, and it is kept as it is. Faults of its own come up when it really runs.
    except Exception as error:
        stop = Stop.because_of(error)
    if tracer.take_back_values():
        stop = stop or Stop("puts traced values where they outlive the call")
    if stop is not None:
        tracer.take_back_constants()
    return tracer, stop


class ModuleTracer(Tracer):
    """The tracer of one region in one mode.

    Args:
        may_draw: whether forwards may draw random numbers, which makes constants of them.

    Attributes:
        switches: modules whose `training` flag was asked for.
        kept: opened modules that were rolled back to a call, by name.
        reads: how stored tensors are read and derived ones made.
        inlined: modules whose forward stands in the graph, beside the root's.
        variant: the graph, with the arguments that it took for granted.
    """

    def __init__(
        self,
        training: bool,
        opened: Set[nn.Module],
        borrowed: dict[str, nn.Module],
        *,
        may_draw: bool,
    ) -> None:
        super().__init__()
        self.training = training
        self.may_draw = may_draw
        self.opened = opened
        self.switches: dict[nn.Module, None] = {}
        self.kept: dict[str, Kept] = {}
        self.inlined: dict[nn.Module, None] = {}
        self._defaults: dict[str, Any] = {}
        self._tensor_arguments: set[str] = set()
        self.reads = TensorReads(self, borrowed)
        self._constants: list[str] = []
        self._moot: list[fx.Node] = []
        self._stack: dict[str, tuple[str, type]] = {}
        self._concrete = ConcreteTensors(self)
        self._values: list[weakref.ref[Traced]] = []
        self._entered: list[str] = []  # paths of modules, in the order of their calls

    def trace(self, root: Any, concrete_args: Any = None) -> fx.Graph:
        """Trace the root's forward, where modules are listened to (`listening.py`)."""
        if "forward" in root.__dict__:
            raise Stop("has a forward that was replaced on the instance")
        if not tells_of_its_mode(root):
            raise Stop("has a `training` flag of its own")
        self.root = root
        self.paths: dict[nn.Module, str] = {m: name for name, m in root.named_modules()}
        self._tensor_names: dict[int, str] = {}
        for kind in ("_parameters", "_buffers"):
            for owner, path in self.paths.items():
                for attr, tensor in getattr(owner, kind).items():
                    if tensor is not None:
                        self._tensor_names.setdefault(id(tensor), join(path, attr))
        self.graph = fx.Graph(tracer_cls=type(self))
        forward = type(root).forward
        record_imported_math(forward.__globals__)
        forward, args = self.create_args_for_root(forward, True)
        with unchanged(root, may_draw=self.may_draw):
            result = self.create_arg(forward(*args))
            self.create_node("output", "output", (result,), {})
        self.raise_swallowed()
        self._erase_moot()
        self._concrete.erase_unused()
        return self.graph

    def take_back_values(self, start: int = 0) -> bool:
        """Remove values from where they outlive the trace. Returns whether there were any."""
        if not start:
            self.reads.clear()
        return take_back(self._values[start:])

    def take_back_constants(self) -> None:
        """Remove what the trace, which comes to nothing, has put into the root."""
        for name in self._constants:
            self.root.__dict__.pop(name, None)

    @functools.cached_property
    def tensor_attrs(self) -> dict[Any, str]:  # type: ignore[override]
        """Names of tensors that are plain attributes of modules."""
        return {
            value: join(path, name)
            for module, path in self.paths.items()
            for name, value in module.__dict__.items()
            if isinstance(value, torch.Tensor | torch.ScriptObject)
        }

    @property
    def variant(self) -> Variant:
        return Variant(self.graph, self._defaults, frozenset(self._tensor_arguments))

    # -- inputs ---------------------------------------------------------------------------------

    def create_args_for_root(self, root_fn: Any, is_module: bool, concrete_args: Any = None) -> Any:
        """The arguments of the forward, as values to trace with.

        Optional ones take their default, and there are no keywords beside those that are named, so
        that code may test for them. Calls are checked for both.
        """
        parameters = list(inspect.signature(root_fn).parameters.values())[1:]
        if any(p.kind is p.VAR_POSITIONAL for p in parameters):
            root_fn, args = super().create_args_for_root(root_fn, is_module, concrete_args)
            for i, arg in enumerate(args):
                if issubclass(type(arg), fx.Proxy) and arg.node.args:
                    self._defaults[arg.node.target] = args[i] = arg.node.args[0]
            return root_fn, args
        given: list[Any] = [self.root]
        by_keyword: dict[str, Any] = {}
        for p in parameters:
            if p.kind is p.VAR_KEYWORD:
                continue
            is_optional = p.default is not p.empty
            if is_optional and not _is_constant(p.default):
                raise Stop(f"has a default argument that a graph can't hold ({p.name})")
            if is_optional:
                self._defaults[p.name] = p.default
            hint = (
                None if p.annotation is p.empty or isinstance(p.annotation, str) else p.annotation
            )
            default = (p.default,) if is_optional else ()
            value = self.create_proxy("placeholder", p.name, default, {}, type_expr=hint)
            if p.kind is p.KEYWORD_ONLY and not is_optional:
                by_keyword[p.name] = value
            elif not is_optional:
                given.append(value)
        return functools.partial(root_fn, **by_keyword), given

    def assumed_type(self, proxy: Traced) -> type:
        def assume(argument: fx.Node) -> bool:
            name = str(argument.target)
            if not name.startswith("*"):
                self._tensor_arguments.add(name)
            return name in self._tensor_arguments

        if is_tensor(proxy.node, self.root, assume):
            return torch.Tensor
        return super().assumed_type(proxy)

    def to_bool(self, obj: Any) -> bool:
        """Code may branch on a traced value where it only checks something."""
        frame = sys._getframe(2)
        of_torch = frame.f_globals.get("__name__", "").startswith("torch.nn.modules")
        outcome = checked_outcome(frame, direct=not of_torch)
        if outcome is None:
            raise self.stop("branches on a traced value")
        if of_torch:
            # A rank check ahead of a functional, which checks for itself.
            self._moot.append(obj.node)
        else:
            where = f"{frame.f_code.co_filename}:{frame.f_lineno}"
            held = obj if outcome else self.create_proxy("call_function", operator.not_, (obj,), {})
            self.create_proxy("call_function", torch._assert, (held, f"check at {where}"), {})
        return outcome

    def iter(self, obj: Any) -> Any:
        raise self.stop("iterates over a traced value")

    def _erase_moot(self) -> None:
        """Erase what only fed a dropped check."""
        erased = set()
        while self._moot:
            node = self._moot.pop()
            is_op = node.op in ("call_function", "call_method") and not changed_in_place(node)
            if is_op and not (node.users or node in erased):
                self._moot += node.all_input_nodes
                self.graph.erase_node(node)
                erased.add(node)

    # -- modules --------------------------------------------------------------------------------

    def covers(self, module: nn.Module) -> bool:
        return module in self.paths

    def path_of_module(self, mod: nn.Module) -> str:
        return self.paths[mod]

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return m not in self.opened or module_qualified_name in self.kept

    def read_flag(self, module: nn.Module) -> bool:
        self.switches[module] = None
        return self.training

    def call_module(self, m: nn.Module, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        if not self.covers(m):
            return forward(*args, **kwargs)  # made in the forward itself: nn.Softmax(1)(x)
        name, stack = self.paths[m], self._stack
        if not self.is_leaf_module(m, name):
            undo = self._checkpoint()
            outer, self.stopped = self.stopped, None
            try:
                if has_hooks(m):
                    raise Stop("has hooks")
                self._stack = self._stack_inside(m)
                result = self._run(m, args, kwargs)
                self.stopped = outer
                self.inlined[m] = None
                return result
            except Exception as error:  # as in `_try`
                stop = Stop.because_of(error)
            finally:
                self._stack = stack
            undo()
            self.kept[name] = Kept.because(name, m, stop)
        self._stack = self._stack_inside(m)
        try:
            return self.create_proxy("call_module", name, args, kwargs)
        finally:
            self._stack = stack

    def _stack_inside(self, module: nn.Module) -> dict[str, tuple[str, type]]:
        """What nodes of a call of `module` note of where they are."""
        path = self.paths[module]
        calls = self.num_calls[path] = self.num_calls.get(path, 0) + 1
        self._entered.append(path)
        key = path if calls == 1 else f"{path}@{calls - 1}"  # as torch.fx names them
        return {**self._stack, key: (path, user_class(module))}

    def _run(self, module: nn.Module, args: Any, kwargs: Any) -> Any:
        """Run the forward that the user wrote, watched for writes into the module's containers."""
        # Some modules choose one of their methods: `self.forward = self.forward_fused`.
        users = types.MethodType(user_class(module).forward, module)
        forward = module.__dict__.get("forward", users)
        if getattr(forward, "__self__", None) is not module:
            raise Stop("has a forward that was replaced on the instance")
        if not tells_of_its_mode(module):
            raise Stop("has a `training` flag of its own")
        with unchanged(module, may_draw=self.may_draw):
            result = forward(*args, **kwargs)
        self.raise_swallowed()
        return result

    def _checkpoint(self) -> Callable[[], None]:
        """A function that takes back everything recorded from now on."""
        last = next(iter(reversed(self.graph.nodes)), None)
        # Lengths of what grows with the model: copies would make the trace quadratic.
        entered, inlined, values = len(self._entered), len(self.inlined), len(self._values)
        kept, stopped = dict(self.kept), self.stopped

        def undo() -> None:
            erased = set()
            for node in reversed(self.graph.nodes):
                if node is last:
                    break
                self.graph.erase_node(node)
                erased.add(node)
            self.reads.forget(erased)
            self.kept, self.stopped, self.suspected = kept, stopped, None
            while len(self._entered) > entered:
                self.num_calls[self._entered.pop()] -= 1
            while len(self.inlined) > inlined:
                self.inlined.popitem()
            self._moot = [node for node in self._moot if node not in erased]
            self._concrete.forget(erased)
            take_back(self._values[values:])

        return undo

    def create_node(self, *args: Any, **kwargs: Any) -> fx.Node:
        node = super().create_node(*args, **kwargs)
        if node.op == "call_method" and node.target in _LOOKUPS:
            raise self.stop(f"looks up in a traced value what may not be there (.{node.target})")
        if self._stack:
            node.meta["nn_module_stack"] = dict(self._stack)
        self._concrete.note(node)
        return node

    def proxy(self, node: fx.Node) -> Traced:
        return self.follow(super().proxy(node))

    def follow(self, value: _T) -> _T:
        """Remember a value, to find out whether it outlives the trace."""
        self._values.append(weakref.ref(value))
        return value

    # -- tensors --------------------------------------------------------------------------------

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:
        name = self._tensor_names.get(id(attr_val))
        return attr_val if name is None else self.reads.read(name, name, attr_val)

    def record(
        self, func: Callable[..., Any], op: str, target: Any, args: Any, kwargs: dict[str, Any]
    ) -> Any:
        if self._concrete.can_run(args, kwargs):
            result = self._concrete.run(func, op, target, args, kwargs)
            if result is not NotImplemented:
                return result
        return super().record(func, op, target, args, kwargs)

    def read_property(self, tensor: torch.Tensor, getter: Callable[..., Any]) -> Any:
        """Of a stored tensor only the shape is sure: `.to()` changes its dtype and device."""
        name = getter.__self__.__name__  # type: ignore[attr-defined]
        if self._concrete.node_of(tensor) is not None:

            def read(tensor: torch.Tensor, name: str) -> Any:
                return getter(tensor)

            return self._concrete.run(read, "call_function", getattr, (tensor, name), {})
        if name in ("shape", "ndim") or id(tensor) not in self._tensor_names:
            return getter(tensor)
        return self.create_proxy("call_function", getattr, (tensor, name), {})

    # -- arguments ------------------------------------------------------------------------------

    def create_other_arg(self, a: Any) -> Any:
        if isinstance(a, torch.Tensor):
            if (made := self._concrete.node_of(a)) is not None:
                return made
            name = self._tensor_names.get(id(a)) or self.tensor_attrs.get(a)
            if name is None:
                if isinstance(a, nn.Parameter):
                    raise Stop("uses a parameter that is not part of it")
                # A constant from outside of the model, kept as a plain attribute as it was.
                names = (f"_tensor_constant{i}" for i in itertools.count())
                name = next(name for name in names if not hasattr(self.root, name))
                self._constants.append(name)
                self.tensor_attrs[a] = name
                self.root.__dict__[name] = a
            return self.reads.read(name, name, a).node
        if isinstance(a, nn.Module):
            if not self.covers(a):
                raise Stop(f"passes on a module that is not part of it ({type(a).__name__})")
            return self.create_node("get_attr", self.paths[a], (), {})
        if isinstance(a, dict) and type(a) is not dict:
            # Its class matters to the caller: OrderedDict, or the output classes of transformers.
            if isinstance(a, collections.defaultdict):
                raise Stop("returns or passes on a defaultdict")
            if dataclasses.is_dataclass(a):
                fields = {key: self.create_arg(value) for key, value in a.items()}
                return self.create_node("call_function", type(a), (), fields)
            return self.create_node(
                "call_function", type(a), (super().create_other_arg(dict(a)),), {}
            )
        if dataclasses.is_dataclass(a) and not all(f.init for f in dataclasses.fields(a)):
            raise Stop(f"makes a {type(a).__name__}, whose fields its __init__ does not take")
        if isinstance(a, list | tuple) and not hasattr(a, "_fields"):
            return self.create_node("call_function", type(a), (self.create_arg(list(a)),), {})
        return super().create_other_arg(a)


_LOOKUPS = frozenset({"get", "pop", "setdefault"})  # of dicts; no tensor has them


def _is_constant(value: Any) -> bool:
    return type(value) in CONSTANTS or (type(value) is tuple and all(map(_is_constant, value)))
