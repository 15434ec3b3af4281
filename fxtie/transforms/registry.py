"""Transforms <-> their JSON description (a *spec*), so that rule files are data and not code.

Reading a spec looks names up in a table and calls what was entered there: nothing is imported,
evaluated or unpickled.
"""

from __future__ import annotations

import inspect
import math
import sys
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, TypeVar, Union

from torch import Tensor, nn

from fxtie.errors import RuleError, closest
from fxtie.transforms.arguments import explain_calls

Spec: TypeAlias = str | dict[str, Any]
"""A transform as JSON: `"square"`, `{"transform": "rot90", "k": 1}`, or `{"shared": "name"}` for a
module that is described elsewhere, once for all that use it."""

_T = TypeVar("_T", bound=Callable[..., Any])

_KEY = "transform"
_SHARED = "shared"
_MAX = sys.float_info.max
_REMEDY = (
    "Give it a name with @fxtie.register('name'), at the top level of a module that is imported "
    "before the file is read, or build it from the ready-made transforms with chain()."
)


@dataclass(frozen=True)
class _Entry:
    """One registered name: a transform itself, or what makes transforms of the types `makes`."""

    name: str
    value: Callable[..., Any]
    makes: tuple[type, ...]


_by_name: dict[str, _Entry] = {}
_by_object: dict[Any, _Entry] = {}


def register(
    name: str, *, makes: tuple[type, ...] = (), same_as: Iterable[Callable[..., Any]] = ()
) -> Callable[[_T], _T]:
    """Decorator that gives a transform, or a class of transforms, the name it has in files.

    A function is entered as the transform itself. A class (a dataclass, an `nn.Module`) is entered
    with its constructor: a file then holds the constructor's arguments, so each must be kept as an
    attribute of the same name and be a number, a string, a bool, None, a tuple of these, or (where
    the annotation is a Callable or an nn.Module) another transform. The values of parameters and
    buffers are not part of the spec; they belong to the state_dict.

    Args:
        name: any non-empty string; a name can be entered once.
        makes: for a function that returns transforms: the types of what it returns.
        same_as: other callables that mean the same, written under this name too.

    Returns:
        The decorator; it hands its argument back unchanged.

    Raises:
        RuleError: for a name that is taken, or a constructor that no spec can describe.

    Example:
        >>> import fxtie
        >>> from dataclasses import dataclass
        >>> @fxtie.register("docs.shift")
        ... @dataclass(frozen=True)
        ... class Shift:
        ...     by: float
        ...     def __call__(self, source):
        ...         return source + self.by
        >>> to_spec(Shift(0.5))
        {'transform': 'docs.shift', 'by': 0.5}
        >>> from_spec({"transform": "docs.shift", "by": 2.0})
        Shift(by=2.0)
    """
    if not isinstance(name, str) or not name:
        raise RuleError(f"A transform's name is a non-empty string, not {name!r}.")

    def enter(value: _T) -> _T:
        if not callable(value):
            raise RuleError(f"register({name!r}) takes a callable, not {value!r}.")
        before = _by_name.get(name)
        if before is not None and _place(before.value) != _place(value):
            raise RuleError(
                f"The transform name {name!r} is taken by {_place(before.value)}; "
                f"{_place(value)} needs another."
            )
        entry = _Entry(name, value, (value,) if isinstance(value, type) else makes)
        if entry.makes:
            _check_constructor(entry)
        if isinstance(value, type) and value.__module__.startswith("fxtie."):
            explain_calls(value)
        _by_name[name] = entry
        for key in (*(entry.makes or (value,)), *same_as):
            _by_object[key] = entry
        return value

    return enter


def to_spec(
    transform: Callable[..., Any], name_of: Callable[[nn.Module], str | None] = lambda module: None
) -> Spec:
    """The JSON description of a transform: its name, or a dict with its arguments as well.

    `name_of` is asked about every module, inner ones too: the name of a shared one, else None.

    Raises:
        RuleError: if the transform has no registered name, or an argument that JSON can't hold.

    Example:
        >>> import torch
        >>> from fxtie.transforms import chain, rot90, scale
        >>> to_spec(torch.square)
        'square'
        >>> to_spec(chain(scale(2), rot90(1)))["transforms"]
        [{'transform': 'scale', 's': 2.0}, {'transform': 'rot90', 'k': 1}]
    """
    if isinstance(transform, nn.Module) and (name := name_of(transform)) is not None:
        return {_SHARED: name}
    entry = _find(transform)
    if entry is None:
        name = getattr(transform, "__name__", repr(transform))
        raise RuleError(f"The transform {name} has no registered name. {_REMEDY}")
    if not entry.makes:
        return entry.name
    arguments: dict[str, Any] = {}
    hints = _hints(entry)
    for parameter in inspect.signature(entry.value).parameters.values():
        where = f"argument {parameter.name!r} of transform {entry.name!r}"
        if not hasattr(transform, parameter.name):
            raise RuleError(
                f"The {where} can't be written: {type(transform).__qualname__} has no attribute of "
                f"that name. Keep it in __init__: self.{parameter.name} = {parameter.name}."
            )
        value = getattr(transform, parameter.name)
        if _can_be_left_out(entry, value, parameter.default):
            continue
        written = _write(value, where, name_of)
        # Read it back at once, so that a file that can't be read is never written.
        _read(written, hints[parameter.name], where, nested=lambda inner: inner)
        arguments[parameter.name] = written
    return {_KEY: entry.name, **arguments} if arguments else entry.name


def from_spec(
    spec: Spec, shared: Mapping[str, nn.Module] = types.MappingProxyType({})
) -> Callable[..., Any]:
    """The transform that a JSON description names: a registered function, or a new instance.

    `shared` are the modules that `{"shared": name}` stands for.

    Raises:
        RuleError: for an unknown name or argument (with the closest known one), a missing
            argument, or a value of the wrong type; the argument is named.

    Example:
        >>> import fxtie.transforms
        >>> from_spec({"transform": "scale", "s": 0.5})
        scale(0.5)
        >>> from_spec({"transform": "scale", "by": 0.5})
        Traceback (most recent call last):
        ...
        fxtie.errors.RuleError: The transform 'scale' has no argument 'by'. It takes 's'.
    """
    try:
        return _build(spec, shared)
    except RecursionError:
        raise RuleError("The transform in the file is nested too deeply.") from None


def is_maker(value: object) -> bool:
    """Whether calling `value` makes a transform: a class, or a function registered with `makes`."""
    return isinstance(value, type) or any(
        entry.value is value and entry.makes for entry in _by_name.values()
    )


def _build(spec: Spec, shared: Mapping[str, nn.Module]) -> Callable[..., Any]:
    if isinstance(spec, dict) and spec.keys() == {_SHARED}:
        return _shared_module(spec[_SHARED], shared)
    name, given = _split(spec)
    entry = _by_name.get(name)
    if entry is None:
        raise RuleError(
            f"There is no transform named {name!r}.{closest(name, _by_name)} If it is your own, "
            f"import the module that registers it first."
        )
    if not entry.makes:
        if given:
            raise RuleError(f"The transform {name!r} takes no argument, but {_quote(given)} given.")
        return entry.value
    bound = _bind(entry, given, lambda inner: _build(inner, shared))
    try:
        return typing.cast("Callable[..., Any]", entry.value(*bound.args, **bound.kwargs))
    except Exception as error:  # the constructor is the user's code
        raise RuleError(f"The transform {name!r} refuses its arguments: {error}") from error


def _shared_module(name: Any, shared: Mapping[str, nn.Module]) -> nn.Module:
    if name not in list(shared):  # a list, since the name may be unhashable
        raise RuleError(f"There is no shared transform {name!r}.{closest(str(name), shared)}")
    return shared[name]


def _can_be_left_out(entry: _Entry, value: Any, default: Any) -> bool:
    """Whether an argument is the default, and that of fxtie's own: a user's may change."""
    own = entry.value.__module__.startswith("fxtie.")
    return type(value) is type(default) and (value is None or (own and value == default))


def _bind(
    entry: _Entry, given: Mapping[str, Any], nested: Callable[[Spec], Any]
) -> inspect.BoundArguments:
    """The arguments of a constructor, read from JSON."""
    signature = inspect.signature(entry.value)
    for key in given:
        if key not in signature.parameters:
            hint = closest(key, signature.parameters)
            takes = f"It takes {_quote(signature.parameters)}." if signature.parameters else ""
            raise RuleError(
                f"The transform {entry.name!r} has no argument {key!r}.{hint} {takes}".rstrip()
            )
    hints = _hints(entry)
    bound = inspect.BoundArguments(signature, {})
    for name, parameter in signature.parameters.items():
        where = f"argument {name!r} of transform {entry.name!r}"
        if name in given:
            bound.arguments[name] = _read(given[name], hints[name], where, nested)
        elif parameter.default is parameter.empty and parameter.kind != parameter.VAR_POSITIONAL:
            raise RuleError(f"The {where} is missing.")
    bound.apply_defaults()
    return bound


def _find(transform: Callable[..., Any]) -> _Entry | None:
    """The entry of a transform: by itself, or by its exact type (a subclass may hold more)."""
    entry = _by_object.get(type(transform))
    if entry is not None:
        return entry
    try:
        entry = _by_object.get(transform)
    except TypeError:  # unhashable
        return None
    # A registered class is no transform; its instances are.
    return None if entry is None or isinstance(transform, type) else entry


def _split(spec: Spec) -> tuple[str, dict[str, Any]]:
    if isinstance(spec, str):
        return spec, {}
    if isinstance(spec, dict) and isinstance(spec.get(_KEY), str):
        return spec[_KEY], {key: value for key, value in spec.items() if key != _KEY}
    form = "{'transform': name, argument: value}"
    raise RuleError(f"A transform is written as its name or as {form}, not as {spec!r}.")


def _write(value: Any, where: str, name_of: Callable[[nn.Module], str | None]) -> Any:
    """`value` in JSON's own types."""
    if value is None or isinstance(value, bool | str):
        return value
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float) and math.isfinite(value):
        return float(value)
    if isinstance(value, list | tuple):
        return [_write(item, where, name_of) for item in value]
    if callable(value) and not isinstance(value, Tensor):
        inner = to_spec(value, name_of)
        # Spelled out, so that it can't be taken for a string argument.
        return {_KEY: inner} if isinstance(inner, str) else inner
    raise RuleError(
        f"The {where} can't be written to a file: it is a {type(value).__qualname__}, {value!r}. "
        f"Use finite numbers, strings, bools, None, tuples of these, or registered transforms."
    )


def _read(value: Any, hint: Any, where: str, nested: Callable[[Spec], Any]) -> Any:
    """`value` from JSON as the type that `hint` asks for; `nested` reads inner transforms."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        if _is_list(value):
            return tuple(_read(item, Any, where, nested) for item in value)
        return nested(value) if isinstance(value, dict) else value
    if origin in (Union, types.UnionType):
        return _read_one_of(value, hint, where, nested)
    if origin is tuple and _is_list(value):
        hints = [args[0]] * len(value) if args[-1:] == (...,) else list(args)
        if len(hints) == len(value):
            pairs = zip(value, hints, strict=True)
            return tuple(_read(item, item_hint, where, nested) for item, item_hint in pairs)
    if _is_transform(hint) and isinstance(value, str | dict):
        return nested(value)
    if hint is float and type(value) in (int, float) and -_MAX <= value <= _MAX:
        return float(value)
    is_choice = origin is Literal and any(value == c and type(value) is type(c) for c in args)
    if is_choice or (hint in (int, str, bool, type(None)) and type(value) is hint):
        return value
    raise _wrong_type(value, hint, where)


def _read_one_of(value: Any, hint: Any, where: str, nested: Callable[[Spec], Any]) -> Any:
    """`value` as the first type of a union that it fits."""
    faults = []
    for choice in typing.get_args(hint):
        try:
            return _read(value, choice, where, nested)
        except RuleError as error:
            faults += [error] if choice is not type(None) else []
    # Of `X | None` the fault of X says more.
    raise faults[0] if len(faults) == 1 else _wrong_type(value, hint, where)


def _wrong_type(value: Any, hint: Any, where: str) -> RuleError:
    return RuleError(f"The {where} has the wrong type: {_show(hint)} is needed, {value!r} given.")


def _is_list(value: Any) -> bool:
    return isinstance(value, list | tuple)


def _is_transform(hint: Any) -> bool:
    """Whether an annotation asks for another transform."""
    kind = typing.get_origin(hint) or hint
    return isinstance(kind, type) and (
        issubclass(kind, nn.Module) or kind is typing.get_origin(Callable[..., Any])
    )


def _show(hint: Any) -> str:
    if _is_transform(hint):
        return "a transform"
    return hint.__name__ if isinstance(hint, type) and not typing.get_args(hint) else str(hint)


def _hints(entry: _Entry) -> dict[str, Any]:
    """The types of the constructor's arguments; Any where there is no annotation to go by."""
    value = entry.value
    source = value.__init__ if isinstance(value, type) else value  # type: ignore[misc]
    try:
        known = typing.get_type_hints(source)
    except (NameError, TypeError):  # an annotation that only a type checker can resolve
        known = {}
    hints: dict[str, Any] = {}
    for parameter in inspect.signature(value).parameters.values():
        hint = known.get(parameter.name, Any)
        starred = parameter.kind is parameter.VAR_POSITIONAL
        hints[parameter.name] = types.GenericAlias(tuple, (hint, ...)) if starred else hint
    return hints


def _check_constructor(entry: _Entry) -> None:
    for parameter in inspect.signature(entry.value).parameters.values():
        if parameter.kind is parameter.VAR_KEYWORD:
            raise RuleError(
                f"The transform {entry.name!r} can't be registered: spell its **{parameter.name} "
                f"out as arguments."
            )
        if parameter.name == _KEY:
            raise RuleError(
                f"The transform {entry.name!r} can't be registered: rename its argument {_KEY!r}, "
                f"a key that specs use themselves."
            )


def _place(value: Any) -> str:
    """Where a callable was defined: the same after a module or a notebook cell is run again."""
    kind = value if hasattr(value, "__qualname__") else type(value)
    return f"{getattr(kind, '__module__', None)}.{kind.__qualname__}"


def _quote(names: Iterable[str]) -> str:
    return ", ".join(map(repr, names))
