"""Guards: what a trace took for granted, checked before its graph runs.

In: each fact that a trace reads from outside of tensors: an attribute, an entry of a dict, the
items of a list, a global, the shape of a stored tensor. Out: whether all of them hold now, in
microseconds, and which does not.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping
from types import CellType
from typing import Any, TypeAlias

import torch
from torch import nn

from fxtie.tracing.user_class import user_class

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
    """The facts that one graph depends on.

    A deepcopy is about the copies of what was copied along with it. A pickled one keeps what has a
    name elsewhere, or is pickled along with it; other facts never hold again.

    Args:
        facts: what a trace took for granted.
    """

    def __init__(self, facts: Iterable[Fact] = ()) -> None:
        self.facts = list(facts)
        self._memo: dict[int, Any] | None = None
        self._hold: Callable[[], bool] | None = None
        self._entries: dict[tuple[int, str], _Entries] = {}
        self._checks: dict[tuple[Any, ...], _Check] = {}

    def broken(self) -> tuple[str, bool] | None:
        """What does not hold now, and whether that will last. None if everything holds."""
        if self._hold is None:
            self._arrange()
        assert self._hold is not None
        if self._hold():
            return None
        for entries in self._entries.values():
            if (found := entries.broken()) is not None:
                return found, True
        for check in self._checks.values():
            if (found := check.broken()) is not None:
                return found, not check.is_answer
        for entries in self._entries.values():
            entries.refresh()
        return None

    def __len__(self) -> int:
        return len(self.facts)

    def _arrange(self) -> None:
        """Arrange the facts for a fast check."""
        if self._memo is not None:
            self.facts, self._memo = [_copied(fact, self._memo) for fact in self.facts], None
        self._entries, self._checks = {}, {}
        for name, args in self.facts:
            getattr(self, name)(*args)
        self._hold = _compiled(list(self._entries.values()), list(self._checks.values()))

    def __deepcopy__(self, memo: dict[int, Any]) -> Guards:
        if self._memo is not None:
            self._arrange()
        new = Guards(self.facts)
        new._memo = memo  # which knows all copies once the deepcopy is over
        return new

    def __getstate__(self) -> Any:
        if self._memo is not None:
            self._arrange()
        return [_portable(fact) for fact in self.facts]

    def __setstate__(self, facts: list[Fact]) -> None:
        self.__init__(facts)  # type: ignore[misc]

    # -- facts ----------------------------------------------------------------------------------

    def entry(self, holder: Any, mapping: str, key: Any, value: Any, label: str) -> None:
        """`getattr(holder, mapping)[key]` is `value`, or is not there if that is `MISSING`.

        Args:
            label: what to call the holder in a report.
        """
        entries = self._entries.get((id(holder), mapping))
        if entries is None:
            entries = self._entries[id(holder), mapping] = _Entries(holder, mapping, label)
        entries.add(key, value)

    def variable(self, namespace: Namespace, key: str, value: Any) -> None:
        """A variable of a Python module is `value`."""
        self.entry(namespace, "variables", key, value, namespace.name)

    def attribute(self, cls: type, key: str, value: Any) -> None:
        """An attribute of a class, not of its bases, is `value`."""
        self.entry(cls, "__dict__", key, value, cls.__name__)

    def cell(self, cell: CellType, key: str, value: Any) -> None:
        """A variable of an enclosing function is `value`."""
        self._check((id(cell),), cell_contents, (cell,), value, key)

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

    def of_class(self, module: nn.Module, cls: type, label: str) -> None:
        """A module is of this class, less what fxtie has made of it."""
        self._check((id(module),), user_class, (module,), cls, f"the class of {label}")

    def outside(self, fact: Fact) -> None:
        """A fact about an object that is no part of the model."""
        getattr(self, fact[0])(*fact[1])

    def never(self, label: str) -> None:
        """A fact that can't be compared any more."""
        self._check((label,), bool, (), True, f"{label}, which was not pickled,")

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


def _copied(fact: Fact, memo: dict[int, Any]) -> Fact:
    """A fact about the copies of what was copied."""

    def copied(value: Any) -> Any:
        if type(value) is tuple:
            return tuple(map(copied, value))
        return memo.get(id(value), value)

    name, args = fact
    return name, copied(args)


def _portable(fact: Fact) -> Fact:
    """A fact that can be pickled: about what is pickled with it, or what is found by its name."""
    name, args = fact
    if name in ("outside", "cell"):
        return "never", (name,)
    if name in ("variable", "attribute"):
        holder, key, value = args
        if not (_has_name(holder) and _has_name(value)):
            return "never", (f"{getattr(holder, '__name__', holder.__class__.__name__)}.{key}",)
    return fact


def _has_name(value: Any) -> bool:
    """Whether pickle writes a constant, or the name under which a module has an object."""
    if type(value) in ATOMS or value is MISSING or isinstance(value, Namespace):
        return True
    if isinstance(value, tuple):
        return all(map(_has_name, value))
    found: Any = sys.modules.get(getattr(value, "__module__", None) or "")
    for part in getattr(value, "__qualname__", "").split("."):
        found = getattr(found, part, None)
    return found is value


def _compiled(entries: list[_Entries], checks: list[_Check]) -> Callable[[], bool]:
    """A function that says whether all facts surely hold: it compares identities only."""
    variables: dict[str, Any] = {}

    def variable(value: Any) -> str:
        name = f"v{len(variables)}"
        variables[name] = value
        return name

    lines = []
    for facts in entries:
        facts.variables = variables
        facts.names = {key: variable(value) for key, value in facts.present.items()}
        tests = [f"d[{key!r}] is {name}" for key, name in facts.names.items()]
        tests += [f"{key!r} not in d" for key in facts.absent]
        lines.append(f"d = {variable(facts.holder)}.{facts.mapping}")
        lines.append(f"if not ({' and '.join(tests)}): return False")
    for check in checks:
        lines.append(f"if not ({check.expression(variable)}): return False")
    body = "".join(f"        {line}\n" for line in [*lines, "return True"])
    source = (
        f"def hold():\n    try:\n{body}    except (LookupError, AttributeError): return False\n"
    )
    exec(source, variables)
    hold: Callable[[], bool] = variables["hold"]
    return hold


class _Entries:
    """Facts about the entries of one mapping, whose keys are names."""

    def __init__(self, holder: Any, mapping: str, label: str) -> None:
        self.holder, self.mapping, self.label = holder, mapping, label
        self.present: dict[str, Any] = {}
        self.absent: dict[str, None] = {}
        self.names: dict[str, str] = {}
        self.variables: dict[str, Any] = {}

    def add(self, key: str, value: Any) -> None:
        if value is MISSING:
            self.absent[key] = None
        else:
            self.present.setdefault(key, value)

    def broken(self) -> str | None:
        mapping = getattr(self.holder, self.mapping)
        for key, value in self.present.items():
            now = _get(mapping, key)
            if not alike(now, value):
                return _changed(self._name(key), value, now)
        for key in self.absent:
            if key in mapping:
                return f"{self._name(key)} was set"
        return None

    def refresh(self) -> None:
        """Expect the equal constants that are there now, which are other objects."""
        mapping = getattr(self.holder, self.mapping)
        for key, name in self.names.items():
            self.present[key] = self.variables[name] = mapping[key]

    def _name(self, key: str) -> str:
        return f"{self.label}.{key}" if self.label else key


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

    def expression(self, variable: Callable[[Any], str]) -> str:
        """Python code for whether it surely holds."""
        if self.read is _has_hooks:
            tests = [f"d[{name!r}]" for name in _HOOKS]
            return f"not ((d := {variable(self.args[0])}.__dict__) and ({' or '.join(tests)}))"
        if self.read is user_class and user_class(self.args[0]) is self.value:
            return f"{variable(self.args[0])}.__class__ is {variable(type(self.args[0]))}"
        return f"{variable(self)}.broken() is None"

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
    """The variables of a Python module, found by the module's name when it is unpickled."""

    def __init__(self, variables: dict[str, Any], name: str) -> None:
        self.variables, self.name = variables, name

    def __reduce__(self) -> Any:
        return _namespace, (self.name,)


def _namespace(name: str) -> Namespace:
    module = sys.modules.get(name)  # without it no fact holds, and the forward runs as written
    return Namespace({} if module is None else vars(module), name)


def cell_contents(cell: CellType) -> Any:
    """The value of a variable of an enclosing function; `MISSING` if it is not bound."""
    try:
        return cell.cell_contents
    except ValueError:
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


_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def _has_hooks(module: nn.Module) -> bool:
    return any(module.__dict__[name] for name in _HOOKS)
