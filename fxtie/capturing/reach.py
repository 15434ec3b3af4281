"""Which objects the code of a module can reach, and so may change."""

from __future__ import annotations

import functools
import types
from collections.abc import Iterable
from typing import Any

import torch

from fxtie.tracing.guards import ATOMS, cell_contents
from fxtie.tracing.source_code import names_in
from fxtie.tracing.traced import Traced


class Reach:
    """Which calls of modules that are not looked into can reach an object."""

    def __init__(self) -> None:
        self._calls: list[Any] = []  # kept, so that no other object gets their ids
        self._by_object: dict[int, list[int]] = {}
        self._unbounded: list[int] = []

    def add(self, *call: Any) -> int:
        """Note a call: the module and its arguments. Returns the number of the call."""
        number = len(self._calls)
        self._calls.append(call)
        found = _objects([call])
        if found is None:
            self._unbounded.append(number)
        for reached in found or ():
            self._by_object.setdefault(reached, []).append(number)
        return number

    def calls(self, holder: Any) -> Iterable[int]:
        """The numbers of the calls that can reach an object."""
        is_global = isinstance(holder, type | types.CellType) or (
            isinstance(holder, dict) and "__builtins__" in holder
        )
        if is_global:
            return range(len(self._calls))
        return (*self._unbounded, *self._by_object.get(id(holder), ()))


def _objects(pending: list[Any]) -> frozenset[int] | None:
    """The ids of all that some objects refer to; None if that may be anything."""
    ids: set[int] = set()
    while pending:
        value = pending.pop()
        if type(value) in ATOMS or id(value) in ids or isinstance(value, torch.Tensor | Traced):
            continue
        ids.add(id(value))
        if (parts := _parts(value)) is None:
            return None
        pending += parts
    return frozenset(ids)


def _parts(value: Any) -> Iterable[Any] | None:
    """What an object refers to; None if that is not known."""
    if isinstance(value, dict):
        return [*value.keys(), *value.values()]
    if isinstance(value, list | tuple | set | frozenset):
        return value
    if isinstance(value, _WITHOUT_PARTS) or type(value).__module__ in ("typing", "_abc"):
        return ()
    if isinstance(value, types.MethodType):
        return (value.__func__, value.__self__)
    if isinstance(value, functools.partial):
        return (value.func, value.args, value.keywords)
    if isinstance(value, types.FunctionType):
        return _parts_of_function(value)
    if isinstance(value, type):
        of_users = not value.__module__.startswith(("torch", "builtins", "fxtie"))
        return [*value.__bases__, *vars(value).values()] if of_users else ()
    if isinstance(value, staticmethod | classmethod):
        return (value.__func__,)
    if isinstance(value, property):
        return (value.fget,)
    if not hasattr(value, "__dict__"):
        return None
    return [type(value), *(v for k, v in vars(value).items() if k != "_fxtie")]


_WITHOUT_PARTS = (
    *(types.ModuleType, types.BuiltinFunctionType, types.MethodDescriptorType),
    *(types.WrapperDescriptorType, types.GetSetDescriptorType, types.MemberDescriptorType),
    types.ClassMethodDescriptorType,
)


def _parts_of_function(function: types.FunctionType) -> Iterable[Any]:
    if function.__module__ and function.__module__.startswith(("torch", "fxtie")):
        return ()
    cells = [cell_contents(cell) for cell in function.__closure__ or ()]
    names, variables = names_in(function.__code__), function.__globals__
    used = [variables[name] for name in names if name in variables]
    return [*cells, *used, function.__defaults__, function.__kwdefaults__]
