"""A model copied along the paths to some of its modules; all else is shared with the original.

These modules, and every module that leads to one of them, are fresh objects. "Leads to" means by
registration or by any plain attribute: a list of blocks, a bound method, a back-reference, an
object of the user's that has one.
"""

from __future__ import annotations

import collections
import copy
import functools
import sys
import types
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from operator import is_
from typing import Any, ClassVar

import torch
from torch import nn

from fxtie.tied.derived import Derived, Source
from fxtie.tied.state import State, state_of
from fxtie.tracing.source_code import package_of
from fxtie.tracing.user_class import user_class


def copy_paths(root: nn.Module, changed: Iterable[nn.Module]) -> dict[nn.Module, nn.Module]:
    """Shallow copies of the root, of `changed` and of what leads to them, by original."""
    return copy_modules(leading_to([root, *changed], referrers(root)))


def referrers(root: nn.Module) -> dict[nn.Module, list[nn.Module]]:
    """For each module of a model, those that refer to it."""
    parents: dict[nn.Module, list[nn.Module]] = {root: []}
    pending = [root]
    while pending:
        module = pending.pop()
        for child in references(module):
            if child not in parents:
                parents[child] = []
                pending.append(child)
            parents[child].append(module)
    return parents


def leading_to(
    modules: Iterable[nn.Module], parents: Mapping[nn.Module, Iterable[nn.Module]]
) -> dict[nn.Module, None]:
    """These modules, and all that lead to one of them."""
    found: dict[nn.Module, None] = {}
    pending = list(modules)
    while pending:
        module = pending.pop()
        if module not in found:
            found[module] = None
            pending += parents.get(module, ())
    return found


def copy_modules(modules: Iterable[nn.Module]) -> dict[nn.Module, nn.Module]:
    """Shallow copies, by original. Those that refer to one another refer to the copies."""
    copies = {module: object.__new__(user_class(module)) for module in modules}
    rewire = _Rewiring(lambda module: copies.get(module, module))
    for module, new in copies.items():
        members, state = new.__dict__, state_of(module)
        members.update(module.__dict__)
        for name in ("_fxtie", *state.added):  # by capturing and running it
            members.pop(name, None)
        if state.derived:
            members["_fxtie"] = State(dict(state.derived), state.order)
        for name, value in members.items():
            if type(value) not in _ATOMS:  # most are
                members[name] = rewired = rewire(value)
                if rewired is value and name in _OWN:  # the copy's own, changed or not
                    members[name] = _copied(value)
    return copies


def references(module: nn.Module) -> Iterator[nn.Module]:
    """The modules that a module refers to."""
    found: list[nn.Module] = []

    def note(other: nn.Module) -> nn.Module:
        found.append(other)
        return other

    look = _Rewiring(note)
    for name, value in module.__dict__.items():
        kind = type(value)
        if kind in _ATOMS or (kind in _DICTS and not value):  # most are
            continue
        if name == "_modules":
            found += [child for child in value.values() if child is not None]
        elif name not in _NO_REFERENCES:
            look(value)
    yield from found


class _Rewiring:
    """Swaps modules in a value. Containers of what is swapped are copied; the rest is shared."""

    def __init__(self, swap: Callable[[nn.Module], nn.Module]) -> None:
        self.swap = swap
        self.done: dict[int, Any] = {}
        self.alive: list[Any] = []  # an id is one object's as long as that lives

    def __call__(self, value: Any) -> Any:
        kind = type(value)
        if kind in _ATOMS or (kind is tuple and _ATOMS.issuperset(map(type, value))):
            return value
        if id(value) in self.done:
            return self.done[id(value)]
        if kind in _DICTS and not value:  # the hooks of a module, most of the time
            return value
        if issubclass(kind, nn.Module):
            return self.swap(value)
        if issubclass(kind, torch.Tensor):
            return value
        self.done[id(value)] = value  # for what refers to itself
        rewired = self.rewired(value)
        self.alive.append(value)
        self.done[id(value)] = rewired
        return rewired

    def rewired(self, value: Any) -> Any:
        """A value that is not known yet, by what it is."""
        kind: Any = type(value)
        if issubclass(kind, dict):
            return self.mapping(value)
        if issubclass(kind, tuple):
            members = [self(item) for item in value]
            if all(map(is_, members, value)):
                return value
            return kind(*members) if hasattr(value, "_fields") else kind(members)
        if kind.__module__ == "torch.nn.modules.module" and hasattr(value, "with_module"):
            # A state_dict hook that wants its module.
            owner = value.module() if value.with_module else None
            return kind(self(value.hook), owner and self(owner))
        if (rewire := self.by_kind.get(kind)) is not None:
            return rewire(self, value)
        return self.plain_object(value) if _is_plain(kind) else value

    def plain_object(self, value: Any) -> Any:
        members = {name: self(member) for name, member in vars(value).items()}
        if all(map(is_, members.values(), vars(value).values())):
            return value
        kind: Any = type(value)
        new = self.done[id(value)] = kind.__new__(kind)
        vars(new).update(members)
        return new

    def mapping(self, value: Any) -> Any:
        items = {self(key): self(item) for key, item in value.items()}
        if all(map(is_, (*items, *items.values()), (*value, *value.values()))):
            return value
        new = self.done[id(value)] = _copied(value)
        for key in [key for key in value if key not in items]:
            del new[key]
        for key, item in items.items():
            new[key] = item
        return new

    def collection(self, value: Any) -> Any:
        members = [self(item) for item in value]
        if all(map(is_, members, value)):
            return value
        new = self.done[id(value)] = value.copy()
        new.clear()
        (new.update if type(value) is set else new.extend)(members)
        return new

    def partial(self, value: functools.partial[Any]) -> functools.partial[Any]:
        keywords = {name: self(item) for name, item in value.keywords.items()}
        return functools.partial(self(value.func), *map(self, value.args), **keywords)

    def weak_reference(self, value: weakref.ReferenceType[Any]) -> Any:
        referent = value()
        return weakref.ref(self(referent)) if isinstance(referent, nn.Module) else value

    def weak_proxy(self, value: Any) -> Any:
        try:
            referent = value.__repr__.__self__
        except ReferenceError:  # it is gone
            return value
        return weakref.proxy(self(referent)) if isinstance(referent, nn.Module) else value

    def function(self, value: types.FunctionType) -> types.FunctionType:
        """A function that closes over modules, or has them as defaults, with their copies."""
        cells = [cell for cell in value.__closure__ or () if _is_filled(cell)]
        contents = [self(cell.cell_contents) for cell in cells]
        defaults, by_name = self(value.__defaults__), self(value.__kwdefaults__)
        before = *(cell.cell_contents for cell in cells), value.__defaults__, value.__kwdefaults__
        if all(map(is_, (*contents, defaults, by_name), before)):
            return value
        swapped = {id(cell): types.CellType(new) for cell, new in zip(cells, contents, strict=True)}
        closure = tuple(swapped.get(id(cell), cell) for cell in value.__closure__ or ())
        code, names = value.__code__, value.__globals__
        new = types.FunctionType(code, names, value.__name__, defaults, closure)
        new.__kwdefaults__ = by_name
        new.__dict__.update(value.__dict__)
        return new

    by_kind: ClassVar[Mapping[type, Callable[[_Rewiring, Any], Any]]] = {
        **dict.fromkeys((list, set, collections.deque), collection),
        frozenset: lambda self, value: frozenset(map(self, value)),
        types.MethodType: lambda self, value: types.MethodType(
            value.__func__, self(value.__self__)
        ),
        types.FunctionType: function,
        functools.partial: partial,
        weakref.ReferenceType: weak_reference,
        **dict.fromkeys(weakref.ProxyTypes, weak_proxy),
        Source: lambda self, value: replace(value, root=self(value.root)),
        Derived: lambda self, value: replace(
            value, owner=self(value.owner), sources=self(value.sources)
        ),
        State: lambda self, value: replace(value, derived=self(value.derived)),
    }


def _copied(value: Any) -> Any:
    return value.copy() if type(value) in _DICTS else copy.copy(value)  # which takes its time


@functools.cache
def _is_plain(cls: type) -> bool:
    """Whether objects of a class of the user's are no more than their attributes."""
    makes_no_more: Any = object.__new__
    is_users = package_of(cls) not in _OTHERS and cls.__new__ is makes_no_more
    return cls is types.SimpleNamespace or (is_users and cls.__dictoffset__ != 0)


_OTHERS = frozenset({"torch", "fxtie", *sys.stdlib_module_names})


def _is_filled(cell: types.CellType) -> bool:
    try:
        return cell.cell_contents is not None
    except ValueError:  # a name that is not bound yet
        return False


_OWN = frozenset(name for name, value in nn.Module().__dict__.items() if isinstance(value, dict))
_NO_REFERENCES = frozenset({"_parameters", "_buffers"})
_DICTS = (dict, collections.OrderedDict)
_ATOMS = frozenset({int, float, bool, str, bytes, type(None), complex})
