"""A torch.fx tracer that refuses what a graph could not say.

In: Python code that runs on proxies. Out: nodes in a `torch.fx.Graph`, or a `Stop` with the reason.
Stock tracing bakes some things in without a word: constants made without a proxy, random numbers,
writes to modules, grad-mode contexts, type tests. Here each of them is either recorded as a node or
stops the trace. Called by `lowering.py` (transforms) and `capture.py` (modules).
"""

from __future__ import annotations

import contextlib
import functools
import gc
import linecache
import random
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from types import CodeType, FrameType
from typing import Any

import torch
import torch.nn.attention
from torch import fx, nn
from torch.overrides import TorchFunctionMode, is_tensor_method_or_property


class Stop(Exception):
    """What the code does next cannot be said by a graph.

    Attributes:
        file: the file of the user's innermost statement that led here, if it is known.
        line: its line.
    """

    file: str = ""
    line: int = 0

    @classmethod
    def because_of(cls, error: Exception) -> Stop:
        """What stopped a trace, in a few words, and where. Clears the frames of `error`."""
        stop = error if isinstance(error, Stop) else None
        if stop is None:
            text = str(error).strip().split("\n", 1)[0]
            stop = Stop(f"fails on traced values with {type(error).__name__}: {text}")
        for frame, number in traceback.walk_tb(error.__traceback__):
            if not is_machinery(frame.f_globals.get("__name__", "")):
                stop.file, stop.line = frame.f_code.co_filename, number
        traceback.clear_frames(error.__traceback__)
        return stop.with_traceback(None)


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
        return tracer.assumed_type(self)

    def __hash__(self) -> int:
        if is_machinery(sys._getframe(1).f_globals.get("__name__", "")):
            return object.__hash__(self)
        tracer: Tracer = object.__getattribute__(self, "tracer")
        raise tracer.stop(f"looks a traced value up ({self.node.name})")


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

    def __init__(self) -> None:
        super().__init__()
        self.thread = threading.get_ident()

    def is_elsewhere(self) -> bool:
        """Whether another thread has come upon what is patched for this tracer."""
        return threading.get_ident() != self.thread

    def stop(self, reason: str) -> Stop:
        """A `Stop`, remembered in case that the traced code catches it."""
        self.stopped = self.stopped or Stop(reason)
        return self.stopped

    def record(
        self, func: Callable[..., Any], op: str, target: Any, args: Any, kwargs: dict[str, Any]
    ) -> Any:
        """A torch call that no proxy takes part in."""
        return self.create_proxy(op, target, args, kwargs)

    def read_property(self, tensor: torch.Tensor, getter: Callable[..., Any]) -> Any:
        """A property (`shape`, `dtype`, ...) of a tensor that is no proxy."""
        return getter(tensor)

    def raise_swallowed(self) -> None:
        """Raise the `Stop` that traced code has caught."""
        if self.stopped is not None:
            raise self.stopped

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

    def create_node(
        self,
        kind: str,
        target: Any,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        name: str | None = None,
        type_expr: Any = None,
    ) -> fx.Node:
        # Without what torch.fx notes here for tools of its own, at several times the cost.
        node = self.graph.create_node(kind, target, args, kwargs, name, type_expr)
        frame = user_frame(sys._getframe(1))
        if frame is not None:
            node.meta["stack_trace"] = _location(frame.f_code, frame.f_lineno)
        return node

    def create_arg(self, a: Any) -> Any:
        # Ahead of torch.fx's own long list of types: most arguments are one of these.
        kind = type(a)
        if kind in CONSTANTS:
            return a
        if kind is Traced or kind is TracedTensor:
            return a.node
        if kind is tuple or kind is list:
            return kind(map(self.create_arg, a))
        return self.create_other_arg(a)

    def create_other_arg(self, a: Any) -> Any:
        """`create_arg` of what is neither a constant nor a proxy nor a plain sequence."""
        if isinstance(a, float):
            return float(a)  # numpy's float64 is one, and prints as what generated code can't read
        return super().create_arg(a)


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
        if name == "__get__" and not _has_proxy(args):
            return self.tracer.read_property(args[0], func)
        traced = _has_proxy(args) or _has_proxy(kwargs)
        if name in _METADATA or (traced and isinstance(func, _SPECIAL)):
            return func(*args, **kwargs)
        is_method = is_tensor_method_or_property(func)
        op, target = ("call_method", name) if is_method else ("call_function", func)
        if traced:
            return self.tracer.create_proxy(op, target, args, kwargs)
        return self.tracer.record(func, op, target, args, kwargs)


_METADATA = frozenset(
    {"__get__", "size", "dim", "numel", "is_floating_point", "is_complex", "stride", "__len__"}
)


# Which torch.fx's proxies know how to record.
_SPECIAL = (torch._C.ScriptMethod, torch._ops.HigherOrderOperator)


def _has_proxy(value: Any) -> bool:
    if type(value) in (tuple, list):
        return any(map(_has_proxy, value))
    if type(value) is dict:
        return any(map(_has_proxy, value.values()))
    return issubclass(type(value), fx.Proxy)


# Contexts and modes that code enters or asks for, and of which a graph keeps no trace.
_MODES: tuple[tuple[Any, str, str], ...] = (
    (torch.no_grad, "__enter__", "enters torch.no_grad"),
    (torch.enable_grad, "__enter__", "enters torch.enable_grad"),
    (torch.set_grad_enabled, "__init__", "calls torch.set_grad_enabled"),
    (torch.inference_mode, "__enter__", "enters torch.inference_mode"),
    (torch.autocast, "__enter__", "enters torch.autocast"),
    (torch, "is_grad_enabled", "asks torch.is_grad_enabled()"),
    (torch, "is_inference_mode_enabled", "asks torch.is_inference_mode_enabled()"),
    (torch, "is_autocast_enabled", "asks torch.is_autocast_enabled()"),
    (torch, "is_autocast_cpu_enabled", "asks torch.is_autocast_cpu_enabled()"),
    (torch, "get_autocast_dtype", "asks torch.get_autocast_dtype()"),
    (torch, "manual_seed", "calls torch.manual_seed"),
    (torch.random, "manual_seed", "calls torch.random.manual_seed"),
    (torch.random, "fork_rng", "enters torch.random.fork_rng"),
    (torch, "set_default_dtype", "calls torch.set_default_dtype"),
    (torch.autograd.graph.saved_tensors_hooks, "__enter__", "enters saved_tensors_hooks"),
    (torch.nn.attention, "sdpa_kernel", "enters torch.nn.attention.sdpa_kernel"),
    (random.Random, "random", "draws random numbers from a random.Random"),
    (random.Random, "getrandbits", "draws random numbers from a random.Random"),
    # Its forward would be inlined without its backward. `apply` asks this, by whatever name it is
    # called: `ste = STE.apply`.
    (torch.autograd.function, "_is_setup_context_defined", "calls a torch.autograd.Function"),
)


_one_at_a_time = threading.RLock()  # what is patched is the process's
_tracers: list[Tracer] = []  # at work; the last one is spoken to


@contextlib.contextmanager
def strictly(tracer: Tracer) -> Iterator[None]:
    """While it lasts, code that a graph cannot speak of raises `Stop` instead of being baked in."""
    with watching(), _Recorder(tracer):
        _tracers.append(tracer)
        try:
            yield
        finally:
            _tracers.pop()


@contextlib.contextmanager
def watching() -> Iterator[None]:
    """What `strictly` needs to have patched. Around several of them it is done once."""
    import torch._dynamo  # now, since its tables must not be filled with what is patched  # noqa: F401

    with _one_at_a_time, contextlib.ExitStack() as stack:
        if nn.Module.__setattr__ is not _write:
            for owner, name, reason in _MODES:
                stack.enter_context(patched(owner, name, _stopping(getattr(owner, name), reason)))
            stack.enter_context(patched(nn.Module, "__setattr__", _write))
            stack.enter_context(patched(nn.Module, "__delattr__", _delete))
            stack.enter_context(_without_collections())
        yield


@contextlib.contextmanager
def _without_collections() -> Iterator[None]:
    """While it lasts, new objects stay young, so that cycles of dead ones are found in no time."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _tracer_here() -> Tracer | None:
    """The tracer at work, if it is this thread's code that it traces."""
    tracer = _tracers[-1] if _tracers else None
    return None if tracer is None or tracer.is_elsewhere() else tracer


def _stopping(original: Callable[..., Any], reason: str) -> Callable[..., Any]:
    def stop_or_call(*args: Any, **kwargs: Any) -> Any:
        tracer = _tracer_here()
        if tracer is None or tracer.looks_ahead:
            return original(*args, **kwargs)
        raise tracer.stop(reason)

    return stop_or_call


_set_attribute, _delete_attribute = nn.Module.__setattr__, nn.Module.__delattr__


def _write(module: nn.Module, name: str, value: Any) -> None:
    tracer = _tracer_here()
    if tracer is not None and tracer.covers(module):
        raise tracer.stop(f"writes to its module (self.{name})")
    _set_attribute(module, name, value)


def _delete(module: nn.Module, name: str) -> None:
    tracer = _tracer_here()
    if tracer is not None and tracer.covers(module):
        raise tracer.stop(f"deletes from its module (self.{name})")
    _delete_attribute(module, name)


@contextlib.contextmanager
def patched(owner: Any, name: str, value: Any) -> Iterator[None]:
    missing = object()
    before = vars(owner).get(name, missing)
    setattr(owner, name, value)
    try:
        yield
    finally:
        if before is missing:
            delattr(owner, name)
        else:
            setattr(owner, name, before)


@contextlib.contextmanager
def without_random_numbers() -> Iterator[None]:
    """Stop if code draws numbers that a trace would turn into constants."""
    before = _random_states()
    yield
    if _random_states() != before:
        _restore_random_states(before)
        raise Stop("draws random numbers from Python's or numpy's generator")


def _random_states() -> tuple[Any, ...]:
    numpy = sys.modules.get("numpy")
    if numpy is None:
        return (random.getstate(),)
    kind, keys, *position = numpy.random.get_state()
    return random.getstate(), (kind, keys.tobytes(), *position)


def _restore_random_states(states: tuple[Any, ...]) -> None:
    random.setstate(states[0])
    if len(states) > 1:
        numpy = sys.modules["numpy"]
        kind, keys, *position = states[1]
        numpy.random.set_state((kind, numpy.frombuffer(keys, dtype="uint32"), *position))


def user_frame(frame: FrameType | None) -> FrameType | None:
    """The innermost frame of the user's own code below the trace, else of torch's own layers."""
    layer = None
    while frame is not None:
        module = frame.f_globals.get("__name__", "")
        if module == fx.Tracer.__module__ and frame.f_code.co_name == "trace":
            return layer
        if not is_machinery(module):
            if not module.startswith("torch."):
                return frame
            layer = layer or frame
        frame = frame.f_back
    return layer


@functools.lru_cache(maxsize=4096)
def _location(code: CodeType, line: int) -> str:
    """A line of code, as tracebacks show it."""
    source = linecache.getline(code.co_filename, line).strip()
    return f'File "{code.co_filename}", line {line}, in {code.co_name}\n    {source}'


@functools.lru_cache(maxsize=4096)
def is_machinery(module: str) -> bool:
    """Whether a module is machinery: of torch (its layers apart), of fxtie, of contexts."""
    package = module.split(".", 1)[0]
    if package == "torch":
        return not module.startswith("torch.nn.modules")
    return package in ("fxtie", "contextlib", "functools")
