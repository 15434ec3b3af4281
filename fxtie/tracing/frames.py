"""The variables of functions that are being evaluated."""

from __future__ import annotations

import types
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fxtie.tracing.source_code import FunctionNode, stored_names
from fxtie.tracing.stops import Stop


class Frame:
    """One call of a function, or one comprehension in it.

    Attributes:
        names: local variables.
        stored: the names that the function binds somewhere.
        outer: the frame in whose scope this one is nested.
        line: the line of the statement that runs.
        result: what the function returns.
        package: the name of the package that the function belongs to.
        is_of_torch: whether it is one of torch's layers.
    """

    __slots__ = (
        *("function", "is_comprehension", "is_of_torch", "line", "names", "node", "outer"),
        *("package", "result", "stored"),
    )

    def __init__(
        self, node: FunctionNode, function: types.FunctionType, outer: Frame | None = None
    ) -> None:
        self.node, self.function, self.outer = node, function, outer
        self.names: dict[str, Any] = {}
        self.stored = stored_names(node)
        self.line = node.lineno
        self.result: Any = None
        module = str(function.__globals__.get("__name__", ""))
        self.package = module.partition(".")[0]
        self.is_of_torch = module.startswith("torch.nn.modules")
        self.is_comprehension = False

    def nested(self) -> Frame:
        """The scope of a comprehension."""
        inner = Frame(self.node, self.function, self)
        inner.stored = frozenset()
        inner.is_comprehension = True
        inner.line = self.line
        return inner

    @property
    def globals(self) -> dict[str, Any]:
        return self.function.__globals__

    @property
    def cells(self) -> dict[str, types.CellType]:
        """The variables of enclosing functions."""
        free = self.function.__code__.co_freevars
        return dict(zip(free, self.function.__closure__ or (), strict=True))

    @property
    def place(self) -> tuple[str, int, str]:
        """File, line and function."""
        code = self.function.__code__
        return code.co_filename, self.line, code.co_name

    def super(self) -> Super:
        """`super()`"""
        frame = self
        while frame.outer is not None:
            frame = frame.outer
        arguments = [*frame.node.args.posonlyargs, *frame.node.args.args]
        if not arguments or "__class__" not in frame.cells:
            raise Stop("calls super() outside of a method")
        return Super(frame.cells["__class__"].cell_contents, frame.names[arguments[0].arg])


@dataclass(frozen=True, eq=False)
class Super:
    """What `super()` gives: the methods of the classes after `cls`."""

    cls: type
    instance: Any

    @property
    def classes(self) -> tuple[type, ...]:
        """The classes after `cls`, in the order in which Python looks at them."""
        cls = self.instance if isinstance(self.instance, type) else type(self.instance)
        return cls.__mro__[cls.__mro__.index(self.cls) + 1 :]


@dataclass(frozen=True, eq=False)
class Closure:
    """A function that was defined in evaluated code."""

    node: FunctionNode
    outer: Frame
    defaults: tuple[tuple[Any, ...], dict[str, Any]]

    def frame(self) -> Frame:
        return Frame(self.node, self.outer.function, self.outer)


def bind(
    node: FunctionNode,
    defaults: tuple[Sequence[Any], Mapping[str, Any]],
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
) -> dict[str, Any]:
    """The parameters of a function with their values, as Python binds them.

    Args:
        defaults: of the last positional parameters, and of those by keyword only.
    """
    parameters = node.args
    positional = [a.arg for a in (*parameters.posonlyargs, *parameters.args)]
    by_keyword = {a.arg for a in (*parameters.args, *parameters.kwonlyargs)}
    bound = dict(zip(positional, args))  # noqa: B905  # there may be more of either
    rest = tuple(args[len(positional) :])
    others: dict[str, Any] = {}
    for name, value in kwargs.items():
        if name in bound and name in by_keyword:
            raise Stop(f"passes {name} twice")
        (bound if name in by_keyword else others)[name] = value
    if (rest and parameters.vararg is None) or (others and parameters.kwarg is None):
        raise Stop("passes arguments that the function doesn't take")
    first = len(positional) - len(defaults[0])
    missing = dict(zip(positional[first:], defaults[0], strict=True)) | dict(defaults[1])
    for name in (*positional, *(a.arg for a in parameters.kwonlyargs)):
        if name not in bound:
            if name not in missing:
                raise Stop(f"passes no {name}")
            bound[name] = missing[name]
    if parameters.vararg is not None:
        bound[parameters.vararg.arg] = rest
    if parameters.kwarg is not None:
        bound[parameters.kwarg.arg] = others
    return bound
