"""What code may not do while it is traced: patched, so that it stops the trace.

In: the tracer at work. Out: for as long as a block lasts, contexts, modes, writes to modules and
random numbers that a graph would not speak of raise `Stop`. Called by `tracer.py`, and by
`plan.py` and `capture.py` around many traces.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import math
import random
import sys
import threading
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.attention
from torch import fx, nn

from fxtie.tracing.stops import Stop

if TYPE_CHECKING:
    from fxtie.tracing.tracer import Tracer

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
    # Its forward would be inlined without its backward. `apply` makes one of these, by whatever
    # name it is called: `ste = STE.apply`.
    (torch.autograd.function.BackwardCFunction, "__init__", "calls a torch.autograd.Function"),
)

_one_at_a_time = threading.RLock()  # what is patched is the process's
_tracers: list[Tracer] = []  # at work; the last one is spoken to


@contextlib.contextmanager
def watching(tracer: Tracer | None = None) -> Iterator[None]:
    """A block in which a trace stops at what a graph cannot speak of.

    Args:
        tracer: the tracer at work. None patches all the same, so that it need not be done for each
            of several traces inside.
    """
    import torch._dynamo  # now, since its tables must not be filled with what is patched  # noqa: F401

    with _one_at_a_time, contextlib.ExitStack() as stack:
        if nn.Module.__setattr__ is not _write:
            for owner, name, reason in _MODES:
                stack.enter_context(patched(owner, name, _stopping(getattr(owner, name), reason)))
            stack.enter_context(patched(nn.Module, "__setattr__", _write))
            stack.enter_context(patched(nn.Module, "__delattr__", _delete))
            stack.enter_context(_recording_math())
            stack.enter_context(_without_collections())
        if tracer is None:
            yield
            return
        _tracers.append(tracer)
        try:
            yield
        finally:
            _tracers.pop()


def has_proxy(value: Any) -> bool:
    """Whether a value is traced, or is a plain container of one."""
    if type(value) in (tuple, list):
        return any(map(has_proxy, value))
    if type(value) is dict:
        return any(map(has_proxy, value.values()))
    return issubclass(type(value), fx.Proxy)


def _recorded(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def record_or_call(*args: Any, **kwargs: Any) -> Any:
        tracer = tracer_here()
        if tracer is None or not has_proxy(args):
            return function(*args, **kwargs)
        return tracer.create_proxy("call_function", function, args, kwargs)

    return record_or_call


MATH = {
    name: value
    for name, value in vars(math).items()
    if callable(value) and not name.startswith("_")
}
_RECORDED = {name: _recorded(function) for name, function in MATH.items()}


@contextlib.contextmanager
def _recording_math() -> Iterator[None]:
    """While it lasts, `math.sqrt(x.shape[0])` is recorded. torch.fx does so for each trace anew."""
    vars(math).update(_RECORDED)
    try:
        yield
    finally:
        vars(math).update(MATH)


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


def tracer_here() -> Tracer | None:
    """The tracer at work, if it is this thread's code that it traces."""
    tracer = _tracers[-1] if _tracers else None
    return None if tracer is None or tracer.is_elsewhere() else tracer


def _stopping(original: Callable[..., Any], reason: str) -> Callable[..., Any]:
    def stop_or_call(*args: Any, **kwargs: Any) -> Any:
        tracer = tracer_here()
        if tracer is None or tracer.looks_ahead:
            return original(*args, **kwargs)
        raise tracer.stop(reason)

    return stop_or_call


_set_attribute, _delete_attribute = nn.Module.__setattr__, nn.Module.__delattr__


def _write(module: nn.Module, name: str, value: Any) -> None:
    tracer = tracer_here()
    if tracer is not None and tracer.covers(module):
        raise tracer.stop(f"writes to its module (self.{name})")
    _set_attribute(module, name, value)


def _delete(module: nn.Module, name: str) -> None:
    tracer = tracer_here()
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


class RandomNumbers(contextlib.AbstractContextManager["RandomNumbers"]):
    """A block of which it is found out whether it draws random numbers, and then taken back.

    Not those of torch, which a graph draws itself.
    """

    drawn = False

    def __enter__(self) -> RandomNumbers:
        self._states = _random_states()
        return self

    def __exit__(self, *_: object) -> None:
        self.drawn = _random_states() != self._states
        if self.drawn:
            _restore_random_states(self._states)


@contextlib.contextmanager
def without_random_numbers() -> Iterator[None]:
    """Stop if traced code draws numbers that the trace would turn into constants."""
    with RandomNumbers() as numbers:
        yield
    if numbers.drawn:
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
