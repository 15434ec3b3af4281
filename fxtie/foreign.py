"""Classes of other libraries that fxtie treats in a way of their own.

`integrations/` declares them by their dotted names, so that nothing here imports these libraries.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Foreign:
    """What is declared of a class."""

    # What a tied model has before the methods of its own class, which these call by `super()`.
    methods: type
    # For a module, tensors that its library keeps the same, each with the one that it follows.
    own_ties: Callable[[Any], Mapping[str, str]] = lambda module: {}


_declared: dict[str, Foreign] = {}


def declare(ancestor: str, foreign: Foreign) -> None:
    """Declare what holds for a class and what inherits from it, by its dotted name."""
    _declared[ancestor] = foreign


def foreign_of(cls: type) -> list[Foreign]:
    """What is declared of a class and its ancestors, nearest first."""
    names = (f"{one.__module__}.{one.__qualname__}" for one in cls.__mro__)
    return [_declared[name] for name in names if name in _declared]


def foreign_classes(modules: Iterable[object]) -> dict[type, list[Foreign]]:
    """The classes of these modules of which something is declared, and what."""
    classes = {cls: foreign_of(cls) for cls in set(map(type, modules))}
    return {cls: found for cls, found in classes.items() if found}


Loading = Callable[[Any], AbstractContextManager[Any]]
_offloading: dict[str, Loading] = {}


def declare_offloading(attribute: str, loading: Loading) -> None:
    """Declare how to load tensors that a library keeps elsewhere until a module is called.

    Such a module has the attribute; `loading` gives the context in which its tensors are there.
    """
    _offloading[attribute] = loading


def is_loading(attribute: str) -> bool:
    """Whether a module that has this attribute may have its tensors elsewhere."""
    return attribute in _offloading


def loading_of(module: Any) -> AbstractContextManager[Any] | None:
    """The context in which the tensors of a module are there, if some library keeps them."""
    loading = next((_offloading[name] for name in filter(is_loading, module.__dict__)), None)
    return None if loading is None else loading(module)
