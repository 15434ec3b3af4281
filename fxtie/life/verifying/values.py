"""Compare values of any type: tensors bit for bit, other objects by their parts."""

from __future__ import annotations

import collections
import enum
import math
import types
import warnings
import weakref
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import fx, nn
from torch.nn.parameter import is_lazy

ModuleNames = Mapping[int, str]  # of the modules of a model, by id
_Parts = list[tuple[str, Any]]  # of a value, with the code that reads them

_ATOMS = (
    *(int, float, complex, str, bytes, enum.Enum, type(None), types.CodeType),
    *(torch.dtype, torch.device, torch.layout, torch.memory_format),
)


def relative_error(found: torch.Tensor, expected: torch.Tensor) -> float:
    """`|found - expected| / |expected|`; infinite if shapes or dtypes differ."""
    if found.shape != expected.shape or found.dtype != expected.dtype:
        return math.inf
    if torch.equal(_dense(found), _dense(expected)):  # infinities too
        return 0.0
    norm, difference = norm_of(expected), norm_of(wide(found) - wide(expected))
    return difference / norm if norm else math.inf


def _dense(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor without gradient, strides or scales that get in the way of comparing values."""
    tensor = tensor.detach()
    if tensor.is_quantized:
        return tensor.int_repr()
    return tensor if tensor.layout is torch.strided else tensor.to_dense()


def wide(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor's numbers in double precision."""
    return _dense(tensor).to(torch.complex128 if tensor.is_complex() else torch.float64)


def norm_of(tensor: torch.Tensor | None) -> float:
    """The Euclidean norm, 0 for none."""
    return 0.0 if tensor is None else wide(tensor).norm().item()


def same_bits(found: torch.Tensor, expected: torch.Tensor) -> bool:
    """Whether tensors of one shape and dtype are equal bit for bit, NaN and signs of 0 included."""
    pair = (_dense(t).resolve_conj().resolve_neg().contiguous() for t in (found, expected))
    return torch.equal(*(tensor.reshape(-1).view(torch.uint8) for tensor in pair))


def attributes_of(module: nn.Module) -> dict[str, Any]:
    """The plain attributes that a user's code may set, with the training flag."""
    if isinstance(module, torch.jit.ScriptModule):
        return {}
    hidden = _OF_GRAPHS if isinstance(module, fx.GraphModule) else _OF_MODULES
    members = vars(module).items()
    return {n: v for n, v in members if n not in hidden}


# An nn.LSTM also keeps its parameters in lists, from which a tied one lacks some.
_LISTS = {"_flat_weights", "_flat_weight_refs"}
_OF_MODULES = {"_fxtie", "_compiled_call_impl", *_LISTS, *vars(nn.Module())} - {"training"}
_OF_GRAPHS = _OF_MODULES | vars(fx.GraphModule({}, fx.Graph())).keys() - {"training"}


def _class_name(cls: type) -> str:
    """Where a class is defined: a copied module of the tied model has a class of its own."""
    return f"{cls.__module__}.{cls.__qualname__}".removeprefix("builtins.")


def _label(value: Any, names: ModuleNames) -> str:
    """A short text that is the same for equal values of both sides."""
    if isinstance(value, tuple):
        return f"({', '.join(_label(item, names) for item in value)})"
    if isinstance(value, set | frozenset):
        return f"{{{', '.join(sorted(_label(item, names) for item in value))}}}"
    if isinstance(value, _ATOMS):
        return repr(value)
    return names.get(id(value)) or _class_name(type(value))


def _open(value: Any, names: ModuleNames) -> tuple[str, str, _Parts]:
    """Take a value apart: its class, a text, its parts. A model's module is known by its name."""
    kind = _class_name(type(value))
    if isinstance(value, nn.Module) and id(value) in names:
        return "module", names[id(value)] or "the root", []
    if isinstance(value, type):
        return "class", _class_name(value), []
    if isinstance(value, (*_ATOMS, set, frozenset)):
        return kind, _label(value, names), []
    if isinstance(value, fx.Graph):  # thousands of nodes, which no call changes
        return kind, "", []
    if isinstance(value, weakref.ReferenceType):
        return kind, "", [("", value())]
    if isinstance(value, nn.Module):
        return kind, *_open_members(attributes_of(value) | value._parameters | value._buffers)
    if isinstance(value, dict | list | tuple | collections.deque):
        text, parts = _open_items(value, names)
        return kind, text, parts + _open_members(getattr(value, "__dict__", {}))[1]
    return kind, *_open_object(value)


def _open_items(value: Any, names: ModuleNames) -> tuple[str, _Parts]:
    if not isinstance(value, dict):
        fields = getattr(value, "_fields", ())
        paths = [f".{name}" for name in fields] or [f"[{i}]" for i in range(len(value))]
        return f"{len(value)} items", list(zip(paths, value, strict=False))
    labels = [_label(key, names) for key in value]
    keys = [("", key) for key in value if not isinstance(key, _ATOMS)]
    items = [(f"[{label}]", item) for label, item in zip(labels, value.values(), strict=True)]
    return f"the keys {', '.join(labels)}", keys + items


def _open_members(members: Mapping[str, Any]) -> tuple[str, _Parts]:
    """Attributes, in whatever order they were set."""
    names = sorted(members, key=str)
    return f"the attributes {', '.join(map(str, names))}", [(f".{n}", members[n]) for n in names]


def _open_object(value: Any) -> tuple[str, _Parts]:
    """Take an object apart as pickle does. If that fails, only its class is compared."""
    reduced: Any
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if isinstance(value, types.FunctionType):
                cells = [cell.cell_contents for cell in value.__closure__ or ()]
                reduced = value.__code__, (value.__defaults__, value.__kwdefaults__, cells)
            else:
                reduced = value.__reduce_ex__(4)
    except Exception:  # locks, generators, handles of C++, closures over what is not bound yet
        return "", []
    if isinstance(reduced, str):
        return reduced, []
    function, args, state, *items = (*reduced, None)[:5]
    if isinstance(state, tuple) and all(isinstance(s, dict | types.NoneType) for s in state):
        state = {name: part for members in state for name, part in (members or {}).items()}
    text, parts = _open_members(state) if isinstance(state, dict) else ("", [("", state)])
    parts += [("", list(iterator)) for iterator in items if iterator is not None]
    return text, [("", function), ("", args), *parts]


def tensors_in(value: Any, names: ModuleNames) -> Iterator[tuple[str, torch.Tensor]]:
    """The tensors in any value, once each, and the paths to them."""
    pending, seen = [("", value)], {}
    while pending:
        path, part = pending.pop()
        if id(part) in seen:
            continue
        seen[id(part)] = part  # alive, so that its id stays its own
        if isinstance(part, torch.Tensor):
            yield path, part
        else:
            *_, parts = _open(part, names)
            pending += [(path + suffix, inner) for suffix, inner in reversed(parts)]


class Differ:
    """Finds where values of the two sides differ, and counts and measures their tensors."""

    def __init__(self, found: ModuleNames, expected: ModuleNames) -> None:
        self.found, self.expected = found, expected
        self.tensors, self.error = 0, 0.0

    def differences(self, found: Any, expected: Any) -> Iterator[tuple[str, str]]:
        """The path to each part that differs, and how it does."""
        pending, seen = [("", found, expected)], {}
        while pending:
            path, a, b = pending.pop()
            if (id(a), id(b)) in seen:
                continue
            seen[id(a), id(b)] = a, b  # alive, so that ids stay theirs
            if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
                how = self.of_tensors(a, b)
            elif a is b:
                continue
            else:
                how, parts = self.of_values(a, b)
                pending += [(path + suffix, x, y) for suffix, x, y in reversed(parts)]
            if how:
                yield path, how

    def of_tensors(self, found: torch.Tensor, expected: torch.Tensor) -> str:
        self.tensors += 1
        if is_lazy(found) or is_lazy(expected):
            return "" if is_lazy(found) == is_lazy(expected) else "only one side has initialized it"
        for name in ("shape", "dtype", "device", "layout", "requires_grad"):
            a, b = getattr(found, name), getattr(expected, name)
            if a != b:
                return f"its {name} is {a}, not {b}"
        if _class_name(type(found)) != _class_name(type(expected)):
            return f"{_class_name(type(found))}, not {_class_name(type(expected))}"
        if found.is_meta or same_bits(found, expected):
            return ""
        error = relative_error(found, expected)
        self.error = max(self.error, error)
        return f"relative error {error:.1e}" if error else "other signs of zeros"

    def of_values(self, found: Any, expected: Any) -> tuple[str, list[tuple[str, Any, Any]]]:
        """How two values differ by themselves; if they don't, their parts in pairs."""
        kind, text, parts = _open(found, self.found)
        other_kind, other_text, others = _open(expected, self.expected)
        if kind != other_kind:
            return f"{kind}, not {other_kind}", []
        if text != other_text or len(parts) != len(others):
            return f"{text:.100}, not {other_text:.100}", []
        return "", [(path, x, y) for (path, x), (_, y) in zip(parts, others, strict=True)]
