"""The gate that rewritten functions call for each operation.

In: a function, and values, some of them traced. Out: its result, with the nodes and guards that it
needs. The function is rewritten (`rewriting.py`) and run by Python: each of its operations is a
call of a method here, or of one that these build on.
"""

from __future__ import annotations

import builtins
import enum
import importlib.util
import inspect
import operator
import sys
import traceback
import types
from collections.abc import Iterator, Sequence
from typing import Any, NoReturn

import torch
from torch import nn

from fxtie.tracing.attributes import Members
from fxtie.tracing.calls import Calls
from fxtie.tracing.guards import MISSING
from fxtie.tracing.operators import unpack
from fxtie.tracing.recorder import CONTAINERS, is_annotation
from fxtie.tracing.rewriting import rewritten
from fxtie.tracing.scope import Scope, user_place
from fxtie.tracing.source_code import FIXED_PACKAGES, own_of, package_of
from fxtie.tracing.stops import Stop
from fxtie.tracing.traced import Method, Traced

_GENERATOR = inspect.CO_GENERATOR | inspect.CO_COROUTINE | inspect.CO_ASYNC_GENERATOR


class Evaluator(Calls):
    """Evaluates functions."""

    slice = builtins.slice  # the gate has it, as it has other operations

    # -- functions ------------------------------------------------------------------------------

    def run(self, function: types.FunctionType, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        if function.__code__.co_flags & _GENERATOR:
            raise Stop(f"runs the generator {function.__name__}")
        if not isinstance(function.__globals__, Scope):
            self._guard_code(function)
            function = rewritten(function, self)
        if len(self.running) > 200:
            raise Stop("is nested too deeply")
        scope: Any = function.__globals__
        caller = ""
        if self.running:
            caller = self.running[-1].package
            if scope.is_of_torch:
                scope.caller = self.running[-1].caller
        self.running.append(scope)
        try:
            given = {name: self.taken(value) for name, value in kwargs.items()}
            return function(*map(self.taken, args), **given)
        except Exception as error:  # the user's code raises it when it really runs
            kind, text = type(error).__name__, str(error).strip().partition("\n")[0]
            stop = error if isinstance(error, Stop) else Stop(f"raises {kind}: {text}")
            place = user_place(reversed([*traceback.walk_tb(error.__traceback__)]))
            if not stop.file and place is not None and not place[0].is_of_torch:
                stop.file, stop.line = place[0].function.__code__.co_filename, place[1]
            if scope.package == "torch" and not scope.is_of_torch and caller != "torch":
                name = f"{scope.function.__module__}.{scope.function.__qualname__}"
                stop.args = (f"calls {name}, which {stop}",)
            raise stop from None
        finally:
            self.running.pop()

    def _guard_code(self, function: types.FunctionType) -> None:
        if package_of(function) in FIXED_PACKAGES or (function, "__code__") in self.looked_up:
            return
        for name in ("__code__", "__defaults__", "__kwdefaults__"):
            value = self.looked_up[function, name] = own_of(function, name)
            self.guard("own", function, name, value, function.__name__)

    def stop(self, reason: str) -> NoReturn:
        raise Stop(reason)

    # -- names ----------------------------------------------------------------------------------

    def variable(self, name: str, scope: Scope) -> Any:
        """A variable that a function has from outside."""
        if name.startswith("__") and not name.endswith("__"):
            raise Stop(f"uses the private name {name}")
        if name in scope.cells:
            cell = scope.cells[name]
            value = cell.cell_contents
            self.may_have_changed(cell)
            self.guard("cell", cell, name, value)
            return self.taken_outside(value)
        found = self.global_variable(scope.function.__globals__, name)
        if found is not MISSING:
            return found
        if name == "__class__" or not hasattr(builtins, name):
            raise Stop(f"reads {name}, which is not defined")
        return getattr(builtins, name)

    def imported(self, name: str, found: str) -> types.ModuleType:
        """A Python module that is imported already: importing it again does nothing."""
        if name not in sys.modules:
            raise Stop(f"imports {name}")
        return sys.modules[found]

    def imported_from(self, module: str, name: str, scope: Scope) -> Any:
        package = scope.function.__globals__.get("__package__")
        module = importlib.util.resolve_name(module, package)
        return self.attribute(self.imported(module, module), name)

    def super_of(self, found: Any, scope: Scope, instance: Any) -> Any:
        """`super()`."""
        if found is not super:
            return self.call(found)
        if "__class__" not in scope.cells:
            raise Stop("calls super() outside of a method")
        return super(scope.cells["__class__"].cell_contents, instance)

    # -- operations -----------------------------------------------------------------------------

    def invoke(self, function: Any, /, *args: Any, **kwargs: Any) -> Any:
        """`function(*args, **kwargs)`."""
        return self.call(function, args, kwargs)

    def invoke_with(self, function: Any, args: Any, /, **kwargs: Any) -> Any:
        """`function(*args, **kwargs)`, where the number of arguments may be traced."""
        if type(args) is Traced:
            return self.call_with(function, args, kwargs)
        return self.call(function, args, kwargs)

    def starred(self, value: Any) -> Any:
        """The items of `*value`."""
        if type(value) is Traced:
            return self.record("call_function", tuple, (value,))
        return tuple(self.iterate(value))

    def joined(self, *parts: Any) -> Any:
        """The tuple that has the items of several, which may be traced."""
        whole, *others = parts
        for part in others:
            if Traced in (type(whole), type(part)):
                self.escape(whole, part)
                whole = self.record("call_function", operator.add, (whole, part))
            else:
                whole += part
        return whole

    def joined_list(self, *parts: Any) -> Any:
        """The list that has the items of several tuples."""
        whole = self.joined(*parts)
        if type(whole) is Traced:
            return self.record("call_function", list, (whole,))
        return self.fresh([*whole])

    def method(self, owner: Any, name: str) -> Any:
        """`owner.name`, to be called."""
        return Method(owner, name) if type(owner) is Traced else self.attribute(owner, name)

    def subscript(self, container: Any, key: Any, label: str) -> Any:
        """`container[key]`."""
        if type(container) is Traced:
            return self.record("call_function", operator.getitem, (container, key))
        if isinstance(container, nn.Module):
            return self.call(self.attribute(container, "__getitem__"), (key,))
        if type(container) is enum.EnumMeta:
            return container[self.plain(key)]
        if is_annotation(container):  # `List[Tensor]`
            return container[key if is_annotation(key) else self.plain(key)]
        if type(container) is Members and (found := self.own(container, key)) is not MISSING:
            return found
        return self.item(container, key, label)

    def store_item(self, value: Any, container: Any, key: Any) -> None:
        """`container[key] = value`."""
        if type(container) is Traced:
            self.record("call_function", operator.setitem, (container, key, value))
            is_number = type(key) is int or type(value) in CONTAINERS
            if type(key) is str or (is_number and not self.is_tensor(container, assume=True)):
                self.runs_unseen()
            self.escape(value)
            return
        if type(container) not in CONTAINERS:
            raise Stop(f"writes to a {type(container).__name__}")
        self.writable(container)
        container[self.plain(key) if not isinstance(key, slice) else key] = value

    def unpack(self, value: Any, count: int, star: int | None = None) -> Sequence[Any]:
        """The items of a value, for so many names, of which one may be starred."""
        if type(value) is Traced:
            stars = () if star is None else (star,)
            whole = self.record("call_function", unpack, (value, count, *stars))
            return [
                self.record("call_function", operator.getitem, (whole, i)) for i in range(count)
            ]
        if value is None:
            raise Stop("unpacks None (optional arguments are traced with their defaults)")
        items = list(self.iterate(value))
        if star is not None:
            end = len(items) - (count - star - 1)
            items[star:end] = [self.fresh(items[star:end])]
        return items

    def mapping(self, value: Any) -> Any:
        """What `**value` passes on."""
        if type(value) is not dict:
            raise Stop("unpacks what is not a dict")
        self.look(value, "a dict")
        return value

    def new_set(self, items: Sequence[Any]) -> Any:
        return self.fresh(set(map(self.plain, items)))

    # -- tests ----------------------------------------------------------------------------------

    def boolean(self, until: bool, value: Any, *others: Iterator[Any]) -> Any:
        """`value and ...`, until one is false, or `value or ...`, until one is true."""
        for other in others:
            if self.truth(value) is until:
                break
            value = next(other)
        return value

    def comparisons(self, ops: Sequence[Any], left: Any, *others: Iterator[Any]) -> Any:
        """`left < b < c`."""
        result: Any = True
        for op, other in zip(ops, others, strict=True):
            if not self.truth(result):
                break
            right = next(other)
            left, result = right, self.compare(op, left, right)
        return result

    def check(self, test: Iterator[Any], expected: bool, message: str) -> None:
        """The code raises unless a test comes out as expected: a graph can assert that."""
        value = next(test)
        if type(value) is Traced:
            self.may_fail()
            if not expected:
                value = self.record("call_function", operator.not_, (value,))
            self.record("call_function", torch._assert, (value, message))
        elif self.truth(value) is not expected:
            raise Stop("raises an exception")

    def asserted(self, function: Any, checks: Iterator[Any], args: Iterator[Any]) -> Any:
        """A call of what may be `torch._assert`."""
        if function is not torch._assert:
            return self.call(function, next(args))
        next(checks)
