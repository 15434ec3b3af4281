"""What the code of a module can reach, and so may change; layers that change only themselves."""

from __future__ import annotations

import contextvars
import gc
import sys
import threading
import types
import weakref
from abc import ABC
from collections.abc import Iterable, Mapping, Set
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from fxtie._torch import has_storage, storage_id
from fxtie.tied.state import State
from fxtie.tracing.guards import ATOMS, has_hooks
from fxtie.tracing.source_code import names_in, package_of
from fxtie.tracing.traced import Traced
from fxtie.tracing.user_class import user_class


class Reached:
    """What some objects refer to, directly or not.

    Attributes:
        ids: the ids of all of these objects, and the keys of tensors.
        is_bounded: whether that is all: some may refer to anything.
    """

    def __init__(self) -> None:
        self.ids: set[int] = set()
        self.is_bounded = True

    def add(self, objects: Iterable[Any], elsewhere: list[Any] | None = None) -> None:
        """Add objects, and what they refer to.

        Args:
            objects: to begin with.
            elsewhere: filled with classes and variables of Python modules, if these are not to be
                followed.
        """
        pending, ids = [*objects], self.ids
        others = pending if elsewhere is None else elsewhere
        while pending:
            value = pending.pop()
            kind = type(value)
            if isinstance(value, torch.Tensor):
                ids.add(key_of(value))
            if kind in ATOMS or id(value) in ids or issubclass(kind, _WITHOUT_PARTS):
                continue
            if issubclass(kind, _SHARED):
                if _is_known(value):
                    continue
                if elsewhere is not None:
                    elsewhere.append(value if isinstance(value, type) else vars(value))
                    continue
                if not isinstance(value, type):  # a Python module: registries hold hundreds
                    continue
            ids.add(id(value))
            if kind is types.FunctionType:
                others += _variables(value)
            if (parts := _parts(value)) is None:
                self.is_bounded = False
                return
            pending += parts


@dataclass
class _Roots:
    """What is reached from a module, or from the arguments of a call."""

    ids: Set[int] | None  # None: it may be anything
    shares: bool  # whether also what `Reach` says is shared
    calls: list[int]  # the numbers of the calls that begin there


class Reach:
    """Which calls of modules that are not looked into can reach an object.

    Args:
        shared: what classes, and variables of Python modules, refer to: half a library, maybe. So
            it is found once, and a call that reaches one of these is taken to reach all.
    """

    def __init__(self, shared: Reached) -> None:
        self._shared = shared
        self._kept: list[Any] = []  # so that no other object gets their ids
        self._roots: list[tuple[_Roots, _Roots]] = []  # by the number of the call
        self._by_object: dict[int, list[_Roots]] = {}
        self._sharing: list[_Roots] = []
        self._unbounded: list[_Roots] = []
        self._of_module: dict[int, _Roots] = {}

    def add(self, module: Any, *arguments: Any) -> int:
        """Note a call. Returns its number."""
        number = len(self._roots)
        # A trace changes no module, so what one can reach is the same at each call.
        if id(module) not in self._of_module:
            self._of_module[id(module)] = self._reached_from(module)
        roots = self._of_module[id(module)], self._reached_from(arguments)
        for root in roots:
            root.calls.append(number)
        self._roots.append(roots)
        return number

    def _reached_from(self, value: Any) -> _Roots:
        own, others = Reached(), list[Any]()
        own.add([value], others)
        self._shared.add(others)
        self._kept.append((value, others))
        is_bounded = own.is_bounded and (self._shared.is_bounded or not others)
        shares = any(id(other) in self._shared.ids for other in others)
        roots = _Roots(own.ids if is_bounded else None, shares, [])
        if not is_bounded:
            self._unbounded.append(roots)
        elif shares:
            self._sharing.append(roots)
        for reached in roots.ids or ():
            self._by_object.setdefault(reached, []).append(roots)
        return roots

    def calls(self, holder: Any) -> Iterable[int]:
        """The numbers of the calls that can reach an object."""
        is_global = isinstance(holder, type | types.CellType) or (
            isinstance(holder, dict) and "__builtins__" in holder
        )
        if is_global:
            return range(len(self._roots))
        sharing = self._sharing if id(holder) in self._shared.ids else ()
        roots = (*self._unbounded, *sharing, *self._by_object.get(id(holder), ()))
        return [number for root in roots for number in root.calls]

    def reached(self, number: int, modules: Mapping[int, nn.Module]) -> set[nn.Module]:
        """Those modules that a call can reach, of some by their ids and their tensors' keys."""
        found: set[nn.Module] = set()
        for root in self._roots[number]:
            found.update(
                modules[i] for i in (modules if root.ids is None else root.ids & modules.keys())
            )
            if root.shares:
                found.update(modules[i] for i in self._shared.ids & modules.keys())
        return found


def key_of(tensor: torch.Tensor) -> int:
    """The same for tensors that share memory, and no object's id."""
    return -storage_id(tensor) if has_storage(tensor) else -id(tensor)


ANYTHING = object()
"""Stands for objects that are not known: it can't be found out what they refer to."""


def _is_known(value: type | types.ModuleType | types.FunctionType) -> bool:
    """Whether it is of a library that keeps nothing of a user's model to itself."""
    is_module = isinstance(value, types.ModuleType)
    return (value.__name__.partition(".")[0] if is_module else package_of(value)) in _KNOWN


def _parts(value: Any) -> Iterable[Any] | None:
    """What an object refers to; None if that is not known."""
    kind = type(value)
    if value is ANYTHING:
        return None
    if kind is types.FunctionType:
        return (value.__closure__, value.__defaults__, value.__kwdefaults__, vars(value))
    if kind is types.BuiltinFunctionType:
        return () if value.__module__ else (value.__self__,)  # of a method, of a list say
    if issubclass(kind, weakref.ref):
        return (*gc.get_referents(value), weakref.ref.__call__(value))
    if kind is contextvars.ContextVar:
        return (value.get(None),)
    if kind in _EMPTY or (kind.__module__, kind.__name__) in _LINKS:
        return ()
    # The garbage collector knows, but not of types that it can't see, and not of weak proxies.
    is_seen = kind.__flags__ & _IS_COLLECTED and kind not in weakref.ProxyTypes
    return gc.get_referents(value) if is_seen else None


_EMPTY = (object, type(threading.Lock()), type(threading.RLock()))
# Inside of an `lru_cache` and of a `threading.local`, which themselves show what they hold.
_LINKS = {("functools", "_lru_list_elem"), ("_thread", "_localdummy")}
_SHARED = (type, types.ModuleType)
_IS_COLLECTED = 1 << 14
_KNOWN = frozenset({"torch", "fxtie", "numpy", *sys.stdlib_module_names})
_WITHOUT_PARTS: tuple[Any, ...] = (
    *(torch.Tensor, Traced, State, range),
    *(types.MethodDescriptorType, types.WrapperDescriptorType, types.GetSetDescriptorType),
    *(types.MemberDescriptorType, types.ClassMethodDescriptorType, types.CodeType),
    type(vars(ABC)["_abc_impl"]),
)


def _variables(function: types.FunctionType) -> list[Any]:
    """What code gets at by names: variables of its own Python module, and of others."""
    names, found = names_in(function.__code__), list[Any]()
    spaces: list[Any] = [] if _is_known(function) else [function.__globals__, sys.modules]
    for space in spaces:
        for value in [space[name] for name in names if name in space]:
            if not isinstance(value, types.ModuleType):
                found.append(value)
            elif not _is_known(value):
                spaces += [] if any(vars(value) is known for known in spaces) else [vars(value)]
    return found


def changes_only_itself(module: nn.Module) -> bool:
    """Whether a call of a module, but for its children, runs nothing but code of torch's layers.

    Such code changes nothing but the module.
    """
    return (
        _is_of_torch(user_class(module))
        and not has_hooks(module)
        and all(package_of(v) in _LAYERS for v in vars(module).values() if callable(v))
    )


def runs_only_torch(module: nn.Module) -> bool:
    """Whether a call of a module runs nothing but code of torch's layers, its children included."""
    return all(map(changes_only_itself, module.modules()))


def _is_of_torch(cls: type) -> bool:
    """Whether a class is a layer of torch's, or one that only adds to it."""
    layers = [base for base in cls.__mro__ if base.__module__.startswith(("torch.nn.", "einops."))]
    return bool(layers) and all(
        name.startswith(("__init", "__annotate"))
        or type(value) in _DATA
        # Torch's code calls no method that it does not know. A property may hide what it reads.
        or (type(value) in _METHODS and name[0] != "_" and not hasattr(layers[0], name))
        for base in {*cls.__mro__} - {*layers, object}
        for name, value in vars(base).items()
    )


_DATA = ATOMS | {dict, list, tuple}
_METHODS = (types.FunctionType, staticmethod, classmethod)
_LAYERS = ("torch", "einops")
