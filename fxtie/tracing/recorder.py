"""What a trace records: nodes, guards, and which objects the traced code has made itself.

In: operations on values, some of them traced. Out: nodes of a graph, and the facts that it depends
on. Only lists, dicts and sets that the code itself has made are written to, so a trace that stops
has nothing to take back.
"""

from __future__ import annotations

import collections
import dataclasses
import enum
import gc
import itertools
import sys
from abc import ABCMeta
from collections.abc import Iterator, Sequence
from traceback import walk_stack
from typing import Any

import torch
from torch import fx, nn

from fxtie.tracing.gate import is_opaque
from fxtie.tracing.guards import ATOMS, Fact, items_of
from fxtie.tracing.namespace import Namespace
from fxtie.tracing.scope import Scope, user_place
from fxtie.tracing.source_code import package_of
from fxtie.tracing.stops import UNKNOWN, Stop, location
from fxtie.tracing.traced import Traced, is_traced

CONTAINERS = (list, dict, set, collections.OrderedDict, collections.deque)
"""Types of containers that may change."""

KEYS: type = type({}.keys())
_VIEWS: tuple[type, ...] = (KEYS, type({}.values()), type({}.items()))


def holder_of(value: Any) -> Any:
    """The dict of which a value is a view; any other value itself."""
    return gc.get_referents(value)[0] if isinstance(value, _VIEWS) else value


_IMMUTABLE = (tuple, frozenset, torch.Size, range, slice)


def is_immutable(value: Any) -> bool:
    """Whether a value is a container of Python's that can't change."""
    kind = type(value)
    return kind in _IMMUTABLE or (isinstance(value, tuple) and has_only_known_operators(kind))


def is_named_tuple(cls: Any) -> bool:
    """Whether a class is a named tuple: made of its items, and nothing else happens then."""
    made_of_items = package_of(cls.__new__).startswith("namedtuple_")
    return issubclass(cls, tuple) and made_of_items and cls.__init__ is object.__init__


def has_only_known_operators(cls: type) -> bool:
    """Whether no operator of a class is code of the user's, which a trace would not see."""
    return all(
        package_of(value) in ("", "None", "enum", "collections")  # C's functions have no package
        or name.startswith(("__new", "__init", "__annotate"))
        for base in cls.__mro__
        for name, value in vars(base).items()
        if name.startswith("__")
    )


KNOWN_METACLASSES = (type, ABCMeta, enum.EnumMeta, type(torch.Tensor), type(nn.Parameter))


def is_known_class(value: Any) -> bool:
    """Whether a value is a class on which no operator is code of the user's."""
    return isinstance(value, type) and type(value) in KNOWN_METACLASSES


def is_annotation(value: Any) -> bool:
    """Whether a value is made to annotate: `List`, `list[int]`."""
    return value is list or value is dict or value is tuple or type(value).__module__ == "typing"


def is_known_key(value: Any) -> bool:
    """Whether finding a value in a container runs no code of the user's."""
    kind: Any = type(value)
    if kind in ATOMS or is_known_class(value):
        return True
    if kind is slice:
        return all(map(is_known_key, (value.start, value.stop, value.step)))
    if isinstance(value, tuple | frozenset) and is_immutable(value):
        return all(map(is_known_key, value))
    if isinstance(value, enum.Enum):
        return has_only_known_operators(kind)
    return kind.__eq__ is object.__eq__ and kind.__hash__ is object.__hash__


class Recorder:
    """Records what traced code does.

    Attributes:
        graph: the nodes so far.
        facts: what the evaluation took for granted, as calls of the methods of `Guards`.
        labels: what to call containers of the user's in reports, by id.
        running: the scopes of the functions that run.
        made: how many objects the code has made itself.
        writes: the numbers of those that it has written to.
        is_exact: whether what arguments are recorded for can tell their types apart.
    """

    def __init__(self) -> None:
        self.graph = fx.Graph()
        self.facts: list[Fact] = []
        self.labels: dict[int, str] = {}
        self.running: list[Scope] = []
        self.made = 0
        self.writes: list[int] = []
        self.is_exact = False
        self._fresh: dict[int, tuple[int, Any]] = {}
        self._escaped: dict[int, Any] = {}
        self._outside: dict[int, Any] = {}
        self.looked_up: dict[tuple[Any, str], Any] = {}  # by classes, or by the id of an object
        self._namespaces: dict[int, Namespace] = {}

    # -- what the tracers of modules and of transforms do differently ---------------------------

    def module_attribute(self, module: nn.Module, name: str) -> Any:
        """An attribute of a module; `MISSING` if there is none."""
        raise Stop(f"reads .{name} of a module")

    def registered_attribute(self, module: nn.Module, name: str) -> Any:
        """A parameter, a buffer or a child of a module; `MISSING` if there is none."""
        raise Stop(f"reads .{name} of a module")

    def call_module(self, module: nn.Module, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        """Call a module."""
        raise Stop("calls a module")

    def tensor(self, tensor: torch.Tensor) -> Any:
        """The traced value of a tensor that the code has come upon."""
        raise Stop("uses a tensor that is not one of its sources")

    def module_argument(self, module: nn.Module) -> fx.Node:
        """The node of a module that is passed on."""
        raise Stop("passes on a module")

    def is_none(self, value: Traced) -> bool | None:
        """Whether a traced value is None, if that is sure."""
        return None

    def is_tensor(self, value: Traced, *, assume: bool = False) -> bool:
        """Whether a value is surely a tensor, given that arguments are, if that may be assumed."""
        return value.shape_known is not None

    def shape(self, value: Traced) -> torch.Size:
        """The known shape of a traced value, which code asks for."""
        assert value.shape_known is not None
        return value.shape_known

    def may_have_changed(self, holder: Any) -> None:
        """Stop if something that the graph calls may have changed an object since it began."""
        if id(holder) in self._escaped:
            raise Stop("looks into a container that other code may have changed")
        if not (id(holder) in self._fresh or is_immutable(holder) or type(holder) in ATOMS):
            self.may_be_reached(holder)

    def may_be_reached(self, holder: Any) -> None:
        """Stop if something that the graph calls may have reached an object of the user's."""

    def runs_unseen(self) -> None:
        """Note that the graph runs code which may be the user's, on a value of unknown type."""

    def may_fail(self) -> None:
        """Stop if the code can't run again, as written, after a check in the graph has failed."""

    # -- nodes ----------------------------------------------------------------------------------

    def create_node(
        self, op: str, target: Any, args: Any = (), kwargs: Any = None, name: str | None = None
    ) -> fx.Node:
        if name is None and target == "self":  # a child of that name: `attention.self` of BERT
            name = "self_"  # generated code has a `self` of its own
        node = self.graph.create_node(op, target, args, kwargs or {}, name)
        if self.running and (place := self._place()):
            code = place[0].function.__code__
            node.meta["stack_trace"] = location(code.co_filename, place[1], code.co_name)
        return node

    def _place(self) -> tuple[Scope, int] | None:
        """Where the user's code is. It stays there while one of torch's layers runs."""
        scope = self.running[-1]
        if scope.caller is not None:
            return scope.caller
        place = user_place(walk_stack(sys._getframe()))
        if place and not place[0].is_of_torch:
            for layer in itertools.takewhile(lambda s: s.is_of_torch, reversed(self.running)):
                layer.caller = place
        return place

    def record(self, op: str, target: Any, args: Sequence[Any], kwargs: Any = None) -> Traced:
        """Record an operation. Returns its value."""
        self.is_exact = op == "call_module" or is_opaque(target)
        kwargs = {key: self.argument(value) for key, value in (kwargs or {}).items()}
        return self.value(self.create_node(op, target, tuple(map(self.argument, args)), kwargs))

    def value(self, node: fx.Node) -> Traced:
        """The value of a new node."""
        return Traced(node)

    def argument(self, value: Any) -> Any:
        """A value as an argument of a node."""
        kind = type(value)
        if kind is Traced:
            return value.node
        if kind in ATOMS:
            return value
        if kind is tuple:
            return tuple(map(self.argument, value))
        if kind is list:
            self.look(value, "a list")
            return list(map(self.argument, value))
        if kind is dict and all(type(key) is str for key in value):
            self.look(value, "a dict")
            return {key: self.argument(item) for key, item in value.items()}
        if kind is slice:
            return slice(*map(self.argument, (value.start, value.stop, value.step)))
        if isinstance(value, nn.Module):
            return self.module_argument(value)
        if isinstance(value, torch.Tensor):
            return self.tensor(value).node
        if isinstance(value, float) and kind.__module__ == "numpy":
            # numpy's float64 prints as what code can't read, and is a number to torch.
            return self._make(kind, float(value)) if self.is_exact else float(value)
        return self._constructed(value)

    def _constructed(self, value: Any) -> Any:
        """A value of a class that code can make of others: made anew at each call."""
        kind = type(value)
        if kind is torch.Size:
            is_tuple = not (self.is_exact or is_traced(value))  # to torch
            return tuple(value) if is_tuple else self._make(kind, self.fresh(list(value)))
        if is_named_tuple(kind):
            return self._make(kind, *value)
        if kind is collections.OrderedDict:
            self.look(value, "a dict")
            return self._make(kind, self.fresh(dict(value)))
        if id(value) in self._fresh and hasattr(kind, "__dataclass_fields__"):
            names = (field.name for field in dataclasses.fields(value))
            fields = {name: self.argument(getattr(value, name)) for name in names}
            return self.create_node("call_function", kind, (), fields)
        raise Stop(f"passes on an object of {kind.__name__}")

    def _make(self, kind: type, *args: Any) -> fx.Node:
        return self.create_node("call_function", kind, tuple(map(self.argument, args)))

    def guard(self, fact: str, *args: Any) -> None:
        """Note something that the graph depends on.

        Args:
            fact: the name of a method of `Guards`.
            *args: its arguments.
        """
        is_outside = id(args[0]) in self._outside and fact not in _BY_NAME
        self.facts.append(("outside", ((fact, args),)) if is_outside else (fact, args))

    # -- what may change ------------------------------------------------------------------------

    def fresh(self, value: Any) -> Any:
        """Note that an object was made by the code itself, and may be written to."""
        self.made += 1
        self._fresh[id(value)] = self.made, value
        return value

    def is_fresh(self, value: Any) -> bool:
        return id(value) in self._fresh

    def escape(self, *values: Any) -> None:
        """Note that other code has got these values: what is in them then is not known."""
        for container in self.containers_in(*values):
            if id(container) not in self._fresh:
                raise Stop("hands on a container that outlives the call")
            if id(container) in self._escaped:
                raise Stop("hands on a container twice")
            self._escaped[id(container)] = container
            self.escape(*_parts(container))

    def containers_in(self, *values: Any) -> Iterator[Any]:
        """The containers among these, and in tuples among these."""
        for value in values:
            if type(value) in CONTAINERS or id(value) in self._fresh:
                yield value
            elif isinstance(value, tuple):
                yield from self.containers_in(*value)

    def look(self, container: Any, label: str) -> None:
        """The code looks at all that a container holds."""
        self.may_have_changed(container)
        if id(container) in self._fresh or is_immutable(container):
            return
        if type(container) not in CONTAINERS:
            raise Stop(f"looks into an object of {type(container).__name__}")
        self.may_look_up(container)
        self.guard(
            "contents", container, items_of(container), self.labels.get(id(container), label)
        )

    def item(self, container: Any, key: Any, label: str) -> Any:
        """An item of a container."""
        self.may_have_changed(container)
        kind = type(container)
        is_fixed = is_immutable(container) or kind in (str, bytes)
        if not (is_fixed or kind in CONTAINERS):
            raise Stop(f"looks into an object of {kind.__name__}")
        self.may_look_up(container, key)
        try:
            result = container[key]
        except (LookupError, TypeError) as error:
            raise Stop(f"looks up what is not there ({key!r:.40})") from error
        if not (is_fixed or id(container) in self._fresh):
            if isinstance(key, slice):
                self.look(container, label)
            else:
                self.guard("item", container, key, result, label)
        if isinstance(key, slice) and kind is list:
            return self.fresh(result)
        return self.taken(result, container)

    def may_look_up(self, container: Any, *keys: Any) -> None:
        """Stop if code of the user's runs where a container is searched, for these keys if any."""
        if is_traced(keys):
            raise Stop(f"looks up {UNKNOWN}")
        present = container if isinstance(container, dict | set | frozenset) else ()
        for key in (*keys, *present):
            if not is_known_key(key):
                raise Stop(f"looks up a {type(key).__name__}")

    def taken(self, value: Any, holder: Any = None) -> Any:
        """A value that was found in the user's objects, in `holder`."""
        if isinstance(value, torch.Tensor):
            return self.tensor(value)
        if id(holder) in self._outside:
            self.found_outside(value)
        return value

    def taken_outside(self, value: Any) -> Any:
        """A value that was found in a variable or a class, and not in the model."""
        self.found_outside(value)
        return self.taken(value)

    def found_outside(self, value: Any) -> None:
        """Note that an object was found in a variable or a class, and not in the model."""
        if type(value) not in ATOMS:
            self._outside[id(value)] = value

    def writable(self, container: Any) -> None:
        """Stop unless the code may write to a container."""
        if id(container) in self._escaped or id(container) not in self._fresh:
            raise Stop(f"writes to a {type(container).__name__} that it has not made")
        self.writes.append(self._fresh[id(container)][0])


_BY_NAME = frozenset({"variable", "attribute", "own"})
"""Facts about what is found by its name when it is unpickled."""


def _parts(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return [getattr(value, field.name) for field in dataclasses.fields(value)]
    if isinstance(value, nn.Module):
        return vars(value).values()
    if isinstance(value, dict):
        return value.values()
    return value if type(value) in CONTAINERS else ()  # not iterators, which would move on
