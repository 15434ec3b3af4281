"""Guards: what a trace took for granted, checked before its graph runs.

In: each fact that a trace reads from outside of tensors: an attribute, an entry of a dict, the
items of a list, a global, the shape of a stored tensor. Out: whether all of them hold now, in
microseconds, and which does not.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Iterable, Mapping
from itertools import chain
from operator import getitem, is_
from types import CellType, FunctionType, MethodType
from typing import Any, TypeAlias

import torch
from torch import nn

from fxtie.tracing.namespace import Namespace
from fxtie.tracing.source_code import own_of
from fxtie.tracing.user_class import user_class

MISSING: Any = type("Missing", (), {"__reduce__": lambda self: "MISSING"})()
"""The value of something that is not there."""

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
    # 0.0 is not -0.0, and a container finds a NaN by its identity.
    return type(a) in ATOMS and bool(a == b) and repr(a) == repr(b)


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
        self._checks: dict[tuple[Any, ...], _Check] = {}
        self._hold: Callable[[], bool] | None = None

    def broken(self) -> tuple[str, bool] | None:
        """What does not hold now, and whether that will last. None if everything holds."""
        if self._hold is None:
            self._arrange()
        assert self._hold is not None
        if self._hold():
            return None
        for check in self._checks.values():
            if (found := check.broken()) is not None:
                return found, not (check.is_answer or check.is_wrapped())
        self._hold = _compiled(self._checks.values())  # for the equal constants that are there now
        return None

    def __len__(self) -> int:
        return len(self.facts)

    @property
    def depends_on_values(self) -> bool:
        """Whether a fact is about more than code."""
        return any(name != "own" for name, _ in self.facts)

    def _arrange(self) -> None:
        """Arrange the facts for a fast check."""
        if self._memo is not None:
            self.facts, self._memo = [_copied(fact, self._memo) for fact in self.facts], None
        self._checks = {}
        for name, args in self.facts:
            getattr(self, name)(*args)
        self._hold = _compiled(self._checks.values())

    def __deepcopy__(self, memo: dict[int, Any]) -> Guards:
        if self._memo is not None:
            self._arrange()
        new = Guards(self.facts)
        new._memo = memo  # which knows all copies once the deepcopy is over
        return new

    def __getstate__(self) -> Any:
        if self._memo is not None:
            self._arrange()
        return [_portable(fact) for fact in self.facts if fact[0] != "own"]

    def __setstate__(self, facts: list[Fact]) -> None:
        self.__init__(facts)  # type: ignore[misc]

    # -- facts ----------------------------------------------------------------------------------

    def entry(self, holder: Any, mapping: str, key: Any, value: Any, label: str) -> None:
        """`holder.mapping[key]`, in reports `label.key`, is `value`; `MISSING`: is not there."""
        key_of_check = (id(holder), mapping, key, value is MISSING)
        name = f"{label}.{key}" if label else key
        self._check(key_of_check, entry_of, (holder, mapping, key), value, name)

    def variable(self, namespace: Namespace, key: str, value: Any) -> None:
        """A variable of a Python module is `value`."""
        self.entry(namespace, "variables", key, value, namespace.name)

    def attribute(self, cls: type, key: str, value: Any) -> None:
        """An attribute of a class, not of its bases, is `value`."""
        self.entry(cls, "__dict__", key, value, cls.__name__)

    def own(self, holder: Any, key: str, value: Any, label: str) -> None:
        """What a function or a class is made of, its code or its bases, is `value`."""
        read = own_of if key == "__kwdefaults__" and value else getattr
        self._check((id(holder), key), read, (holder, key), value, f"{label}.{key}")

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
        self._check((id(container), key), getitem, (container, key), value, f"{label}[{key!r}]")

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
        self._check((id(module),), has_hooks, (module,), False, f"whether {label} has hooks")

    def of_class(self, value: Any, cls: type, label: str) -> None:
        """An object is of this class, less what fxtie has made of it."""
        self._check((id(value),), user_class, (value,), cls, f"the class of {label}")

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
    if name in ("outside", "cell") or (name == "answer" and not has_name(args[1])):
        return "never", (name,)
    if name in ("variable", "attribute"):
        holder, key, value = args
        if not (has_name(holder) and has_name(value)):
            return "never", (f"{getattr(holder, '__name__', holder.__class__.__name__)}.{key}",)
    return fact


def has_name(value: Any) -> bool:
    """Whether pickle writes a constant, or the name under which a module has an object."""
    if type(value) in ATOMS or value is MISSING or isinstance(value, Namespace):
        return True
    if isinstance(value, tuple):
        return all(map(has_name, value))
    found: Any = sys.modules.get(getattr(value, "__module__", None) or "")
    for part in getattr(value, "__qualname__", "").split("."):
        found = getattr(found, part, None)
    return found is value


def _compiled(checks: Iterable[_Check]) -> Callable[[], bool]:
    """A function that says whether all facts surely hold: it compares identities if it can.

    One loop checks all objects about which the same facts are known. Code for each object would
    run once a call, from memory that no cache has.
    """
    by_object: dict[int, list[_Check]] = {}
    for check in checks:
        by_object.setdefault(id(check.about), []).append(check)
    loops: dict[str, list[tuple[Any, ...]]] = {}
    for of_object in by_object.values():
        body, values = _body(of_object)
        loops.setdefault(body, []).append((of_object[0].about, *values))
    lines = ["def hold():", " try:"]
    for number, (body, rows) in enumerate(loops.items()):
        names = "".join(f"v{i}, " for i in range(len(rows[0])))
        lines.append(f"  for {names} in rows[{number}]:{body}")
    lines += ["  return True", " except (LookupError, AttributeError):", "  return False"]
    variables = {"rows": list(loops.values()), "alike": alike, "chain": chain, "is_": is_}
    exec(_code("\n".join(lines)), variables)
    hold: Callable[[], bool] = variables["hold"]  # type: ignore[assignment]
    return hold


_code = functools.lru_cache(functools.partial(compile, filename="<guards>", mode="exec"))
"""Code of its source. That of equal checks, of a deepcopy say, is compiled once."""


def _body(checks: Iterable[_Check]) -> tuple[str, list[Any]]:
    """Code that checks facts about one object, and the values that it needs.

    In the code, `v0` is the object, `d` its `__dict__`, and the values are `v1`, `v2`, ...
    """
    values: list[Any] = []

    def name(value: Any) -> str:
        values.append(value)
        return f"v{len(values)}"

    tests: dict[str, list[str]] = {}
    for check in checks:
        mapping, test = check.test(name)
        tests.setdefault(mapping, []).append(test)
    lines = ["d = v0.__dict__"] if any(tests) else []
    for mapping, found in tests.items():
        if mapping not in ("", "__dict__"):
            lines.append(f"m = d[{mapping!r}]")
        lines.append(f"if not ({' and '.join(found)}): return False")
    return "".join(f"\n   {line}" for line in lines), values


def entry_of(holder: Any, mapping: str, key: Any) -> Any:
    """An entry of a dict that an object has; past code of the user's that computes attributes."""
    return object.__getattribute__(holder, mapping).get(key, MISSING)


class _Check:
    """Something to read anew, and the value that it must have."""

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

    @property
    def about(self) -> Any:
        """The object that it is about, if any."""
        return self.args[0] if self.args else None

    def test(self, name: Callable[[Any], str]) -> tuple[str, str]:
        """Python code for whether it surely holds, as a part of what `_body` makes.

        Args:
            name: gives the variable for a value.

        Returns:
            The mapping of the object that the code reads, if any, and the code. A mapping other
            than its `__dict__` is `m` there.
        """
        getter = type(self.about).__getattribute__
        if self.read is entry_of and not isinstance(getter, FunctionType):
            _, mapping, key = self.args
            entries = "d" if mapping == "__dict__" else "m"
            if self.value is MISSING:
                return mapping, f"{key!r} not in {entries}"
            return mapping, f"{entries}[{key!r}] is {name(self.value)}"
        if self.read is getattr:
            return "", f"v0.{self.args[1]} is {name(self.value)}"
        if self.read is has_hooks:
            hooks = " or ".join(f"d[{name!r}]" for name in _HOOKS)
            return "__dict__", f"not ({hooks} or '_call_impl' in d)"
        if self.read is user_class and user_class(self.about) is self.value:
            return "", f"type(v0) is {name(type(self.about))}"
        if self.read is items_of:
            items, count = "v0", len(self.value)
            if isinstance(self.about, Mapping):
                items, count = "chain(v0, v0.values())", count // 2
            return "", f"len(v0) == {count} and all(map(is_, {items}, {name(self.value)}))"
        read, args = name(self.read), name(self.args)
        return "", f"alike({read}(*{args}), {name(self.value)})"

    def _now(self) -> Any:
        try:
            return self.read(*self.args)
        except (AttributeError, LookupError):
            return MISSING

    def broken(self) -> str | None:
        now = self._now()
        if not alike(now, self.value):
            return _changed(self.label, self.value, now)
        self.value = now
        return None

    def is_wrapped(self) -> bool:
        """Whether torch's wrappers now stand where modules were: activation checkpointing, say."""
        if self.read is entry_of:
            return _is_or_wraps(self._now(), self.value)
        are_as_many = self.read is items_of and len(now := self._now()) == len(self.value)
        return are_as_many and all(map(_is_or_wraps, now, self.value))


def _is_or_wraps(now: Any, before: Any) -> bool:
    is_of_torch = isinstance(now, MethodType | nn.Module) and now.__module__.startswith("torch.")
    wrapped = now.children() if isinstance(now, nn.Module) else [MISSING]  # a forward is set
    return now is before or (is_of_torch and any(child is before for child in wrapped))


def _changed(label: str, before: Any, now: Any) -> str:
    if before is MISSING:
        return f"{label} was set"
    if now is MISSING:
        return f"{label} is gone"
    was, is_now = f"{before!r:.40}", f"{now!r:.40}"
    tells = was != is_now and not any(text in was + is_now for text in ("\n", " at 0x"))
    return f"{label} is {is_now}, was {was}" if tells else f"{label} was replaced"


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


def has_hooks(module: nn.Module) -> bool:
    """Whether calling a module runs more than its forward."""
    members = module.__dict__
    return "_call_impl" in members or any(members.get(name) for name in _HOOKS)
