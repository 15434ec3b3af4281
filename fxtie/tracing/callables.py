"""Python's builtins in a trace.

In: calls of builtins on values, some of them traced. Out: what the builtin gives. What is not in
this table stops the trace.
"""

from __future__ import annotations

import ast
import collections
import functools
import itertools
import operator
from abc import ABCMeta
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import nn

from fxtie.tracing.attributes import Members
from fxtie.tracing.guards import ATOMS, MISSING
from fxtie.tracing.module_walks import WALKS
from fxtie.tracing.operations import Operations
from fxtie.tracing.operators import BINARY, COMPARISONS, IN_PLACE
from fxtie.tracing.recorder import CONTAINERS, is_known_class
from fxtie.tracing.stops import UNKNOWN, Absent, Stop
from fxtie.tracing.traced import Traced, is_traced

Handler = Callable[..., Any]


def _isinstance(e: Operations, value: Any, kinds: Any) -> bool:
    wanted = _classes(kinds)
    if type(value) is not Traced:
        return _issubclass(e, e.class_of(value), kinds)
    if e.is_tensor(value, assume=True):
        if torch.Tensor in wanted:
            return True
        if all(kind in _NO_TENSORS for kind in wanted):
            return False
    raise Stop(f"tests the type of {UNKNOWN}")


def _issubclass(e: Operations, cls: Any, kinds: Any) -> bool:
    if not isinstance(cls, type):
        raise Stop(f"asks whether a {type(cls).__name__} is a subclass")
    wanted = tuple(_classes(kinds))
    result = issubclass(cls, wanted)
    if any(type(kind) is ABCMeta for kind in wanted):  # which classes may join
        e.guard("answer", issubclass, (cls, wanted), result)
    return result


def _classes(kinds: Any) -> list[type]:
    if isinstance(kinds, tuple):
        return [kind for part in kinds for kind in _classes(part)]
    if hasattr(kinds, "__args__") and not isinstance(kinds, type):  # int | float
        return [kind for part in kinds.__args__ for kind in _classes(part)]
    if is_known_class(kinds):
        return [kinds]
    raise Stop(f"tests for the type {kinds!r:.60}")


_NO_TENSORS = (bool, int, float, complex, str, bytes, list, tuple, dict, set, type(None))


def _getattr(e: Operations, owner: Any, name: str, default: Any = MISSING) -> Any:
    e.plain(name)
    if type(owner) is Traced and default is not MISSING:
        raise Stop(f"asks whether {UNKNOWN} has .{name}")
    found = e.attribute(owner, name, default)
    if type(found) is Traced and default is not MISSING:
        e.is_none(found)  # a stored tensor, which may be gone later
    return found


_NOTHING = object()


ON_NUMBERS = frozenset({int, float, min, max, round, divmod})
"""Builtins that a graph calls where they get a traced value: they ask it for its number."""


def _on_constants(function: Callable[..., Any]) -> Handler:
    """A builtin that needs to know its arguments, or a graph that calls it to know them then."""

    def call(e: Operations, *args: Any, **kwargs: Any) -> Any:
        if kwargs.get("key") is not None:
            raise Stop(f"calls {function.__name__} with a function as key")
        values = [[*e.iterate(a)] if isinstance(a, Iterator) else a for a in args]
        if function in ON_NUMBERS and is_traced(values) and not kwargs:
            parts = values[0] if len(values) == 1 and type(values[0]) in (list, tuple) else values
            if all(type(part) is Traced or type(part) in ATOMS for part in parts):
                return e.record("call_function", function, values)
        result = function(*map(e.plain, values), **{k: e.plain(v) for k, v in kwargs.items()})
        return e.fresh(result) if function is sorted else result

    return call


def _collected(kind: Callable[..., Any]) -> Handler:
    """A container made of the items of another."""
    is_set = kind in (set, frozenset)

    def call(e: Operations, *args: Any) -> Any:
        result = kind(*(map(e.plain, e.iterate(a)) if is_set else e.iterate(a) for a in args))
        return e.fresh(result) if type(result) in CONTAINERS else result

    return call


def _dict(kind: type[dict[Any, Any]]) -> Handler:
    def call(e: Operations, *args: Any, **kwargs: Any) -> Any:
        made = kind()
        for arg in args:
            if isinstance(arg, dict):
                e.look(arg, "a dict")
                made.update(arg)
                continue
            for pair in e.iterate(arg):
                key, value = e.iterate(pair)
                made[e.plain(key)] = value
        made.update(kwargs)
        return e.fresh(made)

    return call


def _lazily(function: Callable[..., Any]) -> Handler:
    """`zip`, `enumerate` and their like: iterators that the code itself has made."""

    def call(e: Operations, *args: Any, **kwargs: Any) -> Any:
        its = [
            e.iterate(arg) if isinstance(arg, Iterable | nn.Module) else e.plain(arg)
            for arg in args
        ]
        return e.fresh(function(*its, **{name: e.plain(value) for name, value in kwargs.items()}))

    return call


def _map(e: Operations, function: Any, *iterables: Any) -> Any:
    values = zip(*map(e.iterate, iterables), strict=False)
    return e.fresh(e.call(function, args) for args in values)


def _filter(e: Operations, function: Any, values: Any) -> Any:
    items = e.iterate(values)
    return e.fresh(
        item for item in items if e.truth(item if function is None else e.call(function, (item,)))
    )


def _next(e: Operations, items: Any, *default: Any) -> Any:
    if not (isinstance(items, Iterator) and e.is_fresh(items)):
        raise Stop("advances an iterator that it has not made")
    return next(e.iterate(items), *default)


def _partial(e: Operations, function: Any, *args: Any, **kwargs: Any) -> Any:
    made = functools.partial(function, *args, **kwargs)
    e.fresh(made.keywords)
    return e.fresh(made)


def _reversed(e: Operations, value: Any) -> Any:
    if not isinstance(value, nn.Module):
        return e.fresh(e.iterate(value, reversed))
    if e.lookup(e.class_of(value).__mro__, "__reversed__") is not MISSING:
        raise Stop("reverses a module of a class that has a way of its own")
    places, get = reversed(range(e.length(value))), e.attribute(value, "__getitem__")
    return e.fresh(e.call(get, (place,)) for place in places)


def _sum(e: Operations, values: Any, start: Any = 0) -> Any:
    for value in e.iterate(values):
        start = e.binary(operator.add, start, value)
    return start


def _quantifier(until: bool) -> Handler:
    def call(e: Operations, values: Any) -> bool:
        for value in e.iterate(values):
            if e.truth(value) is until:
                return until
        return not until

    return call


def _reduce(e: Operations, function: Any, values: Any, *initial: Any) -> Any:
    items = e.iterate(values)
    result = initial[0] if initial else next(items)
    for item in items:
        result = e.call(function, (result, item))
    return result


def _type(e: Operations, value: Any) -> Any:
    if type(value) is Traced:
        raise Stop(f"tests the type of {UNKNOWN}")
    return e.attribute(value, "__class__")


def _callable(e: Operations, value: Any) -> bool:
    if type(value) is Traced and not e.is_tensor(value, assume=True):  # tensors are not
        raise Stop(f"asks whether {UNKNOWN} can be called")
    return type(value) is not Traced and callable(value)


def _member(e: Operations, members: Members, name: Any, default: Any = None) -> Any:
    found = e.own(members, name)
    return default if found is MISSING else found


def _looked_up(read: str) -> Handler:
    def call(e: Operations, owner: Any, name: Any) -> Any:
        found = getattr(e, read)(owner, e.plain(name))
        if found is MISSING:
            raise Absent(f"reads .{name}, which a {type(owner).__name__} has not")
        return found

    return call


def _operator(function: Callable[..., Any]) -> Handler:
    return lambda e, a, b: e.binary(function, a, b)


def _comparison(op: type[ast.cmpop]) -> Handler:
    return lambda e, a, b: e.compare(op, a, b)


CALLABLES: dict[Any, Handler] = {
    isinstance: _isinstance,
    issubclass: _issubclass,
    super: lambda e, cls, instance: super(cls, e.class_of(instance) and instance),
    getattr: _getattr,
    hasattr: lambda e, owner, name: _getattr(e, owner, name, _NOTHING) is not _NOTHING,
    len: lambda e, value: e.length(value),
    bool: lambda e, value=False: e.truth(value),
    callable: _callable,
    type: _type,
    sum: _sum,
    any: _quantifier(True),
    all: _quantifier(False),
    iter: lambda e, value: e.fresh(e.iterate(value)),
    zip: _lazily(zip),
    enumerate: _lazily(enumerate),
    reversed: _reversed,
    map: _map,
    functools.reduce: _reduce,
    itertools.chain: _lazily(itertools.chain),
    itertools.product: _lazily(itertools.product),
    itertools.islice: _lazily(itertools.islice),
    itertools.zip_longest: _lazily(itertools.zip_longest),
    next: _next,
    filter: _filter,
    functools.partial: _partial,
    itertools.repeat: lambda e, value, *times: e.fresh(
        itertools.repeat(value, *map(e.plain, times))
    ),
    **WALKS,
    object.__getattribute__: _looked_up("own_attribute"),
    nn.Module.__getattr__: _looked_up("registered_attribute"),
    Members.get: _member,
    list: _collected(list),
    tuple: _collected(tuple),
    set: _collected(set),
    frozenset: _collected(frozenset),
    torch.Size: _collected(torch.Size),
    dict: _dict(dict),
    collections.OrderedDict: _dict(collections.OrderedDict),
    slice: lambda e, *args: slice(*args),
    range: _on_constants(range),
    abs: lambda e, value: e.unary(operator.abs, value),
    pow: lambda e, a, b: e.binary(operator.pow, a, b),
    **{
        function: _on_constants(function)
        for function in (
            *(int, float, str, min, max, round, divmod, sorted, repr),
            *(torch.device, operator.index),
        )
    },
    **{function: _operator(function) for function in (*BINARY.values(), *IN_PLACE.values())},
    **{function: _comparison(op) for op, function in COMPARISONS.items()},
}
"""Builtins, and what they do in a trace."""
