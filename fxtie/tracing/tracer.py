"""A torch.fx tracer that refuses what a graph could not say.

In: Python code that runs on proxies. Out: nodes in a `torch.fx.Graph`, or a `Stop` with the reason.
Stock tracing bakes some things in without a word: constants made without a proxy, random numbers,
writes to modules, grad-mode contexts, type tests. Here each of them is either recorded as a node or
stops the trace. Called by `lowering.py` (transforms) and `module_tracer.py` (forwards).
"""

from __future__ import annotations

import contextlib
import functools
import operator
import sys
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

import torch
from torch import fx, nn
from torch.overrides import TorchFunctionMode, is_tensor_method_or_property

from fxtie.tracing.branches import asks_type, unpacked_length
from fxtie.tracing.stops import Stop, is_machinery, location, user_frame
from fxtie.tracing.watching import has_proxy, watching


class Traced(fx.Proxy):
    """A proxy whose type tests are answered by its tracer instead of being wrong in silence."""

    # `isinstance(x, torch.Tensor)` looks at `type(x)` first and at `x.__class__` next.
    @property  # type: ignore[misc]
    def __class__(self) -> type:
        frame = sys._getframe(1)
        asks = frame.f_code is not torch.is_tensor.__code__
        if asks and is_machinery(frame.f_globals.get("__name__", "")):
            return Traced
        tracer: Tracer = object.__getattribute__(self, "tracer")
        if not asks_type(frame):
            # Compiled code, which crashes with what only says to be a tensor, and may crash of a
            # Stop. torch's own goes on to have the call recorded; what does not is stopped later.
            tracer.suspect(frame)
            return Traced
        return tracer.assumed_type(self)

    # torch.fx's own disassembles the code anew each time.
    def __iter__(self) -> Iterator[Any]:
        tracer: Tracer = object.__getattribute__(self, "tracer")
        length = unpacked_length(sys._getframe(1))
        return tracer.iter(self) if length is None else iter([self[i] for i in range(length)])  # type: ignore[index]

    def __getattr__(self, name: str) -> TracedAttribute:
        return TracedAttribute(self, name)

    def __setattr__(self, name: str, value: Any) -> None:
        if name not in _OF_PROXIES:
            tracer: Tracer = object.__getattribute__(self, "tracer")
            raise tracer.stop(f"sets .{name} of a traced value")
        object.__setattr__(self, name, value)

    def __setitem__(self, key: Any, value: Any) -> None:
        tracer: Tracer = object.__getattribute__(self, "tracer")
        tracer.create_proxy("call_function", operator.setitem, (self, key, value), {})

    def __hash__(self) -> int:
        if is_machinery(sys._getframe(1).f_globals.get("__name__", "")):
            return object.__hash__(self)
        tracer: Tracer = object.__getattribute__(self, "tracer")
        raise tracer.stop(f"looks a traced value up ({self.node.name})")


_OF_PROXIES = frozenset({"tracer", "node", "_node", "root", "attr", "_shape"})


class TracedAttribute(fx.proxy.Attribute, Traced):
    """An attribute of a traced value, or its method."""


def _augmented(op: Callable[..., Any]) -> Callable[[Traced, Any], Any]:
    def record(self: Traced, other: Any) -> Any:
        tracer: Tracer = object.__getattribute__(self, "tracer")
        return tracer.create_proxy("call_function", op, (self, other), {})

    return record


# torch.fx's proxies have none of these: it takes `x += 1`, which changes x, for `x = x + 1`.
for _op in (
    *(operator.iadd, operator.isub, operator.imul, operator.itruediv, operator.ifloordiv),
    *(operator.imod, operator.ipow, operator.imatmul),
    *(operator.iand, operator.ior, operator.ixor, operator.ilshift, operator.irshift),
):
    setattr(Traced, f"__{_op.__name__}__", _augmented(_op))


class TracedTensor(Traced):
    """A proxy of a tensor of known shape, on which code may then branch.

    Its dtype and device are not known: both may change later.
    """

    def __init__(self, node: fx.Node, tracer: Tracer, shape: torch.Size) -> None:
        super().__init__(node, tracer)
        self._shape = shape

    @property
    def shape(self) -> torch.Size:
        self.tracer.reads_shapes = True  # type: ignore[attr-defined]
        return self._shape

    @property
    def ndim(self) -> int:
        return len(self.shape)

    def size(self, dim: int | None = None) -> Any:
        return self.shape if dim is None else self.shape[dim]

    def dim(self) -> int:
        return len(self.shape)

    def numel(self) -> int:
        return self.shape.numel()


class Tracer(fx.Tracer):
    """`torch.fx.Tracer` with `Traced` proxies. See the file's docstring."""

    looks_ahead = False
    """Whether torch is at work for the tracer itself, and may do what traced code may not."""

    reads_shapes = False
    """Whether the code has asked for the shape of a tensor, so that the graph is for that alone."""

    stopped: Stop | None = None
    """The first `Stop`, which traced code may have caught."""

    suspected: tuple[int, int, Stop] | None = None
    """A call of compiled code with a traced value: its frame and instruction, and the `Stop`."""

    def __init__(self) -> None:
        super().__init__(autowrap_modules=())  # type: ignore[arg-type]  # see `listening.py`
        self.thread = threading.get_ident()

    def is_elsewhere(self) -> bool:
        """Whether another thread has come upon what is patched for this tracer."""
        return threading.get_ident() != self.thread

    def stop(self, reason: str) -> Stop:
        """A `Stop`, remembered in case that the traced code catches it."""
        stop = Stop(reason)
        self.stopped = self.stopped or stop
        return stop

    def record(
        self, func: Callable[..., Any], op: str, target: Any, args: Any, kwargs: dict[str, Any]
    ) -> Any:
        """A torch call that no proxy takes part in."""
        return self.create_proxy(op, target, args, kwargs)

    def read_property(self, tensor: torch.Tensor, getter: Callable[..., Any]) -> Any:
        """A property (`shape`, `dtype`, ...) of a tensor that is no proxy."""
        return getter(tensor)

    def suspect(self, frame: FrameType) -> None:
        """Remember the call that a frame is at, which may be none that is recorded."""
        if self.suspected is not None and self.suspected[:2] != (id(frame), frame.f_lasti):
            self.stopped = self.stopped or self.suspected[2]
        stop = Stop("hands a traced value to compiled code")
        self.suspected = id(frame), frame.f_lasti, stop

    def clear(self, frame: FrameType | None) -> None:
        """Take the suspicion back if this is within the call: it is being recorded."""
        while frame is not None and self.suspected is not None:
            if self.suspected[:2] == (id(frame), frame.f_lasti):
                self.suspected = None
            frame = frame.f_back

    def raise_swallowed(self) -> None:
        """Raise the `Stop` that traced code has caught, or that is due by now."""
        stop = self.stopped or (self.suspected and self.suspected[2])
        self.suspected = None
        if stop is not None:
            raise stop

    def proxy(self, node: fx.Node) -> Traced:
        return Traced(node, self)

    def assumed_type(self, proxy: Traced) -> type:
        """What `isinstance` sees of a proxy in the traced code."""
        if issubclass(type(proxy), TracedTensor):
            return torch.Tensor
        raise self.stop(f"tests the type of a traced value ({proxy.node.name})")

    def covers(self, module: nn.Module) -> bool:
        """Whether a module is part of what is traced: a write to it is a side effect."""
        return False

    def read_flag(self, module: nn.Module) -> bool:
        """The `training` flag of such a module."""
        return module.__dict__["training"]  # type: ignore[no-any-return]

    def create_node(
        self,
        kind: str,
        target: Any,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        name: str | None = None,
        type_expr: Any = None,
    ) -> fx.Node:
        if self.is_elsewhere():  # where derived tensors are no traced values
            self.stop("hands a traced value to another thread")
        # Without what torch.fx notes here for tools of its own, at several times the cost; and in
        # arguments that are set afterwards it looks for no symbolic sizes, which a trace has not.
        node = self.graph.create_node(kind, target, (), {}, name or _name_for(target), type_expr)
        if args:
            _set_args(node, args)
        if kwargs:
            _set_kwargs(node, kwargs)
        if self.suspected is not None:
            self.clear(sys._getframe(1))
        frame = user_frame(sys._getframe(1))
        if frame is not None:
            node.meta["stack_trace"] = location(frame.f_code, frame.f_lineno)
        return node

    def create_arg(self, a: Any) -> Any:
        # Ahead of torch.fx's own long list of types: most arguments are one of these.
        kind = type(a)
        if kind in CONSTANTS:
            return a
        if kind in _PROXIES:
            return a.node
        if kind is tuple or kind is list:
            return kind([x if type(x) in CONSTANTS else self.create_arg(x) for x in a])
        if kind is dict and all(type(key) is str for key in a):  # above all: keyword arguments
            return {key: self.create_arg(value) for key, value in a.items()}
        return self.create_other_arg(a)

    def create_other_arg(self, a: Any) -> Any:
        """`create_arg` of what is neither a constant nor a proxy nor a plain sequence."""
        if isinstance(a, float):
            return float(a)  # numpy's float64 is one, and prints as what generated code can't read
        return super().create_arg(a)


# Past `Node.__setattr__`, which looks after the tables of a graph that args don't stand in.
_set_args, _set_kwargs = fx.Node.args.fset, fx.Node.kwargs.fset  # type: ignore[attr-defined]


def _name_for(target: Any) -> str:
    """What torch.fx names a node for."""
    return _snake_case(target if isinstance(target, str) else target.__name__)


@functools.lru_cache(maxsize=4096)
def _snake_case(name: str) -> str:
    return fx.Graph()._target_to_str(name)


_PROXIES = frozenset({Traced, TracedTensor, TracedAttribute})
CONSTANTS = frozenset({int, float, bool, str, type(None), torch.dtype, torch.device})


class _Recorder(TorchFunctionMode):
    """Records torch calls that no proxy takes part in, which would be folded to constants."""

    def __init__(self, tracer: Tracer) -> None:
        super().__init__()
        self.tracer = tracer

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        if self.tracer.is_elsewhere() or self.tracer.looks_ahead:
            return func(*args, **kwargs)
        if name == "__get__" and not has_proxy(args):
            return self.tracer.read_property(args[0], func)
        traced = has_proxy(args) or has_proxy(kwargs)
        if name in _METADATA or (traced and isinstance(func, _SPECIAL)):
            return func(*args, **kwargs)
        op, target = ("call_method", name) if _is_method(func) else ("call_function", func)
        if traced:
            return self.tracer.create_proxy(op, target, args, kwargs)
        return self.tracer.record(func, op, target, args, kwargs)


_is_method = functools.lru_cache(maxsize=1024)(is_tensor_method_or_property)  # 4 us uncached

_METADATA = frozenset(
    {"__get__", "size", "dim", "numel", "is_floating_point", "is_complex", "stride", "__len__"}
)


# Which torch.fx's proxies know how to record.
_SPECIAL = (torch._C.ScriptMethod, torch._ops.HigherOrderOperator)


@contextlib.contextmanager
def strictly(tracer: Tracer) -> Iterator[None]:
    """While it lasts, code that a graph cannot speak of raises `Stop` instead of being baked in."""
    with watching(tracer), _Recorder(tracer):
        yield
