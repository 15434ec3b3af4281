"""Which objects the code of a module can reach, and so may change."""

from __future__ import annotations

import gc
import sys
import types
import weakref
from abc import ABC
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from fxtie.tied.state import State
from fxtie.tracing.guards import ATOMS
from fxtie.tracing.source_code import names_in, package_of
from fxtie.tracing.traced import Traced


@dataclass
class _Roots:
    """What is reached from a module, or from the arguments of a call."""

    ids: frozenset[int] | None  # None: it may be anything
    calls: list[int]  # the numbers of the calls that begin there


class Reach:
    """Which calls of modules that are not looked into can reach an object."""

    def __init__(self) -> None:
        self._calls: list[Any] = []  # kept, so that no other object gets their ids
        self._roots: list[tuple[_Roots, _Roots]] = []  # by the number of the call
        self._by_object: dict[int, list[_Roots]] = {}
        self._unbounded: list[_Roots] = []
        self._of_module: dict[int, _Roots] = {}

    def add(self, module: Any, *arguments: Any) -> int:
        """Note a call. Returns its number."""
        number = len(self._calls)
        self._calls.append((module, arguments))
        # A trace changes no module, so what one can reach is the same at each call.
        if id(module) not in self._of_module:
            self._of_module[id(module)] = self._reached_from(module)
        roots = self._of_module[id(module)], self._reached_from(arguments)
        for root in roots:
            root.calls.append(number)
        self._roots.append(roots)
        return number

    def _reached_from(self, value: Any) -> _Roots:
        roots = _Roots(_objects([value]), [])
        if roots.ids is None:
            self._unbounded.append(roots)
        for reached in roots.ids or ():
            self._by_object.setdefault(reached, []).append(roots)
        return roots

    def calls(self, holder: Any) -> Iterable[int]:
        """The numbers of the calls that can reach an object."""
        is_global = isinstance(holder, type | types.CellType) or (
            isinstance(holder, dict) and "__builtins__" in holder
        )
        if is_global:
            return range(len(self._calls))
        roots = (*self._unbounded, *self._by_object.get(id(holder), ()))
        return [number for root in roots for number in root.calls]

    def reached(self, number: int, modules: Mapping[int, nn.Module]) -> set[nn.Module]:
        """Those of some modules, by their ids, that a call can reach."""
        found: set[nn.Module] = set()
        for root in self._roots[number]:
            found.update(
                modules[i] for i in (modules if root.ids is None else root.ids & modules.keys())
            )
        return found


ANYTHING = object()
"""Stands for objects that are not known: it can't be found out what they refer to."""


def _objects(pending: list[Any]) -> frozenset[int] | None:
    """The ids of all that some objects refer to; None if that may be anything."""
    ids: set[int] = set()
    while pending:
        value = pending.pop()
        if type(value) in ATOMS or id(value) in ids or issubclass(type(value), _WITHOUT_PARTS):
            continue
        ids.add(id(value))
        if (parts := _parts(value)) is None:
            return None
        pending += parts
    return frozenset(ids)


def _parts(value: Any) -> Iterable[Any] | None:
    """What an object refers to; None if that is not known."""
    kind = type(value)
    if kind is types.FunctionType:
        return _parts_of_function(value)
    if kind is types.BuiltinFunctionType:
        return () if value.__module__ else (value.__self__,)  # of a method, of a list say
    if issubclass(kind, type) and package_of(value) in _KNOWN:
        return ()
    # The garbage collector knows, but not of weak references, and not of types that it can't see.
    is_seen = kind.__flags__ & _IS_COLLECTED and not issubclass(kind, _WEAK)
    return gc.get_referents(value) if is_seen else None


_IS_COLLECTED = 1 << 14
_WEAK: tuple[Any, ...] = (weakref.ref, *weakref.ProxyTypes)
_KNOWN = frozenset({"torch", "fxtie", "numpy", *sys.stdlib_module_names})
_WITHOUT_PARTS: tuple[Any, ...] = (
    *(torch.Tensor, Traced, State, types.ModuleType, range),
    *(types.MethodDescriptorType, types.WrapperDescriptorType, types.GetSetDescriptorType),
    *(types.MemberDescriptorType, types.ClassMethodDescriptorType),
    type(vars(ABC)["_abc_impl"]),
)


def _parts_of_function(function: types.FunctionType) -> Iterable[Any]:
    """What its code can get at: variables by their names, also those of Python modules."""
    names, used = names_in(function.__code__), []
    is_known = package_of(function) in _KNOWN
    spaces: list[Any] = [] if is_known else [function.__globals__, sys.modules]
    for space in spaces:
        for value in [space[name] for name in names if name in space]:
            if not isinstance(value, types.ModuleType):
                used.append(value)
            elif value.__name__.partition(".")[0] not in _KNOWN:
                spaces += [] if any(vars(value) is known for known in spaces) else [vars(value)]
    own = (function.__closure__, function.__defaults__, function.__kwdefaults__, vars(function))
    return [*used, *own]
