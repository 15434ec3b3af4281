"""Python's operations on values, some of them traced.

In: an operation: a call, an attribute, a comparison, a question. Out: its result, recorded as a
node if it needs a traced value, else computed now. What it reads of the user's objects becomes a
guard; what is not known to be safe stops the trace.
"""

from __future__ import annotations

import ast
import enum
import operator
import types
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn

from fxtie.tracing.attributes import Attributes, Members
from fxtie.tracing.guards import ATOMS, MISSING
from fxtie.tracing.operators import BINARY, COMPARISONS, IN_PLACE
from fxtie.tracing.recorder import (
    CONTAINERS,
    KEYS,
    has_only_known_operators,
    holder_of,
    is_immutable,
    is_known_class,
)
from fxtie.tracing.stops import UNKNOWN, Stop
from fxtie.tracing.traced import Traced, is_traced


class Operations(Attributes):
    """Python's operations but for calls."""

    call_method: Callable[..., Any]

    def own(self, members: Members, name: Any) -> Any:
        """An item of the `__dict__` of an object of the user's; `MISSING` if there is none."""
        return self.member(members.owner, self.plain(name))

    # -- questions about values -----------------------------------------------------------------

    def plain(self, value: Any) -> Any:
        """A value of which everything is known: constants, and containers of constants."""
        kind = type(value)
        if kind in ATOMS or is_known_class(value):
            return value
        if isinstance(value, enum.Enum) and has_only_known_operators(kind):
            return value
        if isinstance(value, tuple | list | dict | set | frozenset | torch.Size | range):
            self.look(value, "a container")
            for item in (*value, *value.values()) if isinstance(value, dict) else value:
                self.plain(item)
            return value
        if kind is Traced:
            raise Stop(f"needs the number or the text of {UNKNOWN}")
        raise Stop(f"uses an object of {kind.__name__} as a constant")

    def truth(self, value: Any) -> bool:
        """`bool(value)`."""
        kind = type(value)
        if kind is Traced:
            raise Stop(f"branches on {UNKNOWN}")
        if kind in CONTAINERS or is_immutable(value):
            self.look(value, f"a {kind.__name__}")
            return bool(value)
        if kind in ATOMS or is_known_class(value):
            return bool(value)
        if isinstance(value, type):
            raise Stop(f"branches on the class {value.__name__}")
        classes = self.class_of(value).__mro__
        if self.lookup(classes, "__bool__") is not MISSING:
            raise Stop(f"branches on a {kind.__name__}")
        if self.lookup(classes, "__len__") is MISSING:
            return True
        if isinstance(value, nn.Module):
            return self.truth(self.length(value))
        raise Stop(f"branches on a {kind.__name__}")

    def length(self, value: Any) -> Any:
        """`len(value)`."""
        if type(value) is Traced:
            if value.shape_known:
                return self.shape(value)[0]
            return self.record("call_function", len, (value,))
        if isinstance(value, nn.Module):
            return self.call(self.attribute(value, "__len__"))
        if type(value) not in (str, bytes):
            self.look(holder_of(value), f"a {type(value).__name__}")
        return len(value)

    def iterate(self, value: Any, order: Callable[[Any], Iterator[Any]] = iter) -> Iterator[Any]:
        """`iter(value)`, or `reversed(value)`."""
        kind = type(value)
        if kind is Traced:
            raise Stop(f"iterates over {UNKNOWN}")
        if isinstance(value, nn.Module):
            return self.iterate(self.call(self.attribute(value, "__iter__")))
        if id(value) in self._fresh and isinstance(value, Iterator) and order is iter:
            self.writes.append(self._fresh[id(value)][0])
            return value
        if isinstance(value, set | frozenset):
            raise Stop("iterates over a set")
        holder = holder_of(value)
        if kind is not str:
            self.look(holder, f"a {kind.__name__}")
        return self._items(holder, order(value))

    def _items(self, holder: Any, items: Iterator[Any]) -> Iterator[Any]:
        """Items of a container, which other code may change before the last one is asked for."""
        self.may_have_changed(holder)
        for item in items:
            yield self.taken(item, holder)
            self.may_have_changed(holder)

    def same_object(self, a: Any, b: Any) -> bool:
        """`a is b`, where one of them is the only object that is like it."""
        for value, other in ((a, b), (b, a)):
            if type(value) is Traced:
                if other is None and (answer := self.is_none(value)) is not None:
                    return answer
                raise Stop(
                    f"asks whether {UNKNOWN} is {'None' if other is None else 'another object'}"
                )
        if not any(map(_is_one_of_its_kind, (a, b))):
            raise Stop(f"tests the identity of a {type(a).__name__}")
        return a is b

    def compare(self, op: type[ast.cmpop], a: Any, b: Any) -> Any:
        """One comparison."""
        if op in (ast.Is, ast.IsNot):
            return self.same_object(a, b) is (op is ast.Is)
        if op in (ast.In, ast.NotIn):
            return self._contains(op, a, b)
        function = COMPARISONS[op]
        if is_traced(a, b):
            return self.record("call_function", function, (a, b))
        own = any(isinstance(type(value).__eq__, types.FunctionType) for value in (a, b))
        if op in (ast.Eq, ast.NotEq) and not own and any(map(_is_one_of_its_kind, (a, b))):
            return function(a, b)
        return function(self.plain(a), self.plain(b))

    def _contains(self, op: type[ast.cmpop], item: Any, container: Any) -> Any:
        if is_traced(item) or type(container) is Traced:
            recorded = self.record("call_function", operator.contains, (container, item))
            if op is ast.In:
                return recorded
            return self.record("call_function", operator.not_, (recorded,))
        if type(container) is Members:
            found = self.own(container, item) is not MISSING
        elif isinstance(container, nn.Module):
            found = self.truth(self.call(self.attribute(container, "__contains__"), (item,)))
        else:
            holder = holder_of(container) if isinstance(container, KEYS) else container
            if isinstance(holder, dict | set | frozenset):
                self.look(holder, "a container")
                self.may_look_up(holder)
            else:
                self.plain(container)
            found = self.plain(item) in container
        return found is (op is ast.In)

    def binary(self, function: Callable[..., Any], a: Any, b: Any) -> Any:
        """One operation on two values: recorded, or computed if both are known."""
        kinds = {type(a), type(b)}
        is_written = function in IN_PLACE.values() and type(a) in CONTAINERS
        if Traced in kinds:
            if is_written:
                raise Stop(f"extends a container by {UNKNOWN}")
            if type(a) in ATOMS and function in IN_PLACE.values():  # which it can't change
                function = _AFRESH[function]
            recorded = self.record("call_function", function, (a, b))
            if function in IN_PLACE.values() and isinstance(b, list | tuple | set | dict):
                self.runs_unseen()  # `a` is no tensor
            self.escape(a, b)  # a list may be joined to one that has come from elsewhere
            return recorded
        if is_written:
            self.writable(a)
        for value in (a, b):
            if not kinds <= {list, tuple, int, torch.Size}:
                self.plain(value)
            elif type(value) is not int:  # it may hold traced values
                self.look(value, "a container")
        result = function(a, b)
        is_new = type(result) in CONTAINERS and not is_written
        return self.fresh(result) if is_new else result

    def unary(self, function: Callable[..., Any], value: Any) -> Any:
        if type(value) is Traced:
            return self.record("call_function", function, (value,))
        return function(self.plain(value))


_AFRESH = {IN_PLACE[kind]: function for kind, function in BINARY.items()}


def _is_one_of_its_kind(value: Any) -> bool:
    """Whether no other object is equal to this one, so that `is` says what `==` says."""
    if value is None or value is Ellipsis or type(value) is bool:
        return True
    return isinstance(value, enum.Enum | type | types.FunctionType | types.ModuleType) or (
        isinstance(value, nn.Module) and type(value).__eq__ is object.__eq__
    )
