"""Python's operations on values, some of them traced.

In: an operation: a call, an attribute, a comparison, a question. Out: its result, recorded as a
node if it needs a traced value, else computed now. What it reads of the user's objects becomes a
guard; what is not known to be safe stops the trace.
"""

from __future__ import annotations

import ast
import enum
import functools
import operator
import types
from collections.abc import Callable, ItemsView, Iterator, KeysView, Sequence, ValuesView
from typing import Any

import torch
from torch import nn
from torch.overrides import is_tensor_method_or_property

from fxtie.runtime.guards import ATOMS, MISSING, Namespace
from fxtie.tracing.callables import CALLABLES, METHODS
from fxtie.tracing.gate import MATH, QUESTIONS, is_in, is_opaque, is_recorded
from fxtie.tracing.operators import COMPARISONS, IN_PLACE
from fxtie.tracing.recorder import CONTAINERS, IMMUTABLE, Recorder
from fxtie.tracing.rewriting import Scope
from fxtie.tracing.stops import Stop
from fxtie.tracing.traced import Method, Traced, is_traced


class Operations(Recorder):
    """Python's operations."""

    run: Callable[..., Any]  # a Python function, by its source code

    # -- calls ----------------------------------------------------------------------------------

    def call(self, function: Any, args: Sequence[Any] = (), kwargs: Any = None) -> Any:
        """Call anything, if that may be part of a trace."""
        kwargs = kwargs or {}
        kind = type(function)
        if kind is Method:
            return self.call_traced(function, args, kwargs)
        if kind is Traced:
            raise Stop("calls a traced value")
        if isinstance(function, nn.Module):
            return self.call_module(function, args, kwargs)
        if kind is types.MethodType:
            return self.call(function.__func__, (function.__self__, *args), kwargs)
        if kind is functools.partial:
            given = map(self.taken, function.args)
            self.look(function.keywords, "keywords of a partial")
            return self.call(function.func, (*given, *args), {**function.keywords, **kwargs})
        if is_in(function, CALLABLES):
            return CALLABLES[function](self, *args, **kwargs)
        if is_recorded(function):
            if is_tensor_method_or_property(function):
                return self.record("call_method", function.__name__, args, kwargs)
            result = self.record("call_function", function, args, kwargs)
            if is_opaque(function):
                self.escape(*(v for v in (*args, *kwargs.values()) if self.is_fresh(v)))
            return result
        if is_in(function, MATH):
            if is_traced(args):
                return self.record("call_function", function, args, kwargs)
            return function(*map(self.plain, args))
        if is_in(function, QUESTIONS):
            answer = function(*map(self.plain, args))
            self.guard("answer", function, tuple(args), answer)
            return answer
        if kind is types.BuiltinMethodType:
            return self.call_method(function.__self__, function.__name__, args, kwargs)
        if kind is types.FunctionType:
            return self.run(function, args, kwargs)
        if isinstance(function, type):
            return self.construct(function, args, kwargs)
        users = self.lookup(kind.__mro__, "__call__")
        if isinstance(users, types.FunctionType):
            return self.run(users, (function, *args), kwargs)
        raise Stop(f"calls {getattr(function, '__qualname__', kind.__name__)}")

    def construct(self, cls: type, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        """An object of a class whose making is known to do nothing else."""
        if hasattr(cls, "_fields") and cls.__mro__[1:3] == (tuple, object):
            return cls(*args, **kwargs)
        # Of the modules, a slice of one.
        if cls in (nn.ModuleList, nn.Sequential) or _is_plain_dataclass(cls):
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
        made = [*filter(self.is_fresh, (*args, *kwargs.values()))]
        if made and not self.is_tensor(value):  # else torch's own method, which keeps nothing
            self.escape(*made)
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
            if kind is not list and args and is_traced(args[:1]) and name not in ("update",):
                raise Stop("looks up a traced value")
        elif kind is str:
            args = list(map(self.plain, args))
            kwargs = {key: self.plain(value) for key, value in kwargs.items()}
        if name in ("extend", "update", "join"):
            args = [a if isinstance(a, dict | str) else [*self.iterate(a)] for a in args]
        elif name in ("index", "count") and is_traced(args, owner):
            raise Stop("compares a traced value")
        result = getattr(owner, name)(*args, **kwargs)
        if type(result) in CONTAINERS and name in ("copy", "split"):
            self.fresh(result)
        return result if self.is_fresh(owner) else self.taken(result)

    # -- questions about values -----------------------------------------------------------------

    def plain(self, value: Any) -> Any:
        """A value of which everything is known: constants, and containers of constants."""
        if type(value) in ATOMS or isinstance(value, enum.Enum | type):
            return value
        if isinstance(value, tuple | list | dict | set | frozenset | torch.Size | range):
            self.look(value, "a container")
            for item in (*value, *value.values()) if isinstance(value, dict) else value:
                self.plain(item)
            return value
        if type(value) is Traced:
            raise Stop(f"uses a traced value where its value must be known ({value.node.name})")
        raise Stop(f"uses a {type(value).__name__} as a constant")

    def truth(self, value: Any) -> bool:
        """`bool(value)`"""
        kind = type(value)
        if kind is Traced:
            raise Stop("branches on a traced value")
        if kind in CONTAINERS or isinstance(value, IMMUTABLE):
            self.look(value, f"a {kind.__name__}")
            return bool(value)
        if isinstance(value, nn.Module) and not hasattr(kind, "__bool__"):
            return not hasattr(kind, "__len__") or self.length(value) > 0
        if kind in ATOMS or isinstance(value, type | types.FunctionType | types.MethodType):
            return bool(value)
        if hasattr(kind, "__bool__") or hasattr(kind, "__len__"):
            raise Stop(f"branches on a {kind.__name__}")
        return True

    def length(self, value: Any) -> int:
        """`len(value)`"""
        if type(value) is Traced:
            if value.shape_known:
                return self.shape(value)[0]
            raise Stop("asks for the length of a traced value")
        if isinstance(value, nn.Module):
            result = self.call(self.attribute(value, "__len__"))
            assert isinstance(result, int)
            return result
        if not isinstance(value, str | bytes | KeysView | ValuesView | ItemsView):
            self.look(value, f"a {type(value).__name__}")
        return len(value)

    def iterate(self, value: Any) -> Iterator[Any]:
        """`iter(value)`"""
        kind = type(value)
        if kind is Traced:
            raise Stop("iterates over a traced value")
        if isinstance(value, nn.Module):
            return self.iterate(self.call(self.attribute(value, "__iter__")))
        if id(value) in self._fresh and isinstance(value, Iterator):
            self.writes.append(self._fresh[id(value)][0])
            return value
        if not isinstance(value, str | KeysView | ValuesView | ItemsView):
            if isinstance(value, set | frozenset):
                raise Stop("iterates over a set")
            self.look(value, f"a {kind.__name__}")
        return map(self.taken, value)

    def same_object(self, a: Any, b: Any) -> bool:
        """`a is b`, where one of them is the only object that is like it."""
        for value, other in ((a, b), (b, a)):
            if type(value) is Traced:
                if other is None and (answer := self.is_none(value)) is not None:
                    return answer
                raise Stop("tests the identity of a traced value")
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
        if op in (ast.Eq, ast.NotEq) and any(map(_is_one_of_its_kind, (a, b))):
            return function(a, b)
        return function(self.plain(a), self.plain(b))

    def _contains(self, op: type[ast.cmpop], item: Any, container: Any) -> Any:
        if is_traced(item) or type(container) is Traced:
            recorded = self.record("call_function", operator.contains, (container, item))
            if op is ast.In:
                return recorded
            return self.record("call_function", operator.not_, (recorded,))
        if isinstance(container, nn.Module):
            found = self.truth(self.call(self.attribute(container, "__contains__"), (item,)))
        else:
            if isinstance(container, dict | set | frozenset):
                self.look(container, "a container")
            else:
                self.plain(container)
            found = self.plain(item) in container
        return found is (op is ast.In)

    def binary(self, function: Callable[..., Any], a: Any, b: Any) -> Any:
        """One operation on two values: recorded, or computed if both are known."""
        kinds = {type(a), type(b)}
        is_in_place = function in IN_PLACE.values()
        if Traced in kinds:
            if is_in_place and type(a) in CONTAINERS:
                raise Stop("extends a container by a traced value")
            return self.record("call_function", function, (a, b))
        if kinds <= {list, tuple, int, torch.Size}:  # which may hold traced values
            for value in (a, b):
                if type(value) is not int:
                    self.look(value, "a container")
            if is_in_place and type(a) is list:
                self.writable(a)
                return function(a, b)
            result = function(a, b)
        else:
            result = function(self.plain(a), self.plain(b))
        return self.fresh(result) if type(result) in CONTAINERS else result

    def unary(self, function: Callable[..., Any], value: Any) -> Any:
        if type(value) is Traced:
            return self.record("call_function", function, (value,))
        return function(self.plain(value))

    # -- attributes -----------------------------------------------------------------------------

    def attribute(self, owner: Any, name: str, default: Any = MISSING) -> Any:
        """`owner.name`, or `default`."""
        found = self._attribute(owner, name)
        if found is MISSING and default is MISSING:
            raise Stop(f"reads .{name}, which a {type(owner).__name__} has not")
        return default if found is MISSING else found

    def _attribute(self, owner: Any, name: str) -> Any:
        kind = type(owner)
        if name.startswith("__") and not name.endswith("__"):
            raise Stop(f"uses the private name {name}")
        if kind is Traced:
            if owner.shape_known is not None and name in ("shape", "ndim"):
                shape = self.shape(owner)
                return shape if name == "shape" else len(shape)
            return self.record("call_function", getattr, (owner, name))
        if kind is super:
            classes = owner.__self_class__.__mro__
            after = classes[classes.index(owner.__thisclass__) + 1 :]
            return self._bound(self.lookup(after, name), owner.__self__)
        if name == "__class__":
            return class_of(owner)
        if isinstance(owner, nn.Module):
            return self.module_attribute(owner, name)
        if kind is types.ModuleType:
            return self.global_variable(vars(owner), name)
        if isinstance(owner, type):
            return self._class_attribute(owner, name)
        if isinstance(owner, tuple) and name in getattr(kind, "_fields", ()):
            return getattr(owner, name)
        if kind in _CONSTANT:
            return getattr(owner, name, MISSING)
        if name in METHODS.get(kind, ()):
            return getattr(owner, name)
        if kind is types.FunctionType and isinstance(owner.__globals__, Scope):
            raise Stop(f"reads .{name} of a function that it has made")
        if kind is types.FunctionType and name in ("__name__", "__qualname__", "__module__"):
            return getattr(owner, name)
        return self._object_attribute(owner, name)

    def _object_attribute(self, owner: Any, name: str) -> Any:
        """An attribute of an object of the user's."""
        cls: Any = type(owner)
        is_usual = cls.__getattribute__ in _USUAL and not hasattr(cls, "__getattr__")
        if not is_usual or not hasattr(owner, "__dict__"):
            raise Stop(f"reads .{name} of a {cls.__name__}")
        if isinstance(owner, enum.Enum) and name in ("name", "value"):
            return getattr(owner, name)
        found = self.lookup(cls.__mro__, name)
        if not hasattr(type(found), "__set__"):  # a data descriptor comes first
            value = vars(owner).get(name, MISSING)
            if not self.is_fresh(owner) and not is_frozen(owner):
                self.may_have_changed(owner)
                self.guard("entry", owner, "__dict__", name, value, cls.__name__)
            if value is not MISSING:
                return self.taken(value, owner)
        return self._bound(found, owner)

    def _bound(self, found: Any, owner: Any) -> Any:
        """What a class has under a name, as an attribute of an instance."""
        kind = type(found)
        if kind is types.FunctionType:
            return types.MethodType(found, owner)
        if kind is property and found.fget is not None:
            return self.call(found.fget, (owner,))
        if kind is staticmethod:
            return found.__func__
        if kind is classmethod:
            return types.MethodType(found.__func__, class_of(owner))
        if kind is types.WrapperDescriptorType or hasattr(kind, "__get__"):
            raise Stop(f"reads a {kind.__name__}")
        return found if found is MISSING else self.taken(found)

    def _class_attribute(self, cls: type, name: str) -> Any:
        if issubclass(cls, enum.Enum) and name in cls.__members__:
            return cls.__members__[name]
        if type(cls) is not type and name not in ("__name__", "__qualname__"):
            metaclass: Any = type(cls)
            for base in metaclass.__mro__[:-2]:
                if base.__module__ not in ("abc", "enum") and hasattr(base, "__getattr__"):
                    raise Stop(f"reads .{name} of the class {cls.__name__}")
        found = self.lookup(cls.__mro__, name)
        if name in ("__name__", "__qualname__"):
            return getattr(cls, name)
        if isinstance(found, classmethod):
            return types.MethodType(found.__func__, cls)
        if isinstance(found, staticmethod):
            return found.__func__
        if isinstance(found, types.FunctionType | types.MethodDescriptorType | type):
            return found
        if found is MISSING or hasattr(type(found), "__get__"):
            raise Stop(f"reads .{name} of the class {cls.__name__}")
        return self.taken(found)

    def global_variable(self, namespace: dict[str, Any], name: str) -> Any:
        value = namespace.get(name, MISSING)
        module = str(namespace.get("__name__", ""))
        if value is MISSING and "__getattr__" in namespace:
            raise Stop(f"reads .{name} of the module {module}")
        # The functions, classes and modules of torch are taken to stay what they are.
        if not isinstance(value, types.ModuleType) and not (
            module.startswith("torch") and (value is MISSING or isinstance(value, FIXED))
        ):
            if not isinstance(value, FIXED):
                self.may_have_changed(namespace)
            known = self._namespaces.setdefault(id(namespace), Namespace(namespace, module))
            self.guard("variable", known, name, value)
            self.found_outside(value)
        return value if value is MISSING else self.taken(value)

    def lookup(self, classes: tuple[type, ...], name: str) -> Any:
        """What the first of some classes has under a name; `MISSING` if none has."""
        if (classes, name) in self.looked_up:
            return self.looked_up[classes, name]
        found = MISSING
        for base in classes:
            found = vars(base).get(name, MISSING)
            if base.__flags__ & _MAY_CHANGE and not base.__module__.startswith(("torch.", "enum")):
                self.guard("attribute", base, name, found)
            if found is not MISSING:
                if not isinstance(found, (*FIXED, property, staticmethod, classmethod)):
                    self.may_have_changed(base)
                    self.found_outside(found)
                break
        self.looked_up[classes, name] = found
        return found


FIXED = (types.FunctionType, types.BuiltinFunctionType, type, types.ModuleType)
"""What a name is taken to stand for, once and for all."""


_MAY_CHANGE = 1 << 9  # a class that was made by a class statement

_CONSTANT = (
    *(torch.device, torch.dtype, torch.finfo, torch.iinfo),
    *(torch._ops._Ops, torch._ops._OpNamespace, torch._ops.OpOverloadPacket),
)
"""Types of objects of torch's whose attributes don't change."""

_USUAL = (object.__getattribute__, types.SimpleNamespace.__getattribute__)


def class_of(value: Any) -> type:
    """The class of a value, less what fxtie has made of it; a class itself."""
    cls = value if isinstance(value, type) else type(value)
    return getattr(cls, "_fxtie_class", cls)


def is_frozen(value: Any) -> bool:
    """Whether the attributes of an object can't change: of a frozen dataclass."""
    cls = value if isinstance(value, type) else type(value)
    parameters = getattr(cls, "__dataclass_params__", None)
    return parameters is not None and parameters.frozen


def _is_one_of_its_kind(value: Any) -> bool:
    """Whether no other object is equal to this one, so that `is` says what `==` says."""
    if value is None or value is Ellipsis or type(value) is bool:
        return True
    return isinstance(value, enum.Enum | type | types.FunctionType | types.ModuleType) or (
        isinstance(value, nn.Module) and type(value).__eq__ is object.__eq__
    )


def _is_plain_dataclass(cls: type) -> bool:
    fields = getattr(cls, "__dataclass_fields__", None)
    if fields is None or cls.__bases__ != (object,) or hasattr(cls, "__post_init__"):
        return False
    plain = type(cls) is type and "__new__" not in vars(cls)
    if not plain or ("__setattr__" in vars(cls) and not is_frozen(cls)):
        return False
    return "__init__" in vars(cls) and all(
        field.init and field.default_factory.__class__.__name__ == "_MISSING_TYPE"
        for field in fields.values()
    )


_WRITING = frozenset(
    {"append", "extend", "insert", "pop", "reverse", "clear", "update", "setdefault", "add"}
)
