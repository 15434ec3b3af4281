"""Python code -> nodes: an evaluator of the part of Python that a graph can hold.

In: a function, by its syntax tree, and values, some of them traced. Out: its result, with the nodes
and guards that it takes. The constructs in the tables of `callables.py` are all that it knows: any
other stops the trace before it has done anything.
"""

from __future__ import annotations

import ast
import builtins
import importlib.util
import operator
import sys
import types
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, ClassVar

import torch
from torch import nn

from fxtie.tracing.frames import Closure, Frame, bind
from fxtie.tracing.guards import MISSING
from fxtie.tracing.operations import Operations
from fxtie.tracing.operators import BINARY, IN_PLACE, UNARY, unpack
from fxtie.tracing.recorder import CONTAINERS
from fxtie.tracing.source_code import FunctionNode, function_node
from fxtie.tracing.stops import Stop
from fxtie.tracing.traced import Method, Traced


class Evaluator(Operations):
    """Evaluates functions. `statements` and `expressions` are the tables of `callables.py`."""

    statements: ClassVar[dict[type[ast.stmt], Callable[..., Any]]] = {}
    expressions: ClassVar[dict[type[ast.expr], Callable[..., Any]]] = {}

    # -- functions ------------------------------------------------------------------------------

    def run(self, function: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        if type(function) is Closure:
            return self._run(function.node, function.frame(), function.defaults, args, kwargs)
        node = function_node(function)
        frame = Frame(node, function)
        defaults = function.__defaults__ or (), function.__kwdefaults__ or {}
        return self._run(node, frame, defaults, args, kwargs)

    def _run(self, node: FunctionNode, frame: Frame, defaults: Any, args: Any, kwargs: Any) -> Any:
        bound = bind(node, defaults, args, kwargs)
        for name, value in bound.items():
            frame.names[name] = self.taken(value)
        if node.args.vararg:
            frame.names[node.args.vararg.arg] = bound[node.args.vararg.arg]
        if node.args.kwarg:
            self.fresh(bound[node.args.kwarg.arg])
        if len(self.frames) > 200:
            raise Stop("is nested too deeply")
        self.frames.append(frame)
        try:
            if isinstance(node, ast.Lambda):
                return self.evaluate(node.body, frame)
            self._block(node.body, frame)
            return frame.result
        except Exception as error:  # of the user's code, which comes up when it really runs
            stop = error if isinstance(error, Stop) else _raising(error)
            self._locate(stop)
            caller = self.frames[-2].package if len(self.frames) > 1 else ""
            if frame.package == "torch" and not frame.is_of_torch and caller != "torch":
                name = f"{frame.function.__module__}.{frame.function.__qualname__}"
                stop.args = (f"calls {name}, which {stop}",)
            raise stop from None
        finally:
            self.frames.pop()

    def _locate(self, stop: Stop) -> None:
        frame = self.user_frame()
        if not stop.file and frame is not None and not frame.is_of_torch:
            stop.file, stop.line, _ = frame.place

    # -- names ----------------------------------------------------------------------------------

    def name(self, name: str, frame: Frame) -> Any:
        """The value of a variable."""
        scope: Frame | None = frame
        while scope is not None:
            if name in scope.names:
                return scope.names[name]
            if name in scope.stored:
                raise Stop(f"reads {name} before it is set")
            last, scope = scope, scope.outer
        if name in last.cells:
            cell = last.cells[name]
            try:
                value = cell.cell_contents
            except ValueError:
                raise Stop(f"reads {name} before it is set") from None
            self.may_have_changed(cell)
            self.guard("cell", cell, name, value)
            self.found_outside(value)
            return self.taken(value)
        found = self.global_variable(last.globals, name)
        if found is not MISSING:
            return found
        if name == "__class__" or not hasattr(builtins, name):
            raise Stop(f"reads {name}, which is not defined")
        return getattr(builtins, name)

    # -- statements -----------------------------------------------------------------------------

    def _block(self, statements: Iterable[ast.stmt], frame: Frame) -> Any:
        """Run statements. Returns how they end: `ast.Return`, `ast.Break`, `ast.Continue`, None."""
        for statement in statements:
            frame.line = statement.lineno
            run = self.statements.get(type(statement))
            if run is None:
                raise Stop(f"has a statement that a graph can't hold: {_shown(statement)}")
            if (ending := run(self, statement, frame)) is not None:
                return ending
        return None

    def expression_statement(self, s: ast.Expr, frame: Frame) -> None:
        self.evaluate(s.value, frame)

    def pass_statement(self, s: ast.stmt, frame: Frame) -> None:
        pass

    def return_statement(self, s: ast.Return, frame: Frame) -> type:
        frame.result = None if s.value is None else self.evaluate(s.value, frame)
        return ast.Return

    def jump(self, s: ast.stmt, frame: Frame) -> type:
        return type(s)

    def assign(self, s: ast.Assign, frame: Frame) -> None:
        value = self.evaluate(s.value, frame)
        for target in s.targets:
            self.store(target, value, frame)

    def annotated(self, s: ast.AnnAssign, frame: Frame) -> None:
        if s.value is not None:
            self.store(s.target, self.evaluate(s.value, frame), frame)

    def augmented(self, s: ast.AugAssign, frame: Frame) -> None:
        function = IN_PLACE[type(s.op)]
        if isinstance(s.target, ast.Name):
            before = self.name(s.target.id, frame)
            result = self.binary(function, before, self.evaluate(s.value, frame))
            frame.names[s.target.id] = result
        elif isinstance(s.target, ast.Subscript):
            container = self.evaluate(s.target.value, frame)
            key = self.evaluate(s.target.slice, frame)
            before = self.subscript(container, key, s.target)
            self.store_item(
                container, key, self.binary(function, before, self.evaluate(s.value, frame))
            )
        else:
            raise Stop(f"sets an attribute: {_shown(s)}")

    def store(self, target: ast.expr, value: Any, frame: Frame) -> None:
        """Assign a value to a target."""
        if isinstance(target, ast.Name):
            frame.names[target.id] = value
        elif isinstance(target, ast.Tuple | ast.List):
            self.unpack(target.elts, value, frame)
        elif isinstance(target, ast.Subscript):
            container = self.evaluate(target.value, frame)
            self.store_item(container, self.evaluate(target.slice, frame), value)
        else:
            raise Stop(f"sets an attribute: {_shown(target)}")

    def unpack(self, targets: list[ast.expr], value: Any, frame: Frame) -> None:
        stars = [i for i, target in enumerate(targets) if isinstance(target, ast.Starred)]
        if type(value) is Traced:
            if stars:
                raise Stop("unpacks a traced value into a starred name")
            whole = self.record("call_function", unpack, (value, len(targets)))
            items = [
                self.record("call_function", operator.getitem, (whole, i))
                for i in range(len(targets))
            ]
        else:
            items = list(self.iterate(value))
        if stars:
            (star,) = stars
            end = len(items) - (len(targets) - star - 1)
            if end < star:
                raise Stop("unpacks too few values")
            items[star:end] = [self.fresh(items[star:end])]
        if len(items) != len(targets):
            raise Stop(f"unpacks {len(items)} values into {len(targets)} names")
        for target, item in zip(targets, items, strict=True):
            self.store(target.value if isinstance(target, ast.Starred) else target, item, frame)

    def store_item(self, container: Any, key: Any, value: Any) -> None:
        """`container[key] = value`"""
        if type(container) is Traced:
            self.record("call_function", operator.setitem, (container, key, value))
            self.escape(*filter(self.is_fresh, (value,)))
            return
        if type(container) not in CONTAINERS:
            raise Stop(f"writes to a {type(container).__name__}")
        self.writable(container)
        container[self.plain(key) if not isinstance(key, slice) else key] = value

    def delete(self, s: ast.Delete, frame: Frame) -> None:
        for target in s.targets:
            if not isinstance(target, ast.Name):
                raise Stop(f"deletes more than a name: {_shown(s)}")
            if target.id not in frame.names:
                raise Stop(f"deletes {target.id} before it is set")
            del frame.names[target.id]

    def branch(self, s: ast.If, frame: Frame) -> Any:
        if not s.orelse and len(s.body) == 1 and isinstance(s.body[0], ast.Raise):
            self.check(s.test, False, frame)
            return None
        return self._block(s.body if self.truth(self.evaluate(s.test, frame)) else s.orelse, frame)

    def assertion(self, s: ast.Assert, frame: Frame) -> None:
        if __debug__:
            self.check(s.test, True, frame)

    def check(self, test: ast.expr, expected: bool, frame: Frame) -> None:
        """The code raises unless a test comes out as expected: a graph can assert that."""
        if isinstance(test, ast.UnaryOp) and isinstance(test.op, ast.Not):
            self.check(test.operand, not expected, frame)
            return
        # `assert a and b` and `if a or b: raise` are two checks.
        if isinstance(test, ast.BoolOp) and isinstance(test.op, ast.And) is expected:
            for part in test.values:
                self.check(part, expected, frame)
            return
        value = self.check_value(test, frame)
        if value is MISSING:
            return
        if type(value) is Traced:
            if not expected:
                value = self.record("call_function", operator.not_, (value,))
            file, line, _ = frame.place
            message = f"{ast.unparse(test)}, at {file}:{line}"
            self.record("call_function", torch._assert, (value, message))
        elif self.truth(value) is not expected:
            raise Stop("raises an exception")

    def check_value(self, test: ast.expr, frame: Frame) -> Any:
        """The value of a test that is a check; `MISSING` if it need not be checked."""
        return self.evaluate(test, frame)

    def loop(self, s: ast.For, frame: Frame) -> Any:
        def assigned(items: Iterator[Any]) -> Iterator[None]:
            for item in items:
                self.store(s.target, item, frame)
                yield

        items = self.iterate(self.evaluate(s.iter, frame))
        return self._turns(s, assigned(items), frame)

    def while_loop(self, s: ast.While, frame: Frame) -> Any:
        return self._turns(s, iter(lambda: self.truth(self.evaluate(s.test, frame)), False), frame)

    def _turns(self, s: ast.For | ast.While, turns: Iterable[Any], frame: Frame) -> Any:
        """Run the body of a loop once for each turn. Returns how it ends, as `_block` does."""
        for _ in turns:
            ending = self._block(s.body, frame)
            if ending is ast.Break:
                return None
            if ending is ast.Return:
                return ending
        return self._block(s.orelse, frame)

    def import_module(self, s: ast.Import, frame: Frame) -> None:
        for alias in s.names:
            package, _, rest = alias.name.partition(".")
            module = self.imported(alias.name if alias.asname else package)
            if not alias.asname and rest:
                self.imported(alias.name)
            frame.names[alias.asname or package] = module

    def import_names(self, s: ast.ImportFrom, frame: Frame) -> None:
        name = importlib.util.resolve_name(
            "." * s.level + (s.module or ""), frame.globals.get("__package__")
        )
        for alias in s.names:
            value = self.attribute(self.imported(name), alias.name)
            frame.names[alias.asname or alias.name] = value

    def imported(self, name: str) -> types.ModuleType:
        """A Python module that is imported already: importing it again does nothing."""
        if name not in sys.modules:
            raise Stop(f"imports {name}")
        return sys.modules[name]

    def define(self, s: ast.FunctionDef, frame: Frame) -> None:
        if s.decorator_list:
            raise Stop(f"decorates {s.name}")
        frame.names[s.name] = self.function(s, frame)

    def function(self, node: FunctionNode, frame: Frame) -> Closure:
        """A function that is defined in the code."""
        if any(
            isinstance(inner, ast.Yield | ast.YieldFrom | ast.Await) for inner in ast.walk(node)
        ):
            raise Stop("defines a generator")
        defaults = tuple(self.evaluate(default, frame) for default in node.args.defaults)
        by_name = {
            argument.arg: self.evaluate(default, frame)
            for argument, default in zip(node.args.kwonlyargs, node.args.kw_defaults, strict=True)
            if default is not None
        }
        return Closure(node, frame, (defaults, by_name))

    # -- expressions ----------------------------------------------------------------------------

    def evaluate(self, e: ast.expr, frame: Frame) -> Any:
        """The value of an expression."""
        run = self.expressions.get(type(e))
        if run is None:
            raise Stop(f"has an expression that a graph can't hold: {_shown(e)}")
        return run(self, e, frame)

    def constant(self, e: ast.Constant, frame: Frame) -> Any:
        return e.value

    def load_name(self, e: ast.Name, frame: Frame) -> Any:
        return self.name(e.id, frame)

    def load_attribute(self, e: ast.Attribute, frame: Frame) -> Any:
        return self.attribute(self.evaluate(e.value, frame), e.attr)

    def load_item(self, e: ast.Subscript, frame: Frame) -> Any:
        container = self.evaluate(e.value, frame)
        return self.subscript(container, self.evaluate(e.slice, frame), e)

    def subscript(self, container: Any, key: Any, e: ast.Subscript) -> Any:
        """`container[key]`"""
        if type(container) is Traced:
            return self.record("call_function", operator.getitem, (container, key))
        if isinstance(container, nn.Module):
            return self.call(self.attribute(container, "__getitem__"), (key,))
        if isinstance(container, type) or type(container).__module__ == "typing":
            return container[key]  # a type such as list[int]
        return self.item(container, key, ast.unparse(e.value))

    def slice(self, e: ast.Slice, frame: Frame) -> slice:
        parts = (e.lower, e.upper, e.step)
        return slice(*(None if part is None else self.evaluate(part, frame) for part in parts))

    def call_expression(self, e: ast.Call, frame: Frame) -> Any:
        function = self.callee(e.func, frame)
        if function is super and not (e.args or e.keywords):
            return frame.super()
        if function is torch._assert and len(e.args) == 2:
            return self.check(e.args[0], True, frame)
        args = self.several(e.args, frame)
        kwargs: dict[str, Any] = {}
        for keyword in e.keywords:
            value = self.evaluate(keyword.value, frame)
            if keyword.arg is not None:
                kwargs[keyword.arg] = value
            elif type(value) is dict:
                self.look(value, "a dict")
                kwargs.update(value)
            else:
                raise Stop("passes keyword arguments that are not in a dict")
        return self.call(function, args, kwargs)

    def callee(self, e: ast.expr, frame: Frame) -> Any:
        """What is called: of a traced value, a method."""
        if isinstance(e, ast.Attribute):
            owner = self.evaluate(e.value, frame)
            return Method(owner, e.attr) if type(owner) is Traced else self.attribute(owner, e.attr)
        return self.evaluate(e, frame)

    def several(self, elements: list[ast.expr], frame: Frame) -> list[Any]:
        """The values of expressions, starred ones among them."""
        values: list[Any] = []
        for element in elements:
            if isinstance(element, ast.Starred):
                values += self.iterate(self.evaluate(element.value, frame))
            else:
                values.append(self.evaluate(element, frame))
        return values

    def binary_expression(self, e: ast.BinOp, frame: Frame) -> Any:
        a = self.evaluate(e.left, frame)
        return self.binary(BINARY[type(e.op)], a, self.evaluate(e.right, frame))

    def unary(self, e: ast.UnaryOp, frame: Frame) -> Any:
        value = self.evaluate(e.operand, frame)
        if isinstance(e.op, ast.Not):
            return not self.truth(value)
        function = UNARY[type(e.op)]
        if type(value) is Traced:
            return self.record("call_function", function, (value,))
        return function(self.plain(value))

    def boolean(self, e: ast.BoolOp, frame: Frame) -> Any:
        value = None
        for part in e.values:
            value = self.evaluate(part, frame)
            if part is not e.values[-1] and self.truth(value) is isinstance(e.op, ast.Or):
                break
        return value

    def comparison(self, e: ast.Compare, frame: Frame) -> Any:
        left, result = self.evaluate(e.left, frame), None
        for i, (op, right_expression) in enumerate(zip(e.ops, e.comparators, strict=True)):
            right = self.evaluate(right_expression, frame)
            result = self.compare(type(op), left, right)
            if i < len(e.ops) - 1 and not self.truth(result):
                break
            left = right
        return result

    def named(self, e: ast.NamedExpr, frame: Frame) -> Any:
        if frame.is_comprehension:
            raise Stop("names a value in a comprehension")
        value = frame.names[e.target.id] = self.evaluate(e.value, frame)
        return value

    def conditional(self, e: ast.IfExp, frame: Frame) -> Any:
        chosen = e.body if self.truth(self.evaluate(e.test, frame)) else e.orelse
        return self.evaluate(chosen, frame)

    def tuple(self, e: ast.Tuple, frame: Frame) -> tuple[Any, ...]:
        return tuple(self.several(e.elts, frame))

    def list(self, e: ast.List, frame: Frame) -> Any:
        return self.fresh(self.several(e.elts, frame))

    def set(self, e: ast.Set, frame: Frame) -> Any:
        return self.fresh(set(map(self.plain, self.several(e.elts, frame))))

    def dict(self, e: ast.Dict, frame: Frame) -> Any:
        made = {}
        for key, value in zip(e.keys, e.values, strict=True):
            if key is None:
                other = self.evaluate(value, frame)
                if type(other) is not dict:
                    raise Stop("unpacks what is not a dict")
                self.look(other, "a dict")
                made.update(other)
            else:
                name = self.plain(self.evaluate(key, frame))
                made[name] = self.evaluate(value, frame)
        return self.fresh(made)

    def comprehension(self, e: Any, frame: Frame) -> Any:
        """A list, set or generator of an expression."""
        items = self._items(e, frame)
        if isinstance(e, ast.GeneratorExp):
            return self.fresh(items)
        if isinstance(e, ast.SetComp):
            return self.fresh(set(map(self.plain, items)))
        return self.fresh(dict(items) if isinstance(e, ast.DictComp) else [*items])

    def _items(self, e: Any, frame: Frame) -> Iterator[Any]:
        first = self.iterate(self.evaluate(e.generators[0].iter, frame))  # at once, as Python does
        inner = frame.nested()

        def through(generators: Any, values: Iterator[Any]) -> Iterator[Any]:
            generator, *others = generators
            for value in values:
                self.store(generator.target, value, inner)
                if not all(self.truth(self.evaluate(test, inner)) for test in generator.ifs):
                    continue
                if others:
                    nested = self.iterate(self.evaluate(others[0].iter, inner))
                    yield from through(others, nested)
                elif isinstance(e, ast.DictComp):
                    key = self.plain(self.evaluate(e.key, inner))
                    yield key, self.evaluate(e.value, inner)
                else:
                    yield self.evaluate(e.elt, inner)

        return through(e.generators, first)

    def string(self, e: ast.JoinedStr, frame: Frame) -> str:
        parts = []
        for part in e.values:
            if isinstance(part, ast.FormattedValue):
                value = self.plain(self.evaluate(part.value, frame))
                if part.conversion != -1:
                    value = _CONVERSIONS[part.conversion](value)
                spec = "" if part.format_spec is None else self.evaluate(part.format_spec, frame)
                parts.append(format(value, spec))
            else:
                parts.append(self.evaluate(part, frame))
        return "".join(parts)


_CONVERSIONS: dict[int, Callable[[Any], str]] = {ord("s"): str, ord("r"): repr, ord("a"): ascii}


def _raising(error: Exception) -> Stop:
    text = str(error).strip().partition("\n")[0]
    return Stop(f"raises {type(error).__name__}: {text}")


def _shown(node: ast.AST) -> str:
    return ast.unparse(node).partition("\n")[0][:60]
