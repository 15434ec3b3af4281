"""Derived tensors remembered in a call of a forward that was kept, until it is over.

A graph derives each tensor once. A forward without one reads where it likes: a value is taken again
only where computing it again would give the same, and differentiates the same.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Iterator
from types import FunctionType
from typing import Any

import torch
from torch import nn
from torch.compiler import is_compiling, is_dynamo_compiling
from torch.optim.optimizer import register_optimizer_step_post_hook
from torch.utils.hooks import RemovableHandle

from fxtie._torch import (
    get_frame_callback,
    has_storage,
    is_jit_tracing,
    skip_code,
    storage_id,
    surroundings,
)
from fxtie.tied.derived import Derived, Source
from fxtie.tied.recompute import autocast_dtype, is_recomputing
from fxtie.tied.sharded import is_distributed
from fxtie.tracing.source_code import package_of
from fxtie.transforms.parts import whole_of


class _Call:
    """A call that is not over."""

    def __init__(self) -> None:
        self.surroundings = _surroundings()  # that it began in
        self._values: dict[Any, tuple[Any, ...]] = {}  # with what tells that they are stale
        self._casts: dict[Any, torch.Tensor] = {}
        self._gathers: dict[Any, torch.Tensor] = {}
        self._known: set[int] = set()  # ids of remembered tensors
        self._hooks: list[RemovableHandle] = []
        self._steps = _steps

    def close(self) -> None:
        for hook in self._hooks:
            hook.remove()

    def value(self, derived: Derived) -> torch.Tensor:
        """A derived tensor's value, remembered if that is worth it."""
        return derived.one_of(self._result_of(derived, whole_of(derived.transform)))

    def _result_of(self, derived: Derived, transform: Any) -> Any:
        """What a transform gives: one tensor, or one for each of its parts."""
        if self._steps != _steps:
            self._forget_all()
        sources = [derived.read(source) for source in derived.sources]
        is_part = derived.part is not None
        # Without a source, nothing tells that a value is stale; its parts have to be of one run.
        is_told = bool(sources) or is_part
        if not is_told or not all(map(self._is_known, derived.sources, sources)):
            return derived.run(sources)
        key = derived.identity, *_key(transform, sources)
        if (found := self._values.get(key)) is not None:
            if found[-1] == [*map(_identity, found[1])]:
                return found[0]
            self._forget(key)  # it was changed in place
        result = derived.run(sources, self._gathers)
        values = result if is_part else (result,)
        if derived.is_shared or any(value.requires_grad for value in values):
            if isinstance(transform, nn.Module):  # which may have changed its own buffers
                key = derived.identity, *_key(transform, sources)
            # So that an id is one tensor's, and one storage's.
            tensors = (*sources, *_state(transform))
            alive = transform, tensors, [*map(_storage, tensors)]
            self._values[key] = result, values, alive, [*map(_identity, values)]
            for value in values:
                self._known.add(id(value))
                if value.grad_fn is not None:
                    # A backward inside of the call, after which the value can't have another.
                    hook = value.grad_fn.register_hook(lambda *_: self._forget(key))
                    self._hooks.append(hook)
        return result

    def cast(self, tensor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """A tensor in another dtype; of a remembered one, remembered as well."""
        if id(tensor) not in self._known:
            return tensor.to(dtype)
        key = *_identity(tensor), dtype, torch.is_grad_enabled()
        if key not in self._casts:
            self._casts[key] = tensor.to(dtype)
        return self._casts[key]

    def _is_known(self, source: Source, tensor: torch.Tensor) -> bool:
        """Whether reading the source again would give the same object, and tell of a change."""
        owner = source.owner
        stored = source.attr in owner._parameters or source.attr in owner._buffers
        return (stored or id(tensor) in self._known) and not tensor.is_inference()

    def _forget(self, key: Any) -> None:
        _, values, *_ = self._values.pop(key, (None, ()))
        self._gathers.clear()  # a backward goes through them only once, too
        gone = set(map(id, values))
        self._casts = {cast: held for cast, held in self._casts.items() if cast[0] not in gone}
        self._known -= gone

    def _forget_all(self) -> None:
        self._steps = _steps
        self._values.clear()
        self._casts.clear()
        self._gathers.clear()
        self._known.clear()


def _key(transform: Any, sources: list[torch.Tensor]) -> tuple[Any, ...]:
    """What a value, its dtype and its gradient depend on."""
    state = [*_state(transform)]
    device = next((tensor.device for tensor in (*sources, *state)), torch.device("cpu"))
    modes = [m.training for m in transform.modules()] if isinstance(transform, nn.Module) else []
    return (
        *map(_identity, sources),
        *map(_identity, state),
        *modes,
        torch.is_grad_enabled(),
        autocast_dtype(device),
    )


def _state(transform: Any) -> Iterator[torch.Tensor]:
    """The tensors that a learnable transform is made of."""
    if isinstance(transform, nn.Module):
        yield from transform.parameters()
        yield from transform.buffers()


def _identity(tensor: torch.Tensor) -> tuple[Any, ...]:
    version = 0 if tensor.is_inference() else tensor._version
    place = storage_id(tensor) if has_storage(tensor) else 0  # `w.data = ...` keeps the version
    return id(tensor), version, place, tensor.dtype, tensor.device, tensor.requires_grad


def _storage(tensor: torch.Tensor) -> Any:
    return tensor.untyped_storage() if has_storage(tensor) else None


def _surroundings() -> tuple[Any, ...]:
    """What a value must not get out of: checkpoints and other hooks, a backward, modes, streams."""
    stream = torch.cuda.current_stream() if torch.cuda.is_initialized() else None  # type: ignore[no-untyped-call]
    return stream, *surroundings()


# Fused steps change parameters without a new version.
_steps = 0


def _count_step(*_: Any) -> None:
    global _steps
    _steps += 1


@functools.cache
def _watch_steps() -> None:
    """Count the steps of all optimizers from now on: once, since others may step meanwhile."""
    register_optimizer_step_post_hook(_count_step)


class _Here(threading.local):
    call: _Call | None = None


_here = _Here()


def current_call() -> _Call | None:
    """The call whose values may be read here, if any."""
    # Compilers find out by themselves what is computed twice; torch.jit.trace compares two calls.
    if is_dynamo_compiling() or (call := _here.call) is None:
        return None
    # What is computed again in the backward pass is not to be held by the call either.
    if is_compiling() or is_jit_tracing() or is_recomputing():
        return None
    if call.surroundings != _surroundings():
        return None
    return call


def is_worth_it(derived: Derived) -> bool:
    """Whether a value may be held until the call is over.

    With gradients autograd holds it anyway. Without them only if others are derived alike: to hold
    on to each derived tensor would take the memory that tying has saved.
    """
    return derived.is_shared or torch.is_grad_enabled()


def value_of(derived: Derived) -> Any:
    """How derived attributes are read."""
    is_left_alone = False
    if is_distributed() and is_dynamo_compiling():
        is_left_alone = _is_left_alone(derived)
    elif is_distributed() and get_frame_callback() is not None:
        # Between two graphs, the compiler would look at each function that this calls.
        is_left_alone = torch.compiler.disable(_is_left_alone)(derived)  # type: ignore[no-untyped-call]
    if is_left_alone:
        return torch.compiler.disable(derived.compute)()  # type: ignore[no-untyped-call]
    call = current_call() if is_worth_it(derived) else None
    return derived.compute() if call is None else call.value(derived)


def _is_left_alone(derived: Derived) -> bool:
    """Whether torch.compile, which can't tell units of FSDP2 apart, has to leave a read alone."""
    if is_left_alone := derived.is_in_parts:
        skip_code(value_of)
    return is_left_alone


# A constant: the compiler doesn't look at how it is found.
_is_left_alone._dynamo_marked_constant = True  # type: ignore[attr-defined]


def remembering(
    bound: Callable[[Any], Callable[..., Any]], written: Callable[..., Any]
) -> Callable[..., Any]:
    """A forward during whose calls derived tensors are remembered.

    Args:
        bound: gives the forward of a module without that.
        written: the forward as its class has it.
    """
    _watch_steps()

    def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        is_compiled = is_compiling() or get_frame_callback() is not None
        if is_compiled or current_call() is not None:
            return bound(self)(*args, **kwargs)
        outer, _here.call = _here.call, (now := _Call())
        try:
            return bound(self)(*args, **kwargs)
        finally:
            _here.call = outer
            now.close()

    if isinstance(written, FunctionType) and package_of(written) == "torch":
        # Dynamo never begins in a file of torch's: if a model's forward is in one, it compiles the
        # call as a whole. So this forward says that it is there, too.
        place = {
            name: getattr(written.__code__, name) for name in ("co_filename", "co_firstlineno")
        }
        forward.__code__ = forward.__code__.replace(**place)
    else:
        # It is to begin with the forward itself: where that has graph breaks, this would be one
        # more frame that has them.
        skip_code(forward)
    return forward
