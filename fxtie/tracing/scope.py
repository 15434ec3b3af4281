"""The global variables of rewritten code, which come from the gate.

In: a function and the gate. Out: its globals; the place in the user's code that runs.
"""

from __future__ import annotations

import ast
import operator
from collections.abc import Iterable
from types import FrameType, FunctionType
from typing import Any, Protocol


class Gate(Protocol):
    """What `Scope` needs of the gate (`evaluator.py`)."""

    def taken_outside(self, value: Any) -> Any:
        """A value that is no part of the model."""

    def variable(self, name: str, scope: Scope) -> Any:
        """A variable from outside of the function."""


class Scope(dict[str, Any]):
    """The global variables of a rewritten function: it asks the gate for each.

    Attributes:
        gate: the trace.
        function: the function as it was written.
        cells: its variables from enclosing functions.
        package: the name of the package that it belongs to.
        is_of_torch: whether it is one of torch's layers.
        caller: then, the user's code that has called it, once that is known, and the line.
    """

    def __init__(self, gate: Gate, function: FunctionType) -> None:
        module = str(function.__globals__.get("__name__", ""))
        super().__init__({".gate": gate, ".scope": self, ".ast": ast, ".operator": operator})
        self.gate, self.function = gate, function
        cells = function.__closure__ or ()
        self.cells = dict(zip(function.__code__.co_freevars, cells, strict=True))
        self.package = module.partition(".")[0]
        self.is_of_torch = module.startswith("torch.nn.modules")
        self.caller: tuple[Scope, int] | None = None

    def __missing__(self, name: str) -> Any:
        return self.gate.variable(name, self)


def user_place(frames: Iterable[tuple[FrameType, int]]) -> tuple[Scope, int] | None:
    """Scope and line of the innermost code of the user's that runs, else of torch's layers.

    Args:
        frames: frames of Python's with their lines, from the innermost outwards.
    """
    found = None
    for frame, line in frames:
        scope = frame.f_globals
        if type(scope) is Scope:
            if not scope.is_of_torch:
                return scope, line
            found = found or (scope, line)
    return found
