"""Calls in a trace.

In: a callable and arguments, some of them traced. Out: the result: of a node, if the call is
recorded; of code that is looked into; of what is run. All else stops the trace before it happens.
"""

from __future__ import annotations

import dataclasses
import functools
import types
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn
from torch.overrides import is_tensor_method_or_property

from fxtie.tracing.attributes import is_frozen
from fxtie.tracing.callables import CALLABLES
from fxtie.tracing.gate import (
    MATH,
    METHODS,
    QUESTIONS,
    SIZED,
    SIZED_METHODS,
    is_in,
    is_opaque,
    is_recorded,
)
from fxtie.tracing.guards import ATOMS
from fxtie.tracing.operations import Operations
from fxtie.tracing.recorder import CONTAINERS, is_known_class, is_named_tuple
from fxtie.tracing.stops import UNKNOWN, Stop
from fxtie.tracing.traced import Method, Traced, is_traced


class Calls(Operations):
    """Calls of anything."""

    run: Callable[..., Any]  # a Python function, by its source code

    def call(self, function: Any, args: Sequence[Any] = (), kwargs: Any = None) -> Any:
        """Call anything, if that may be part of a trace."""
        kwargs = kwargs or {}
        kind = type(function)
        if isinstance(function, nn.Module):
            return self.call_module(function, args, kwargs)
        if (call := _BY_KIND.get(kind)) is not None:
            return call(self, function, args, kwargs)
        if is_in(function, CALLABLES):
            return CALLABLES[function](self, *args, **kwargs)
        if is_recorded(function):
            return self.call_recorded(function, args, kwargs)
        if is_in(function, MATH) and is_traced(args):
            return self.record("call_function", function, args, kwargs)
        if is_in(function, MATH):
            return function(*map(self.plain, args))
        if is_in(function, QUESTIONS):
            answer = function(*map(self.plain, args))
            self.guard("answer", function, tuple(args), answer)
            return answer
        if kind is types.BuiltinMethodType:
            return self.call_method(function.__self__, function.__name__, args, kwargs)
        if isinstance(function, type):
            return self.construct(function, args, kwargs)
        return self.call_object(function, args, kwargs)

    def call_object(self, function: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        """Call a Python function, or an object of a class with a `__call__`."""
        if isinstance(function, types.FunctionType):
            return self.run(function, args, kwargs)
        users = self.lookup(self.class_of(function).__mro__, "__call__")
        if isinstance(users, types.FunctionType):
            return self.run(users, (function, *args), kwargs)
        raise Stop(f"calls {getattr(function, '__qualname__', type(function).__name__)}")

    def call_recorded(self, function: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        """A node for a call of torch, or of a function that is declared to be one operation."""
        if _is_method(function):
            return self.record("call_method", function.__name__, args, kwargs)
        result = self.record("call_function", function, args, kwargs)
        if is_opaque(function):
            self.escape(*(v for v in (*args, *kwargs.values()) if self.is_fresh(v)))
        return result

    def call_with(self, function: Any, args: Traced, kwargs: dict[str, Any]) -> Any:
        """Call torch with sizes in a tuple, where it takes as many arguments as well."""
        if is_in(function, SIZED):
            return self.record("call_function", function, (args,), kwargs)
        if (
            type(function) is Method
            and function.name in SIZED_METHODS
            and not kwargs
            and self.is_tensor(function.receiver, assume=True)
        ):
            return self.record("call_method", function.name, (function.receiver, args))
        raise Stop("passes on arguments of which the number is known only when it runs")

    def call_partial(
        self, partial: functools.partial[Any], args: Sequence[Any], kwargs: dict[str, Any]
    ) -> Any:
        given = map(self.taken, partial.args)
        self.look(partial.keywords, "keywords of a partial")
        return self.call(partial.func, (*given, *args), {**partial.keywords, **kwargs})

    def call_bound(
        self, method: types.MethodType, args: Sequence[Any], kwargs: dict[str, Any]
    ) -> Any:
        return self.call(method.__func__, (method.__self__, *args), kwargs)

    def call_value(self, value: Traced, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        raise Stop(f"calls {UNKNOWN}")

    def construct(self, cls: type, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        """An object of a class whose making is known to do nothing else."""
        if is_named_tuple(cls) and is_known_class(cls):
            return cls(*args, **kwargs)
        if cls is nn.ModuleList:
            return self.fresh(cls([module for arg in args for module in self.iterate(arg)]))
        if cls is nn.Sequential:
            for arg in args:
                if isinstance(arg, dict):
                    self.look(arg, "a dict")
            return self.fresh(cls(*args))
        if _is_plain_dataclass(cls):
            return self.fresh(cls(*args, **kwargs))
        raise Stop(f"makes a {cls.__qualname__}")

    def call_traced(self, method: Method, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        """Call a method of a traced value."""
        value, name = method.receiver, method.name
        if value.shape_known is not None and not kwargs and not is_traced(args):
            if name == "size":
                return self.shape(value)[args[0]] if args else self.shape(value)
            if name in ("dim", "numel") and not args:
                shape = self.shape(value)
                return len(shape) if name == "dim" else shape.numel()
        result = self.record("call_method", name, (value, *args), kwargs)
        given = [*self.containers_in(*args, *kwargs.values())]
        is_usual = hasattr(torch.Tensor, name)
        if not is_usual:
            self.runs_unseen()
        if given and not self.is_tensor(value):  # else torch's own method, which keeps nothing
            # A name that tensors have is theirs, unless the code itself has made the container.
            self.escape(*(c for c in given if self.is_fresh(c) or not is_usual))
        return result

    def call_method(
        self, owner: Any, name: str, args: Sequence[Any], kwargs: dict[str, Any]
    ) -> Any:
        """Call a method of a container, a string or a number."""
        kind = type(owner)
        if name not in METHODS.get(kind, ()):
            is_method = kind.__module__ == "builtins" and owner is not None
            where = f"{kind.__name__}." if is_method and kind is not types.ModuleType else ""
            raise Stop(f"calls {where}{name}")
        if kind in CONTAINERS:
            if name in _WRITING:
                self.writable(owner)
            else:
                self.look(owner, f"a {kind.__name__}")
            if name in _LOOKING_UP:
                self.may_look_up(owner, *args[:1])
        elif kind is str:
            args = list(map(self.plain, args))
            kwargs = {key: self.plain(value) for key, value in kwargs.items()}
            if name == "format" and not {*map(type, (*args, *kwargs.values()))} <= ATOMS:
                raise Stop("formats a value, of which the text may ask for attributes")
        if name == "update":
            args, kwargs = [CALLABLES[dict](self, *args, **kwargs)], {}
        elif name in ("extend", "join"):
            args = [a if isinstance(a, str) else [*self.iterate(a)] for a in args]
        elif name in ("index", "count"):  # which compare
            self.plain((owner, *args))
        result = getattr(owner, name)(*args, **kwargs)
        if type(result) in CONTAINERS and name in ("copy", "split"):
            self.fresh(result)
        return self.taken(result, owner)


# torch's own changes the filters of warnings at each call.
_is_method = functools.cache(is_tensor_method_or_property)


def _is_plain_dataclass(cls: Any) -> bool:
    fields = getattr(cls, "__dataclass_fields__", None)
    if fields is None or cls.__bases__ != (object,) or hasattr(cls, "__post_init__"):
        return False
    plain = type(cls) is type and "__new__" not in vars(cls)
    if not plain or ("__setattr__" in vars(cls) and not is_frozen(cls)):
        return False
    if not cls.__dataclass_params__.init or len(dataclasses.fields(cls)) < len(fields):
        return False  # has an `__init__` of its own, or arguments of it that are no fields
    slots = (type(vars(cls).get(name)) for name in fields)
    return all(
        f.init and f.default_factory is dataclasses.MISSING for f in fields.values()
    ) and all(slot is types.MemberDescriptorType or not hasattr(slot, "__set__") for slot in slots)


_LOOKING_UP = frozenset({"get", "pop", "setdefault", "add", "insert"})

_WRITING = frozenset(
    {"append", "extend", "insert", "pop", "reverse", "clear", "update", "setdefault", "add"}
)

_BY_KIND: dict[type, Callable[..., Any]] = {
    Method: Calls.call_traced,
    Traced: Calls.call_value,
    types.MethodType: Calls.call_bound,
    functools.partial: Calls.call_partial,
}
