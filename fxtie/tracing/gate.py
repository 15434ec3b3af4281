"""The gate: which functions a trace may record, run, or look into.

In: a callable that traced code is about to call. Out: how a trace treats it. What is on none of
these lists, and has no source code to look into, stops the trace before it runs.

| callable | treatment |
| --- | --- |
| operators of torch, those that take part in `__torch_function__` | recorded: they run each time |
| functions that make tensors of numbers: `torch.arange` | recorded |
| functions of einops, and those declared by `torch.fx.wrap` | recorded |
| `math.sqrt` and its like | recorded for traced arguments, run for others |
| questions about torch's state: `torch.is_grad_enabled` | run, and the answer becomes a guard |
| builtins | see `callables.py` |
| methods of Python's own containers, strings and numbers | run, on values that are known |
| Python functions | looked into (`rewriting.py`) |
"""

from __future__ import annotations

import collections
import functools
import math
import types
from collections.abc import Container
from typing import Any

import torch
import torch.nn.functional as F

from fxtie import _torch
from fxtie.tracing.source_code import package_of

FACTORIES = frozenset(
    {torch.arange, torch.empty, torch.eye, torch.full, torch.linspace, torch.logspace}
    | {torch.ones, torch.rand, torch.randint, torch.randn, torch.randperm, torch.scalar_tensor}
    | {torch.tensor, torch.tril_indices, torch.triu_indices, torch.zeros}
    | {torch.as_tensor, torch.normal, torch.rand_like, torch.randint_like, torch.randn_like}
    | {torch.bartlett_window, torch.blackman_window, torch.hamming_window, torch.hann_window}
    | {torch.fft.fftfreq, torch.fft.rfftfreq, torch.finfo, torch.iinfo, torch.promote_types}
)
"""Functions that make tensors, or facts, of numbers.

Schemas do not tell: `torch.tensor` has none, and `torch.from_file` has one of the same form.
"""

UNLISTED = frozenset({F.elu_, F.hardsigmoid, F.hardswish, F.hardtanh_, F.leaky_relu_})
"""Functions that `torch.overrides` does not list, though they only compute."""

SIZED = frozenset({torch.empty, torch.ones, torch.rand, torch.randn, torch.zeros})
"""Functions to which a tuple of sizes is the same as several arguments."""

SIZED_METHODS = frozenset({"expand", "flip", "permute", "repeat", "reshape", "tile", "view"})
"""Methods of tensors to which it is."""

MATH = frozenset(
    value for name, value in vars(math).items() if callable(value) and not name.startswith("_")
)
"""The functions of `math`."""

QUESTIONS = frozenset(
    {torch.is_grad_enabled, torch.is_inference_mode_enabled, torch.get_default_dtype}
    | {torch.is_autocast_enabled, torch.get_autocast_dtype}
    | {*_torch.QUESTIONS}
)
"""Functions about the state of torch, the answers to which become guards."""


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


@functools.cache
def _recorded() -> frozenset[Any]:
    """The functions and methods of torch of which a trace records a call as one node."""
    overridable = frozenset(torch.overrides.get_testing_overrides())
    ignored = torch.overrides.get_ignored_functions()
    return FACTORIES | UNLISTED | ((overridable | _torch.in_place_functions()) - ignored)


def is_recorded(function: Any) -> bool:
    """Whether a trace records a call of this as one node."""
    if isinstance(function, _torch.OpOverload | _torch.OpOverloadPacket):
        return True
    return is_in(function, _recorded()) or is_opaque(function)


def is_in(function: Any, functions: Container[Any]) -> bool:
    """Whether a callable is one of these. Other objects are not."""
    return isinstance(function, _FUNCTIONS) and function in functions


_FUNCTIONS = (
    *(types.FunctionType, types.BuiltinFunctionType, types.MethodDescriptorType, type),
    *(types.WrapperDescriptorType, types.MethodWrapperType),
)


def is_opaque(function: Any) -> bool:
    """Whether it is a function of another library that says to be one operation."""
    if not isinstance(function, types.FunctionType):
        return False
    if package_of(function) == "einops":
        return not function.__name__.startswith("_")
    return _torch.is_wrapped(function)
