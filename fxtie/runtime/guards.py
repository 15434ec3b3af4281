"""Guards: what a trace took for granted, checked before its graph runs.

In: each fact that a trace reads from outside of tensors: an attribute, an entry of a dict, the
items of a list, a global, the shape of a stored tensor. Out: whether all of them hold now, in
microseconds, and which does not.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable, Iterable, Mapping, Set
from operator import is_, itemgetter
from types import CellType
from typing import Any, TypeAlias

import torch
from torch import nn

MISSING: Any = type("Missing", (), {"__reduce__": lambda self: "MISSING"})()
"""What is read of something that is not there."""

ATOMS = frozenset(
    {int, float, complex, bool, str, bytes, type(None), type(...)}
    | {torch.dtype, torch.device, torch.layout, torch.memory_format}
)
"""Types of constants: equal ones of one type are alike."""


def alike(a: Any, b: Any) -> bool:
    """Whether code can't tell two values apart: the same object, or equal constants."""
    if a is b:
        return True
    if type(a) is not type(b):
        return False
    if isinstance(a, tuple):
        return len(a) == len(b) and all(map(alike, a, b))
    if type(a) is float:
        return bool(a.hex() == b.hex())  # 0.0 is not -0.0
    return type(a) in ATOMS and bool(a == b)


Fact: TypeAlias = tuple[str, tuple[Any, ...]]
"""The name of a method of `Guards`, and its arguments."""


class Guards:
    """The facts that one graph depends on. Deepcopy and pickle take them along.

    Args:
        facts: what a trace took for granted.
    """

    def __init__(self, facts: Iterable[Fact] = ()) -> None:
        self._entries: dict[tuple[int, str], _Entries] = {}
        self._checks: dict[tuple[Any, ...], _Check] = {}
        self._namespaces: dict[int, Namespace] = {}
        for name, args in facts:
            getattr(self, name)(*args)

    def entry(self, holder: Any, mapping: str, key: Any, value: Any, label: str) -> None:
        """`getattr(holder, mapping)[key]` is `value`, or is not there if that is `MISSING`.

        Args:
            label: what to call the holder in a report.
        """
        entries = self._entries.get((id(holder), mapping))
        if entries is None:
            entries = self._entries[id(holder), mapping] = _Entries(holder, mapping, label)
        entries.add(key, value)

    def global_variable(self, variables: dict[str, Any], key: str, value: Any) -> None:
        """A variable of a Python module is `value`."""
        name = variables.get("__name__", "")
        namespace = self._namespaces.setdefault(id(variables), Namespace(variables, name))
        self.entry(namespace, "variables", key, value, name)

    def cell(self, cell: CellType, key: str, value: Any) -> None:
        """A variable of an enclosing function is `value`."""
        self._check((id(cell),), _cell_contents, (Cell(cell),), value, key)

    def class_attribute(self, cls: type, name: str, value: Any) -> None:
        """An attribute found on a class is `value`."""
        label = f"{cls.__name__}.{name}"
        self._check((id(cls), name), static_attribute, (cls, name), value, label)

    def shape(self, holder: nn.Module, attr: str, value: torch.Size, label: str) -> None:
        """A stored tensor has this shape."""
        self._check((id(holder), attr), _shape_of, (holder, attr), value, f"the shape of {label}")

    def contents(self, container: Any, items: tuple[Any, ...], label: str) -> None:
        """A list, dict or set has these items."""
        self._check((id(container),), items_of, (container,), items, label)

    def item(self, container: Any, key: Any, value: Any, label: str) -> None:
        """An item of a list or dict is `value`."""
        self._check((id(container), key), _get, (container, key), value, f"{label}[{key!r}]")

    def answer(self, function: Callable[..., Any], args: tuple[Any, ...], value: Any) -> None:
        """A function about the state of torch gives `value`."""
        label = f"{function.__name__}({', '.join(map(str, args))})"
        self._check(args, function, args, value, label, is_answer=True)

    def is_tensor(self, holder: Any, mapping: str, key: str, label: str) -> None:
        """An attribute of a module is a tensor, not None."""
        args = (holder, mapping, key)
        self._check((id(holder), key), _is_tensor_in, args, True, f"whether {label} is a tensor")

    def no_hooks(self, module: nn.Module, label: str) -> None:
        """A module whose forward stands in the graph has no hooks, which would not be called."""
        self._check((id(module),), _has_hooks, (module,), False, f"whether {label} has hooks")

    def of_class(self, module: nn.Module, get: Callable[[nn.Module], type], label: str) -> None:
        """A module is of the class that it is of now."""
        self._check((id(module),), get, (module,), get(module), f"the class of {label}")

    def _check(
        self,
        key: tuple[Any, ...],
        read: Callable[..., Any],
        args: tuple[Any, ...],
        value: Any,
        label: str,
        *,
        is_answer: bool = False,
    ) -> None:
        self._checks.setdefault((read, *key), _Check(read, args, value, label, is_answer))

    def let_be_replaced(self, modules: Set[nn.Module]) -> None:
        """Accept other modules in the place of these, which the graph only calls, by name."""
        for entries in self._entries.values():
            if entries.mapping == "_modules":
                entries.called = {
                    key
                    for key, value in entries.present.items()
                    if isinstance(value, nn.Module) and value in modules
                }

    def include(self, other: Guards) -> None:
        """Add the facts of another trace."""
        for entries in other._entries.values():
            for key, value in (*entries.present.items(), *((k, MISSING) for k in entries.absent)):
                self.entry(entries.holder, entries.mapping, key, value, entries.label)
            mine = self._entries[id(entries.holder), entries.mapping]
            mine.called &= entries.called | (mine.present.keys() - entries.present.keys())
        for key, check in other._checks.items():
            self._checks.setdefault(key, check)

    def __len__(self) -> int:
        return len(self._checks) + sum(len(entries) for entries in self._entries.values())

    def broken(self) -> tuple[str, bool] | None:
        """What does not hold now, and whether that will last. None if everything holds."""
        for entries in self._entries.values():
            if not entries.hold() and (found := entries.broken()) is not None:
                return found, True
        for check in self._checks.values():
            if (found := check.broken()) is not None:
                return found, not check.is_answer
        return None

    def __getstate__(self) -> Any:
        return list(self._entries.values()), list(self._checks.values())

    def __setstate__(self, state: Any) -> None:  # with keys of the copies' ids
        entries, checks = state
        self._namespaces = {}
        self._entries = {(id(e.holder), e.mapping): e for e in entries}
        self._checks = {(i,): check for i, check in enumerate(checks)}


class _Entries:
    """Facts about the entries of one mapping."""

    def __init__(self, holder: Any, mapping: str, label: str) -> None:
        self.holder, self.mapping, self.label = holder, mapping, label
        self.present: dict[Any, Any] = {}
        self.absent: list[Any] = []
        self.called: set[Any] = set()  # modules that are only called, by name
        self._get: Callable[[Any], Any] | None = None
        self._expected: tuple[Any, ...] = ()

    def add(self, key: Any, value: Any) -> None:
        if value is not MISSING:
            self.present.setdefault(key, value)
            self._get = None
        elif key not in self.absent:
            self.absent.append(key)

    def hold(self) -> bool:
        """Whether all facts surely hold: compares identities only, in C."""
        mapping = getattr(self.holder, self.mapping)
        if self._get is None:
            # Two of the last one, since of a single key itemgetter gives no tuple.
            keys = [*self.present, *list(self.present)[-1:]]
            self._get = itemgetter(*keys) if keys else lambda _: ()
            self._expected = tuple(map(self.present.__getitem__, keys))
        try:
            now = self._get(mapping)
        except LookupError:
            return False
        return all(map(is_, now, self._expected)) and not any(
            map(mapping.__contains__, self.absent)
        )

    def broken(self) -> str | None:
        mapping = getattr(self.holder, self.mapping)
        for key, value in self.present.items():
            now = _get(mapping, key)
            is_called = key in self.called and isinstance(now, nn.Module)
            if not is_called and not alike(now, value):
                return _changed(self._name(key), value, now)
        for key in self.absent:
            if key in mapping:
                return f"{self._name(key)} was set"
        # Equal constants that are other objects: next time, these are expected.
        self.present = {key: _get(mapping, key) for key in self.present}
        self._get = None
        return None

    def _name(self, key: Any) -> str:
        return f"{self.label}.{key}" if self.label else str(key)

    def __len__(self) -> int:
        return len(self.present) + len(self.absent)

    def __deepcopy__(self, memo: dict[int, Any]) -> _Entries:
        if isinstance(self.holder, Namespace):
            return self  # globals are no part of what is copied
        new = object.__new__(_Entries)
        new.__setstate__(copy.deepcopy(self.__getstate__(), memo))
        return new

    def __getstate__(self) -> Any:
        return self.holder, self.mapping, self.label, self.present, self.absent, self.called

    def __setstate__(self, state: Any) -> None:
        self.holder, self.mapping, self.label, self.present, self.absent, self.called = state
        self._get = None


def _get(mapping: Any, key: Any) -> Any:
    try:
        return mapping[key]
    except LookupError:
        return MISSING


class _Check:
    """Something that is read anew, and what it must be."""

    def __init__(
        self,
        read: Callable[..., Any],
        args: tuple[Any, ...],
        value: Any,
        label: str,
        is_answer: bool,
    ) -> None:
        self.read, self.args, self.value, self.label = read, args, value, label
        self.is_answer = is_answer

    def __deepcopy__(self, memo: dict[int, Any]) -> _Check:
        if self.is_answer or isinstance(self.args[0], Cell | type):
            return self  # about nothing that is copied
        new = object.__new__(_Check)
        new.__dict__.update(copy.deepcopy(self.__dict__, memo))
        return new

    def broken(self) -> str | None:
        try:
            now = self.read(*self.args)
        except (AttributeError, LookupError):
            now = MISSING
        if now is self.value or alike(now, self.value):
            return None
        return _changed(self.label, self.value, now)


def _changed(label: str, before: Any, now: Any) -> str:
    if now is MISSING:
        return f"{label} is gone"
    values = f"{before!r:.40}", f"{now!r:.40}"
    shown = all("\n" not in value and " at 0x" not in value for value in values)
    return f"{label} is {values[1]}, was {values[0]}" if shown else f"{label} was replaced"


class Namespace:
    """The globals of a Python module: copied by reference, pickled by the module's name."""

    def __init__(self, variables: dict[str, Any], name: str) -> None:
        self.variables, self.name = variables, name

    def __deepcopy__(self, memo: Any) -> Namespace:
        return self

    def __reduce__(self) -> Any:
        return _namespace, (self.name,)


def _namespace(name: str) -> Namespace:
    module = sys.modules.get(name)  # without it no fact holds, and the forward runs as written
    return Namespace({} if module is None else vars(module), name)


class Cell:
    """A variable of an enclosing function: copied by reference. A pickled one never holds."""

    def __init__(self, cell: CellType | None) -> None:
        self.cell = cell

    def __deepcopy__(self, memo: Any) -> Cell:
        return self

    def __reduce__(self) -> Any:
        return Cell, (None,)


def _cell_contents(cell: Cell) -> Any:
    try:
        return MISSING if cell.cell is None else cell.cell.cell_contents
    except ValueError:
        return MISSING


def static_attribute(cls: type, name: str) -> Any:
    """An attribute of a class as it stands there, without running anything."""
    for base in cls.__mro__:
        if name in vars(base):
            return vars(base)[name]
    return MISSING


def items_of(container: Any) -> tuple[Any, ...]:
    """What a container holds."""
    if isinstance(container, Mapping):
        return (*container.keys(), *container.values())
    return tuple(container)


def _shape_of(holder: nn.Module, attr: str) -> Any:
    tensor = holder._parameters.get(attr, holder._buffers.get(attr))
    return MISSING if tensor is None else tensor.shape


def _is_tensor_in(holder: Any, mapping: str, key: str) -> bool:
    return isinstance(getattr(holder, mapping).get(key), torch.Tensor)


def _has_hooks(module: nn.Module) -> bool:
    return bool(
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
    )
