"""Attributes in a trace: of modules, classes, objects of the user's, and traced values.

In: an object and a name. Out: the attribute, guarded; of a traced object, recorded as a node. What
is not known to be safe stops the trace.
"""

from __future__ import annotations

import builtins
import collections
import enum
import types
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from fxtie._torch import OPERATOR_NAMESPACES, OpOverloadPacket
from fxtie.tracing.gate import METHODS
from fxtie.tracing.guards import MISSING, entry_of
from fxtie.tracing.namespace import Namespace
from fxtie.tracing.recorder import Recorder, is_known_class
from fxtie.tracing.scope import Scope
from fxtie.tracing.source_code import FIXED_PACKAGES, package_of
from fxtie.tracing.stops import Absent, Stop
from fxtie.tracing.traced import Traced
from fxtie.tracing.user_class import user_class


class Members:
    """The `__dict__` of an object of the user's, of which code asks for members by name."""

    def __init__(self, owner: Any) -> None:
        self.owner = owner

    def get(self, name: str, default: Any = None) -> Any:
        """For the gate to call."""
        raise NotImplementedError


class Attributes(Recorder):
    """Attribute reads."""

    call: Callable[..., Any]  # anything, if that may be part of a trace

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
            return self._traced_attribute(owner, name)
        if kind is super:
            classes = owner.__self_class__.__mro__
            after = classes[classes.index(owner.__thisclass__) + 1 :]
            return self._bound(self.lookup(after, name), owner.__self__, name)
        if name == "__class__":
            return self.class_of(owner)
        if isinstance(owner, nn.Module):
            return self.module_attribute(owner, name)
        if isinstance(owner, types.ModuleType) and self._is_variable(owner, name):
            return self.global_variable(vars(owner), name)
        if isinstance(owner, type):
            return self._class_attribute(owner, name)
        if kind in _CONSTANT or name in METHODS.get(kind, ()):
            return getattr(owner, name, MISSING)
        if isinstance(owner, tuple) and type(self.lookup(kind.__mro__, name)) is _FIELD:
            return self.taken(getattr(owner, name), owner)
        if kind is types.FunctionType:
            return self._function_attribute(owner, name)
        if kind is Members and name == "get":
            return types.MethodType(Members.get, owner)
        return self._object_attribute(owner, name)

    def class_of(self, value: Any, label: str = "") -> Any:
        """The class of an object, guarded; of what is made in `tied`, the user's."""
        kind, key = type(value), (id(value), "__class__")
        if key not in self.looked_up and kind.__flags__ & _MAY_CHANGE:
            if any("__class__" in vars(base) for base in kind.__mro__[:-1]):
                raise Stop(f"asks for the class of a {kind.__name__}, which computes it")
            if kind.__dictoffset__ and not self.is_fresh(value):
                self.guard("of_class", value, user_class(value), label or f"a {kind.__name__}")
            self.looked_up[key] = value
        return user_class(value)

    def _traced_attribute(self, owner: Traced, name: str) -> Any:
        if owner.shape_known is not None and name in ("shape", "ndim"):
            shape = self.shape(owner)
            return shape if name == "shape" else len(shape)
        return self.record("call_function", getattr, (owner, name))

    def _function_attribute(self, owner: types.FunctionType, name: str) -> Any:
        if isinstance(owner.__globals__, Scope):
            raise Stop(f"reads .{name} of a function that it has made")
        if name in ("__name__", "__qualname__", "__module__", "__code__"):
            return getattr(owner, name)
        return self._object_attribute(owner, name)

    def _object_attribute(self, owner: Any, name: str) -> Any:
        """An attribute of an object of the user's."""
        cls: Any = self.class_of(owner)
        found = self.lookup(cls.__mro__, name)
        if name in ("name", "value") and found is vars(enum.Enum)[name]:
            return getattr(owner, name)
        getter = self.lookup(cls.__mro__, "__getattribute__")
        if isinstance(getter, types.FunctionType):
            value = self._computed("__getattribute__", owner, name)
        elif getter in _USUAL:
            value = self.own_attribute(owner, name)
        else:
            raise Stop(f"reads .{name} of a {cls.__name__}")
        if value is MISSING and self.lookup(cls.__mro__, "__getattr__") is not MISSING:
            return self._computed("__getattr__", owner, name)
        return value

    def own_attribute(self, owner: Any, name: str) -> Any:
        """What `object.__getattribute__` finds."""
        cls: Any = self.class_of(owner)
        found = self.lookup(cls.__mro__, name)
        if not type(owner).__dictoffset__:
            raise Stop(f"reads .{name} of a {cls.__name__}, which has no __dict__")
        if name == "__dict__" and type(found) is types.GetSetDescriptorType:
            return Members(owner)
        # A data descriptor comes first.
        value = MISSING if is_data_descriptor(found) else self.member(owner, name)
        return self._bound(found, owner, name) if value is MISSING else value

    def member(self, owner: Any, name: str) -> Any:
        """What an object of the user's has itself under a name; `MISSING` if it has nothing."""
        value = entry_of(owner, "__dict__", name)
        if not is_frozen(owner):
            self.may_have_changed(owner)
        if not (is_frozen(owner) or self.is_fresh(owner)):
            self.guard("entry", owner, "__dict__", name, value, user_class(owner).__name__)
        return value if value is MISSING else self.taken(value, owner)

    def _computed(self, method: str, owner: Any, name: str) -> Any:
        """What a method of the user's gives for an attribute; `MISSING` if that finds none."""
        function = self.lookup(user_class(owner).__mro__, method)
        if not isinstance(function, types.FunctionType):
            raise Stop(f"reads .{name} of a {type(owner).__name__}")
        try:
            return self.call(function, (owner, name))
        except Absent:
            return MISSING

    def _is_variable(self, module: types.ModuleType, name: str) -> bool:
        """Whether an attribute of a Python module is a variable: `torch.backends` computes some."""
        kind = type(module)
        if kind is types.ModuleType:
            return True
        is_usual = kind.__getattribute__ is types.ModuleType.__getattribute__
        return is_usual and name in vars(module) and self.lookup(kind.__mro__, name) is MISSING

    def _bound(self, found: Any, owner: Any, name: str) -> Any:
        """What a class has under a name, as an attribute of an instance."""
        kind = type(found)
        if kind is types.FunctionType or found is object.__getattribute__:
            return types.MethodType(found, owner)
        if kind is property and found.fget is not None:
            return self.call(found.fget, (owner,))
        if kind is staticmethod:
            return found.__func__
        if kind is classmethod and isinstance(found.__func__, types.FunctionType):
            return types.MethodType(found.__func__, user_class(owner))
        if kind is types.WrapperDescriptorType or hasattr(kind, "__get__"):
            by = "code in C" if package_of(kind) == "builtins" else f"a {kind.__name__}"
            raise Stop(f"reads .{name} of a {type(owner).__name__}, which {by} computes")
        return found if found is MISSING else self.taken(found)

    def _class_attribute(self, cls: type, name: str) -> Any:
        if issubclass(cls, enum.Enum) and name in cls.__members__:
            return cls.__members__[name]
        if name in ("__name__", "__qualname__"):
            return getattr(cls, name)
        if not is_known_class(cls):
            raise Stop(f"reads .{name} of the class {cls.__name__}")
        found = self.lookup(cls.__mro__, name)
        if isinstance(found, classmethod | staticmethod):
            return self._bound(found, cls, name)
        if isinstance(found, _FUNCTIONS | type):
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
            module.partition(".")[0] == "torch" and (value is MISSING or isinstance(value, FIXED))
        ):
            if not isinstance(getattr(builtins, name, None) if value is MISSING else value, FIXED):
                self.may_have_changed(namespace)
            known = self._namespaces.setdefault(id(namespace), Namespace(namespace, module))
            self.guard("variable", known, name, value)
            self.found_outside(value)
        return value if value is MISSING else self.taken(value)

    def lookup(self, classes: tuple[type, ...], name: str) -> Any:
        """What the first of some classes has under a name; `MISSING` if none has."""
        if (classes, name) in self.looked_up:
            return self.looked_up[classes, name]
        found, cls = MISSING, classes[0]
        if cls.__mro__ is classes and (cls, "__mro__") not in self.looked_up:
            self.looked_up[cls, "__mro__"] = classes
            if _may_change(cls):
                self.guard("own", cls, "__mro__", classes, cls.__name__)
        for base in classes:
            found = vars(base).get(name, MISSING)
            if _may_change(base):
                self.guard("attribute", base, name, found)
            if found is not MISSING:
                if base.__flags__ & _MAY_CHANGE and not isinstance(
                    found, (*FIXED, property, staticmethod, classmethod)
                ):
                    self.may_have_changed(base)  # by what is called before the next look, too
                    self.found_outside(found)
                    return found
                break
        self.looked_up[classes, name] = found
        return found


FIXED = (types.FunctionType, types.BuiltinFunctionType, type, types.ModuleType)
"""What a name is taken to stand for, once and for all."""


_FUNCTIONS = types.FunctionType | types.MethodDescriptorType | types.WrapperDescriptorType

_MAY_CHANGE = 1 << 9  # a class that was made by a class statement


def _may_change(cls: type) -> bool:
    """Whether a class is one that users may patch."""
    return bool(cls.__flags__ & _MAY_CHANGE) and package_of(cls) not in FIXED_PACKAGES


_FIELD: Any = type(collections.namedtuple("_Example", ["field"]).field)  # type: ignore[attr-defined]
"""What named tuples have for their fields."""

_CONSTANT = (
    *(torch.device, torch.dtype, torch.finfo, torch.iinfo, types.CodeType),
    *(*OPERATOR_NAMESPACES, OpOverloadPacket),
)
"""Types of objects whose attributes don't change."""

_USUAL = (object.__getattribute__, types.SimpleNamespace.__getattribute__)


def is_data_descriptor(found: Any) -> bool:
    """Whether what a class has under a name comes before what its instances have."""
    kind = type(found)
    return hasattr(kind, "__get__") and (hasattr(kind, "__set__") or hasattr(kind, "__delete__"))


def is_frozen(value: Any) -> bool:
    """Whether a frozen dataclass, or an object of one: its attributes can't change."""
    cls = value if isinstance(value, type) else type(value)
    parameters = vars(cls).get("__dataclass_params__")  # its subclasses may have more attributes
    return parameters is not None and parameters.frozen
