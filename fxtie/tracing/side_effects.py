"""What traced code does beside recording nodes: found, taken back, and told.

In: a module whose forward is about to be traced. Out: `Stop`, if the forward changed something that
a graph would not change again. Called by `module_tracer.py`.
"""

from __future__ import annotations

import collections
import contextlib
import functools
import gc
import weakref
from collections.abc import Iterator, Sequence
from typing import Any

from torch import nn

from fxtie.runtime.copied import user_class
from fxtie.tracing.stops import Stop
from fxtie.tracing.tracer import Traced
from fxtie.tracing.watching import without_random_numbers


@contextlib.contextmanager
def unchanged(module: nn.Module, *, may_draw: bool) -> Iterator[None]:
    """Stop if a forward puts something into its module's containers.

    Args:
        may_draw: whether it may also draw random numbers.
    """
    if user_class(module).__module__.startswith("torch.nn."):
        yield  # torch's own layers do no such thing
        return
    before = _containers(module)
    try:
        with contextlib.nullcontext() if may_draw else without_random_numbers():
            yield
    finally:
        changed = [name for name, (value, items) in before.items() if not _same(value, items)]
        for name in changed:
            value, items = before[name]
            value.clear()
            (value.extend if type(value) is list else value.update)(items)
    if changed:
        raise Stop(f"changes its module (self.{changed[0]})")


def _containers(module: nn.Module) -> dict[str, tuple[Any, Any]]:
    """The plain containers that a module holds, each with a shallow copy."""
    return {
        name: (value, value.copy())
        for name, value in module.__dict__.items()
        if type(value) in (list, dict, set) and name not in _OF_NN_MODULE
    }


_OF_NN_MODULE = frozenset(nn.Module().__dict__)


def _same(a: Any, b: Any) -> bool:
    if len(a) != len(b):
        return False
    items = zip(a.items(), b.items(), strict=True) if isinstance(a, dict) else [(a, b)]
    return all(x is y for pair in items for x, y in zip(*pair, strict=True))


def take_back(references: Sequence[weakref.ref[Traced]]) -> bool:
    """Remove traced values from where they outlive the trace: caches, lists, attributes.

    Args:
        references: to all values of a trace that is over.

    Returns:
        Whether there were any.
    """
    if all(reference() is None for reference in references):
        return False
    gc.collect(0)  # frames of caught exceptions refer to themselves
    alive = [value for reference in references if (value := reference()) is not None]
    if not alive:
        return False
    _remove(alive)
    return True


def _remove(values: list[Any]) -> None:
    """Remove values, and tuples that hold them, from dicts and lists."""
    ours = {id(value) for value in values}
    holders = []
    for holder in gc.get_referrers(*values):
        if holder is values:
            continue
        if isinstance(holder, dict):
            for key in [key for key, value in holder.items() if id(value) in ours]:
                del holder[key]
        elif isinstance(holder, list | collections.deque):
            rest = [value for value in holder if id(value) not in ours]
            holder.clear()
            holder.extend(rest)
        elif isinstance(holder, functools._lru_cache_wrapper):
            holder.cache_clear()
        elif isinstance(holder, tuple) or type(holder).__name__ == "_lru_list_elem":
            holders.append(holder)
    if holders:
        _remove(holders)
