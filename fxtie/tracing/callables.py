"""Python's builtins in a trace, and the tables of all that a trace knows of Python.

In: calls of builtins on values, some of them traced. Out: what the builtin gives. What is in none
of these tables stops the trace.
"""

from __future__ import annotations

import ast
import builtins
import collections
import enum
import functools
import itertools
import operator
from abc import ABCMeta
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn

from fxtie.tracing.evaluator import Evaluator
from fxtie.tracing.guards import MISSING
from fxtie.tracing.operators import BINARY, COMPARISONS, IN_PLACE
from fxtie.tracing.recorder import CONTAINERS
from fxtie.tracing.stops import Stop
from fxtie.tracing.traced import Traced

Handler = Callable[..., Any]


def _isinstance(e: Evaluator, value: Any, kinds: Any) -> bool:
    wanted = _classes(kinds)
    if type(value) is not Traced:
        return isinstance(value, tuple(wanted))
    found = e.known_type(value)
    if found is torch.Tensor and torch.Tensor in wanted:
        return True
    if found is not None and all(kind in _NO_TENSORS for kind in wanted):
        return found in wanted
    raise Stop(f"tests the type of a traced value ({value.node.name})")


def _classes(kinds: Any) -> list[type]:
    if isinstance(kinds, tuple):
        return [kind for part in kinds for kind in _classes(part)]
    if hasattr(kinds, "__args__") and not isinstance(kinds, type):  # int | float
        return [kind for part in kinds.__args__ for kind in _classes(part)]
    if isinstance(kinds, type) and type(kinds) in _KNOWN_METACLASSES:
        return [kinds]
    raise Stop(f"tests for the type {kinds!r:.60}")


_KNOWN_METACLASSES = (type, ABCMeta, enum.EnumMeta, type(torch.Tensor), type(nn.Parameter))
_NO_TENSORS = (bool, int, float, complex, str, bytes, list, tuple, dict, set, type(None))


def _getattr(e: Evaluator, owner: Any, name: str, default: Any = MISSING) -> Any:
    e.plain(name)
    if type(owner) is Traced and default is not MISSING:
        raise Stop(f"asks whether a traced value has .{name}")
    return e.attribute(owner, name, default)


def _hasattr(e: Evaluator, owner: Any, name: str) -> bool:
    return _getattr(e, owner, name, _NOTHING) is not _NOTHING


_NOTHING = object()


def _on_constants(function: Callable[..., Any]) -> Handler:
    """A builtin that needs to know its arguments."""

    def call(e: Evaluator, *args: Any, **kwargs: Any) -> Any:
        values = [list(e.iterate(a)) if _is_lazy(e, a) else a for a in args]
        result = function(*map(e.plain, values), **{k: e.plain(v) for k, v in kwargs.items()})
        return e.fresh(result) if type(result) in CONTAINERS else result

    return call


def _is_lazy(e: Evaluator, value: Any) -> bool:
    return e.is_fresh(value) and type(value) not in CONTAINERS


def _recorded_as(recorded: Callable[..., Any], function: Callable[..., Any]) -> Handler:
    """A builtin that is an operator on traced values."""
    on_constants = _on_constants(function)

    def call(e: Evaluator, *args: Any) -> Any:
        if any(type(arg) is Traced for arg in args):
            return e.record("call_function", recorded, args)
        return on_constants(e, *args)

    return call


def _collected(kind: Callable[..., Any]) -> Handler:
    """A container made of the items of another."""

    def call(e: Evaluator, *args: Any) -> Any:
        result = kind(*(e.iterate(arg) for arg in args))
        if kind in (set, frozenset):
            e.plain(tuple(result))
        return e.fresh(result) if type(result) in CONTAINERS else result

    return call


def _dict(kind: type[dict[Any, Any]]) -> Handler:
    def call(e: Evaluator, *args: Any, **kwargs: Any) -> Any:
        made = kind()
        for arg in args:
            if isinstance(arg, dict):
                e.look(arg, "a dict")
                made.update(arg)
                continue
            for pair in e.iterate(arg):
                key, value = e.iterate(pair)
                made[e.plain(key)] = value
        made.update(kwargs)
        return e.fresh(made)

    return call


def _lazily(function: Callable[..., Any]) -> Handler:
    """`zip`, `enumerate` and their like: iterators that the code itself has made."""

    def call(e: Evaluator, *args: Any, **kwargs: Any) -> Any:
        its = [e.iterate(arg) if isinstance(arg, Iterable | nn.Module) else arg for arg in args]
        return e.fresh(function(*its, **kwargs))

    return call


def _map(e: Evaluator, function: Any, *iterables: Any) -> Any:
    values = zip(*map(e.iterate, iterables), strict=False)
    return e.fresh(e.call(function, args) for args in values)


def _reversed(e: Evaluator, value: Any) -> Any:
    if isinstance(value, nn.Module):
        raise Stop("reverses a module")
    return e.fresh(reversed(list(e.iterate(value))))


def _sum(e: Evaluator, values: Any, start: Any = 0) -> Any:
    for value in e.iterate(values):
        start = e.binary(operator.add, start, value)
    return start


def _quantifier(until: bool) -> Handler:
    def call(e: Evaluator, values: Any) -> bool:
        for value in e.iterate(values):
            if e.truth(value) is until:
                return until
        return not until

    return call


def _reduce(e: Evaluator, function: Any, values: Any, *initial: Any) -> Any:
    items = e.iterate(values)
    result = initial[0] if initial else next(items)
    for item in items:
        result = e.call(function, (result, item))
    return result


def _type(e: Evaluator, value: Any) -> type:
    if type(value) is Traced:
        raise Stop(f"tests the type of a traced value ({value.node.name})")
    kind = e.attribute(value, "__class__")
    assert isinstance(kind, type)
    return kind


def _children(e: Evaluator, module: nn.Module) -> Any:
    children = e.iterate(e.call_method(e.attribute(module, "_modules"), "values", (), {}))
    return e.fresh(iter(dict.fromkeys(child for child in children if child is not None)))


def _operator(function: Callable[..., Any]) -> Handler:
    return lambda e, a, b: e.binary(function, a, b)


def _comparison(op: type[ast.cmpop]) -> Handler:
    return lambda e, a, b: e.compare(op, a, b)


CALLABLES: dict[Any, Handler] = {
    isinstance: _isinstance,
    getattr: _getattr,
    hasattr: _hasattr,
    len: lambda e, value: e.length(value),
    bool: lambda e, value=False: e.truth(value),
    callable: lambda e, value: callable(value) if type(value) is not Traced else e.truth(value),
    type: _type,
    sum: _sum,
    any: _quantifier(True),
    all: _quantifier(False),
    iter: lambda e, value: e.fresh(e.iterate(value)),
    zip: _lazily(zip),
    enumerate: _lazily(enumerate),
    reversed: _reversed,
    map: _map,
    functools.reduce: _reduce,
    itertools.chain: _lazily(itertools.chain),
    itertools.product: _lazily(itertools.product),
    itertools.repeat: lambda e, value, *times: e.fresh(itertools.repeat(value, *times)),
    nn.Module.children: _children,
    list: _collected(list),
    tuple: _collected(tuple),
    set: _collected(set),
    frozenset: _collected(frozenset),
    torch.Size: _collected(torch.Size),
    dict: _dict(dict),
    collections.OrderedDict: _dict(collections.OrderedDict),
    slice: lambda e, *args: slice(*args),
    range: _on_constants(range),
    abs: _recorded_as(operator.abs, builtins.abs),
    pow: _recorded_as(operator.pow, builtins.pow),
    **{
        function: _on_constants(function)
        for function in (
            *(int, float, str, min, max, round, divmod, sorted, repr, issubclass),
            *(torch.device, operator.index),
        )
    },
    **{function: _operator(function) for function in (*BINARY.values(), *IN_PLACE.values())},
    **{function: _comparison(op) for op, function in COMPARISONS.items()},
}
"""Builtins, and what they do in a trace."""

_SEQUENCE = frozenset({"index", "count"})

METHODS: dict[type, frozenset[str]] = {
    tuple: _SEQUENCE,
    torch.Size: _SEQUENCE | {"numel"},
    list: _SEQUENCE | {"append", "extend", "insert", "pop", "reverse", "clear", "copy"},
    dict: frozenset({"get", "items", "keys", "values", "update", "pop", "setdefault", "copy"}),
    collections.OrderedDict: frozenset({"get", "items", "keys", "values", "update"}),
    set: frozenset({"add"}),
    str: frozenset(
        {"endswith", "format", "join", "lower", "replace", "split", "startswith", "strip", "upper"}
    ),
    float: frozenset({"is_integer"}),
}
"""Methods of Python's own types that a trace may call."""

STATEMENTS: dict[type[ast.stmt], Handler] = {
    ast.AnnAssign: Evaluator.annotated,
    ast.Assert: Evaluator.assertion,
    ast.Assign: Evaluator.assign,
    ast.AugAssign: Evaluator.augmented,
    ast.Break: Evaluator.jump,
    ast.Continue: Evaluator.jump,
    ast.Delete: Evaluator.delete,
    ast.Expr: Evaluator.expression_statement,
    ast.For: Evaluator.loop,
    ast.FunctionDef: Evaluator.define,
    ast.If: Evaluator.branch,
    ast.Import: Evaluator.import_module,
    ast.ImportFrom: Evaluator.import_names,
    ast.Pass: Evaluator.pass_statement,
    ast.Return: Evaluator.return_statement,
    ast.While: Evaluator.while_loop,
}
"""The statements that a trace knows."""

EXPRESSIONS: dict[type[ast.expr], Handler] = {
    ast.Attribute: Evaluator.load_attribute,
    ast.BinOp: Evaluator.binary_expression,
    ast.BoolOp: Evaluator.boolean,
    ast.Call: Evaluator.call_expression,
    ast.Compare: Evaluator.comparison,
    ast.Constant: Evaluator.constant,
    ast.Dict: Evaluator.dict,
    ast.DictComp: Evaluator.comprehension,
    ast.GeneratorExp: Evaluator.comprehension,
    ast.IfExp: Evaluator.conditional,
    ast.JoinedStr: Evaluator.string,
    ast.Lambda: Evaluator.function,
    ast.List: Evaluator.list,
    ast.ListComp: Evaluator.comprehension,
    ast.Name: Evaluator.load_name,
    ast.NamedExpr: Evaluator.named,
    ast.Set: Evaluator.set,
    ast.SetComp: Evaluator.comprehension,
    ast.Slice: Evaluator.slice,
    ast.Subscript: Evaluator.load_item,
    ast.Tuple: Evaluator.tuple,
    ast.UnaryOp: Evaluator.unary,
}
"""The expressions that a trace knows."""

Evaluator.callables, Evaluator.methods = CALLABLES, METHODS
Evaluator.statements, Evaluator.expressions = STATEMENTS, EXPRESSIONS
