"""Compare values of any type: tensors bit for bit, other objects by their parts."""

from __future__ import annotations

import collections
import dataclasses
import enum
import types
import warnings
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import fx, nn
from torch.nn.parameter import is_lazy


def relative_error(found: torch.Tensor, expected: torch.Tensor) -> float:
    """`|found - expected| / |expected|`; infinite if shapes or dtypes differ."""
    if found.shape != expected.shape or found.dtype != expected.dtype:
        return float("inf")
    found, expected = _dense(found), _dense(expected)
    if torch.equal(found, expected):  # infinities too
        return 0.0
    norm = wide(expected).norm().item()
    difference = (wide(found) - wide(expected)).norm().item()
    return difference / norm if norm else (0.0 if difference == 0 else float("inf"))


def _dense(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor without gradient, strides or scales that get in the way of comparing values."""
    tensor = tensor.detach()
    if tensor.is_quantized:
        return tensor.int_repr()
    return tensor if tensor.layout is torch.strided else tensor.to_dense()


def wide(tensor: torch.Tensor) -> torch.Tensor:
    tensor = _dense(tensor)
    return tensor.to(torch.complex128 if tensor.is_complex() else torch.float64)


def same_bits(found: torch.Tensor, expected: torch.Tensor) -> bool:
    """Whether tensors of one shape and dtype are equal bit for bit, NaN and signs of 0 included."""
    return torch.equal(*(_bits(_dense(tensor)) for tensor in (found, expected)))


def _bits(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.resolve_conj().resolve_neg().contiguous().reshape(-1).view(torch.uint8)


def norm_of(tensor: torch.Tensor | None) -> float:
    return 0.0 if tensor is None else wide(tensor).norm().item()


# -- values that may be anything ---------------------------------------------------------------


class _Opened(NamedTuple):
    """A value taken apart: its class, a text, and its parts with the code that reads them."""

    kind: str
    text: str = ""
    parts: Sequence[tuple[str, Any]] = ()


Names = Mapping[int, str]  # of the modules of a model, by id

_ATOMS = (
    *(int, float, complex, str, bytes, enum.Enum, type(None), types.CodeType),
    *(torch.dtype, torch.device, torch.layout, torch.memory_format),
)


def _open(value: Any, names: Names) -> _Opened:
    """Take a value apart. A module of the model is known by its name."""
    kind = _class_name(type(value))
    if isinstance(value, nn.Module) and id(value) in names:
        return _Opened("module", names[id(value)] or "the root")
    if isinstance(value, _ATOMS):
        return _Opened(kind, repr(value))
    if isinstance(value, type):
        return _Opened("class", _class_name(value))
    if isinstance(value, set | frozenset):
        labels = sorted(_label(item, names) for item in value)
        return _Opened(kind, f"{{{', '.join(labels)}}}")
    for cls, opener in _OPENERS.items():
        if isinstance(value, cls):
            return _Opened(kind, *opener(value))
    return _Opened(kind, *_open_object(value))


_Parts = tuple[str, list[tuple[str, Any]]]


def _open_dict(value: dict[Any, Any]) -> _Parts:
    text = f"{len(value)} keys"
    if all(isinstance(key, _ATOMS) for key in value):
        text = f"the keys {', '.join(map(repr, value))}"
    keys = [("", key) for key in value if not isinstance(key, _ATOMS)]
    items = [(f"[{_label(key, {})}]", item) for key, item in value.items()]
    return text, [*keys, *items, *_open_members(_members(value))[1]]


def _open_sequence(value: Any) -> _Parts:
    fields = getattr(value, "_fields", ())
    paths = [f".{name}" for name in fields] or [f"[{i}]" for i in range(len(value))]
    items = list(zip(paths, value, strict=False))
    return f"{len(value)} items", [*items, *_open_members(_members(value))[1]]


def _open_members(members: Mapping[str, Any]) -> _Parts:
    """Attributes, in whatever order they were set."""
    names = sorted(members, key=str)
    return f"the attributes {', '.join(map(str, names))}", [(f".{n}", members[n]) for n in names]


def _open_function(value: types.FunctionType) -> _Parts:
    cells = [_cell_contents(cell) for cell in value.__closure__ or ()]
    parts = [value.__code__, value.__defaults__, value.__kwdefaults__, *cells]
    return value.__qualname__, [("", part) for part in parts]


def _cell_contents(cell: types.CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # a name that is not bound yet
        return None


def _open_object(value: Any) -> _Parts:
    """Take an object apart as pickle does. If that fails, only its class is compared."""
    if dataclasses.is_dataclass(value):
        fields = [field.name for field in dataclasses.fields(value) if hasattr(value, field.name)]
        return _open_members({name: getattr(value, name) for name in fields} | _members(value))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            reduced = value.__reduce_ex__(4)
    except Exception:  # locks, generators, handles of C++
        return "", []
    if isinstance(reduced, str):
        return reduced, []
    function, args, state, *iterators = (*reduced, None)[:5]
    text, parts = _open_state(state)
    lists = [list(iterator) for iterator in iterators if iterator is not None]
    return text, [("", function), ("", args), *parts, *(("", made) for made in lists)]


def _open_state(state: Any) -> _Parts:
    """The `__dict__` and slots of an object, or what its `__getstate__` returns."""
    if isinstance(state, tuple) and all(isinstance(s, dict | types.NoneType) for s in state):
        state = {name: value for members in state for name, value in (members or {}).items()}
    return _open_members(state) if isinstance(state, dict) else ("", [("", state)])


_OPENERS: dict[Any, Callable[[Any], _Parts]] = {
    dict: _open_dict,
    (list, tuple, collections.deque): _open_sequence,
    types.FunctionType: _open_function,
    # Not by its function: the forward of a tied module is another.
    types.MethodType: lambda value: (value.__name__, [("", value.__self__)]),
    weakref.ReferenceType: lambda value: ("", [("", value())]),
    nn.Module: lambda value: _open_members(
        attributes_of(value) | value._parameters | value._buffers
    ),
    fx.Graph: lambda value: ("", []),  # thousands of nodes, which no call changes
}


def _members(value: Any) -> dict[str, Any]:
    return getattr(value, "__dict__", {})


def _class_name(cls: type) -> str:
    """Where a class is defined: a copied module of the tied model has a class of its own."""
    return f"{cls.__module__}.{cls.__qualname__}".removeprefix("builtins.")


def _label(value: Any, names: Names) -> str:
    """A short text that is the same for equal values of both sides."""
    if isinstance(value, tuple):
        return f"({', '.join(_label(item, names) for item in value)})"
    if isinstance(value, _ATOMS):
        return repr(value)
    return names.get(id(value)) or _class_name(type(value))


def tensors_in(value: Any, names: Names) -> Iterator[tuple[str, torch.Tensor]]:
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
            parts = _open(part, names).parts
            pending += [(path + suffix, inner) for suffix, inner in reversed(parts)]


class Differ:
    """Finds where values of the two sides differ, and counts and measures their tensors.

    Args:
        found, expected: names of the modules of each side.
    """

    def __init__(self, found: Names, expected: Names) -> None:
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
        a, b = _open(found, self.found), _open(expected, self.expected)
        if a.kind != b.kind:
            return f"{a.kind}, not {b.kind}", []
        if a.text != b.text or len(a.parts) != len(b.parts):
            return f"{a.text:.100}, not {b.text:.100}", []
        return "", [(path, x, y) for (path, x), (_, y) in zip(a.parts, b.parts, strict=True)]


def attributes_of(module: nn.Module) -> dict[str, Any]:
    """The plain attributes that a user's code may set, with the training flag."""
    if isinstance(module, torch.jit.ScriptModule):
        return {}
    hidden = _OF_GRAPHS if isinstance(module, fx.GraphModule) else _OF_MODULES
    return {
        name: value
        for name, value in vars(module).items()
        if name not in hidden and not name.startswith("_fxtie_")
    }


_OF_MODULES = {"_compiled_call_impl", *vars(nn.Module())} - {"training"}
_OF_GRAPHS = _OF_MODULES | vars(fx.GraphModule({}, fx.Graph())).keys() - {"training"}
