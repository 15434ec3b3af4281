"""Plain data, whose form `files.py` describes -> rules, and the modules that have a name in it.

Names are looked up, and what was registered under them (`registry.py`) is called; nothing else is.
All faults come at once, each with its *path*: the keys and numbers that lead to it in the data.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import chain, islice
from reprlib import repr  # a fault shows the beginning of a value, however large it is
from typing import Any, TypeAlias

import torch
from torch import nn

from fxtie.errors import RuleError, closest
from fxtie.rules.free import Bank, Entry, Free, Tensors, drawn
from fxtie.rules.patterns import Pattern
from fxtie.rules.rule import OneSource, Rule, Tie
from fxtie.transforms import FitsTarget, Transform
from fxtie.transforms.registry import from_spec
from fxtie.words import count

DataPath: TypeAlias = tuple[str | int, ...]
Reader: TypeAlias = Callable[[Any], Any]

BANK_DTYPES = {
    str(dtype).removeprefix("torch."): dtype
    for dtype in (
        *(torch.float64, torch.float32, torch.float16, torch.bfloat16),
        *(torch.complex64, torch.complex128),
    )
}
# What `tensors` can't name, since Rule has an argument of that name.
RESERVED = inspect.signature(Rule.__init__).parameters.keys() - {"tensors"}


class RuleDataError(RuleError):
    """Rules that can't be read or written as data.

    Attributes:
        faults: one sentence each, with its path.
    """

    def __init__(self, faults: Iterable[tuple[DataPath, str]]) -> None:
        self.faults = tuple(faults)
        super().__init__("\n".join(f"{path_text(path)}{fault}" for path, fault in self.faults))


def path_text(path: DataPath) -> str:
    """A path as the beginning of a message.

    >>> path_text(("rule", 0, "weight"))
    'rule[0].weight: '
    """
    parts = (f"[{part}]" if isinstance(part, int) else f".{part}" for part in path)
    return "".join((*parts, ": ")).removeprefix(".") if path else ""


def listed(faults: Iterable[str], n: int) -> str:
    """The first 20 of `n` faults, a line each, and how many more there are."""
    lines = list(islice(faults, 20))
    return "\n".join([*lines, f"and {count(n - 20, 'more fault')}"] if n > 20 else lines)


class Faults:
    """Collects faults, so that all of them can be told at once."""

    def __init__(self) -> None:
        self.found: list[tuple[DataPath, str]] = []

    @contextlib.contextmanager
    def at(self, *path: str | int) -> Iterator[None]:
        """What is wrong inside of this block is wrong at `path`; go on after the block."""
        try:
            yield
        except RuleDataError as error:
            self.found += [((*path, *inner), fault) for inner, fault in error.faults]
        except RuleError as error:
            self.found.append((path, str(error)))

    def tell(self) -> None:
        if self.found:
            raise RuleDataError(self.found)


def read_rules(data: Any) -> tuple[list[Rule | Tie], dict[str, nn.Module]]:
    """The rules that some data describe, and the modules that have a name in them.

    Raises:
        RuleDataError: with every fault and its path.

    Example:
        >>> read_rules({"rule": [{"target": "b", "source": "a", "bias": False}]})
        ([Rule('b', 'a', bias=None)], {})
        >>> read_rules({"rule": [{"target": "b", "sorce": "a"}]})
        Traceback (most recent call last):
        ...
        fxtie.rules.reader.RuleDataError: rule[0].sorce: There is no such key. Closest ...
        rule[0]: The key 'source' is missing.
    """
    faults, tables, rules = Faults(), {}, []
    readers: dict[str, Reader] = {"rule": _many, "$schema": _text}
    readers.update(dict.fromkeys(("bank", "tensors", "shared"), _named))
    with faults.at():
        tables = _table(data, readers, needed=["rule"])
    faults.tell()
    names = SharedNames()
    names.read({**tables, "rule": None})
    for i, entry in enumerate(tables["rule"]):
        with faults.at("rule", i):
            rules.append(names.rule(entry))
    faults.tell()
    names.check_use(rules)
    return rules, {**names.free["bank"], **names.free["tensors"], **names.shared}


class SharedNames:
    """The free tensors and shared transforms of a description, and what refers to them."""

    def __init__(self) -> None:
        self.free: dict[str, dict[str, Free]] = {"bank": {}, "tensors": {}}
        self.shared: dict[str, nn.Module] = {}

    def read(self, tables: Mapping[str, Any]) -> None:
        """Make what the tables `bank`, `tensors` and `shared` describe."""
        faults = Faults()
        for kind, make in (("bank", _bank), ("tensors", _tensors)):
            for name, entry in tables.get(kind, {}).items():
                with faults.at(kind, name):
                    self.free[kind][name] = make(entry)
        for name, entry in tables.get("shared", {}).items():
            with faults.at("shared", name):
                self.shared[name] = self.shared_transform(entry)
        faults.tell()

    def shared_transform(self, entry: Any) -> nn.Module:
        """A learnable transform; its own spec may refer to those above it."""
        readers = {"transform": self.transform, "shape": _shape, "dtype": _dtype}
        given = _table(entry, readers, needed=["transform"])
        module, dtype = given["transform"], given.get("dtype")
        if "shape" in given:
            module = _fitted(module, given["shape"], dtype)
        if not isinstance(module, nn.Module):
            raise RuleError(f"{module!r} has nothing to learn. Write it where it is used.")
        if "shape" not in given and dtype is not None:
            module.to(dtype)
        if isinstance(module, FitsTarget) and not module.state_dict():
            raise RuleError(
                f"{module!r} has nothing to share before it is fitted. Add the shape of its "
                f"targets, such as shape = [64, 64]."
            )
        return module

    def rule(self, entry: Any) -> Rule | Tie:
        if isinstance(entry, dict) and "transform" in entry:
            tie: dict[str, Reader] = {
                "target": _targets,
                "source": self.sources,
                "transform": self.transform,
            }
            given = _table(entry, tie, needed=["target", "source"])
            return Tie(given["target"], given["source"], given["transform"])
        rule: dict[str, Reader] = {
            "target": lambda value: tuple(map(_pattern, _targets(value))),
            "source": self.sources,
            "weight": self.transform_or_none,
            "bias": self.transform_or_none,
            "tensors": self.tensors,
            "buffers": _flag,
            "exclude": lambda value: tuple(map(_pattern, _texts(value))),
            "count": _positive,
        }
        given = _table(entry, rule, needed=["target", "source"])
        return Rule(**given.pop("tensors", {}), **given)

    def sources(self, value: Any) -> tuple[OneSource, ...]:
        if not isinstance(value, list):
            return (self.source(value),)
        faults, sources = Faults(), []
        for i, one in enumerate(value):
            with faults.at(i):
                sources.append(self.source(one))
        faults.tell()
        return tuple(sources)

    def source(self, value: Any) -> OneSource:
        """A name, or free tensors: all of them, or one."""
        if not isinstance(value, dict):
            return _text(value)
        given = _table(value, {"bank": _text, "tensors": _text, "entry": _entry}, needed=[])
        kind = next((kind for kind in self.free if kind in given), None)
        if kind is None or len(given.keys() & self.free.keys()) > 1:
            raise RuleError(f"This names a bank or tensors, and not {repr(value)}.")
        name, named = given[kind], self.free[kind]
        if name not in named:
            thing = "bank" if kind == "bank" else "table of tensors"
            raise RuleError(f"There is no {thing} {name!r}.{closest(name, named)}")
        return named[name][given["entry"]] if "entry" in given else named[name]

    def transform(self, value: Any) -> Transform:
        return from_spec(value, self.shared)

    def transform_or_none(self, value: Any) -> Transform | None:
        return None if value is False else self.transform(value)

    def tensors(self, value: Any) -> dict[str, Transform | None]:
        faults = Faults()
        transforms: dict[str, Transform | None] = {}
        for name, spec in _named(value).items():
            with faults.at(name):
                if name in RESERVED:
                    raise RuleError("This is a key of the rule itself, outside of `tensors`.")
                transforms[name] = self.transform_or_none(spec)
        faults.tell()
        return transforms

    def check_use(self, rules: Sequence[Rule | Tie]) -> None:
        used: set[nn.Module] = {owner for rule in rules for owner in free_in(rule)}
        for transform in chain.from_iterable(map(transforms_of, rules)):
            if isinstance(transform, nn.Module):
                used.update(transform.modules())
        faults = Faults()
        named: dict[str, Mapping[str, nn.Module]] = {**self.free, "shared": self.shared}
        for kind, modules in named.items():
            for name, module in modules.items():
                with faults.at(kind, name):
                    # Of a chain in a chain only the members are left.
                    if used.isdisjoint(module.modules()):
                        raise RuleError("No rule uses it.")
        faults.tell()


def _table(value: Any, readers: Mapping[str, Reader], needed: Iterable[str]) -> dict[str, Any]:
    """A table's values, each read by the reader of its key."""
    if not isinstance(value, dict):
        raise RuleError(f"A table is needed here, not {repr(value)}.")
    faults, given = Faults(), {}
    for key, item in value.items():
        with faults.at(key):
            if key not in readers:
                hint = closest(key, readers) or f" Those here are {', '.join(readers)}."
                raise RuleError(f"There is no such key.{hint}")
            given[key] = readers[key](item)
    for key in needed:
        with faults.at():
            if key not in value:
                raise RuleError(f"The key {key!r} is missing.")
    faults.tell()
    return given


def _named(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise RuleError(f"A table of names is needed here, not {repr(value)}.")
    return value


def _many(value: Any) -> list[Any]:
    if not isinstance(value, list) or not value:
        raise RuleError(f"A list of one or more rules is needed here, not {repr(value)}.")
    return value


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise RuleError(f"A string is needed here, not {repr(value)}.")
    return value


def _texts(value: Any) -> tuple[str, ...]:
    """One string or several."""
    return tuple(map(_text, value if isinstance(value, list) else [value]))


def _targets(value: Any) -> tuple[str, ...]:
    """One string or several, but not none."""
    return _texts(value) or (_text(value),)


def _pattern(value: Any) -> str:
    Pattern(_text(value))  # refuses a wrong regular expression
    return str(value)


def _positive(value: Any) -> int:
    if type(value) is not int or value < 1:
        raise RuleError(f"A positive integer is needed here, not {repr(value)}.")
    return value


def _shape(value: Any) -> tuple[int, ...]:
    if not isinstance(value, list) or any(type(size) is not int or size < 0 for size in value):
        raise RuleError(f"A shape is a list of integers, such as [64, 64], not {repr(value)}.")
    return tuple(value)


def _dtype(value: Any) -> torch.dtype:
    if _text(value) not in BANK_DTYPES:
        raise RuleError(f"There is no dtype {repr(value)} here.{closest(value, BANK_DTYPES)}")
    return BANK_DTYPES[value]


def _bank(entry: Any) -> Bank:
    given = _table(entry, {"n": _positive, "shape": _shape, "dtype": _dtype}, needed=["n", "shape"])
    try:
        return Bank(**given)
    except (RuntimeError, TypeError) as error:  # too large, or a dtype that can't be drawn
        raise RuleError(f"Such a bank can't be made: {error}") from error


def _tensors(entry: Any) -> Tensors:
    """Tensors by name, each with a shape."""
    readers = {"shape": _shape, "dtype": _dtype, "frozen": _flag}
    faults, given = Faults(), {}
    for name, described in _named(entry).items():
        with faults.at(name):
            given[name] = _table(described, readers, needed=["shape"])
    faults.tell()
    frozen = [name for name, one in given.items() if one.get("frozen")]
    try:
        values = {name: drawn(one["shape"], one.get("dtype")) for name, one in given.items()}
    except (RuntimeError, TypeError) as error:  # too large, or a dtype that can't be drawn
        raise RuleError(f"Such tensors can't be made: {error}") from error
    return Tensors(frozen=frozen, **values)  # type: ignore[arg-type]  # no name of an argument


def _flag(value: Any) -> bool:
    if not isinstance(value, bool):
        raise RuleError(f"true or false is needed here, not {repr(value)}.")
    return value


def _entry(value: Any) -> Any:
    if type(value) not in (int, str):
        raise RuleError(f"The number of a template or the name of a tensor, not {repr(value)}.")
    return value


def _fitted(transform: Transform, shape: tuple[int, ...], dtype: torch.dtype | None) -> Transform:
    if not isinstance(transform, FitsTarget):
        raise RuleError(f"{transform!r} doesn't depend on its target. Leave shape out.")
    try:
        return transform.for_target(torch.empty((), dtype=dtype).expand(shape))
    except Exception as error:  # the user's code
        raise RuleError(f"{transform!r} can't be fitted to {shape}: {error}") from error


def transforms_of(rule: Rule | Tie) -> list[Transform]:
    """The transforms of a rule, by tensor, or of a tie."""
    transforms = [rule.transform] if isinstance(rule, Tie) else rule.transforms.values()
    return [transform for transform in transforms if transform is not None]


def free_in(rule: Rule | Tie) -> list[Free]:
    """The free tensors that a rule or a tie reads."""
    owners = (s.owner if isinstance(s, Entry) else s for s in rule.sources)
    return [owner for owner in owners if isinstance(owner, Free)]
