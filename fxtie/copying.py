"""A model copied along the paths to some of its modules.

In: a model and the modules to be changed. Out: a new root in which these modules, and every module
that leads to one of them, are fresh objects; all other modules and all tensors are shared with the
original, which is not touched. Called by `capture.py` and `convert.py`.

"Leads to" means by registration or by any plain attribute: a list of blocks, a bound method, a
back-reference. All of these then refer to the copies.
"""

from __future__ import annotations

import functools
import types
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import Any

from torch import nn

from fxtie.tied import Derived, Source, user_class, user_members


def copy_paths(root: nn.Module, changed: Iterable[nn.Module]) -> dict[nn.Module, nn.Module]:
    """Shallow copies of the root, of `changed` and of what leads to them, by original."""
    parents: dict[nn.Module, list[nn.Module]] = {root: []}
    pending = [root]
    while pending:
        module = pending.pop()
        for child in references(module):
            if child not in parents:
                parents[child] = []
                pending.append(child)
            parents[child].append(module)
    copies: dict[nn.Module, nn.Module] = {}
    pending = [root, *changed]
    while pending:
        module = pending.pop()
        if module not in copies:
            copies[module] = object.__new__(user_class(module))
            pending += parents.get(module, ())

    def swap(module: nn.Module) -> nn.Module:
        return copies.get(module, module)

    for module, new in copies.items():
        members = user_members(module)
        new.__dict__.update({name: _rewired(value, swap) for name, value in members.items()})
    return copies


def references(module: nn.Module) -> Iterator[nn.Module]:
    """The modules that a module refers to."""
    found: list[nn.Module] = []

    def note(other: nn.Module) -> nn.Module:
        found.append(other)
        return other

    for value in module.__dict__.values():
        _rewired(value, note)
    yield from found


def _rewired(value: Any, swap: Callable[[nn.Module], nn.Module]) -> Any:
    """A value with the modules in it swapped. Containers are copied, everything else is shared."""
    if isinstance(value, nn.Module):
        return swap(value)
    kind = type(value)
    if kind in _ATOMS:
        return value
    if kind in (list, tuple, set):
        return kind(_rewired(v, swap) for v in value)
    if isinstance(value, dict):
        new = value.copy()
        for key, item in value.items():
            new[key] = _rewired(item, swap)
        return new
    if kind is types.MethodType:
        return types.MethodType(value.__func__, _rewired(value.__self__, swap))
    if kind is functools.partial:
        args = _rewired(value.args, swap)
        return functools.partial(
            _rewired(value.func, swap), *args, **_rewired(value.keywords, swap)
        )
    if kind is Source:
        return replace(value, owner=swap(value.owner))
    if kind is Derived:
        return replace(value, sources=_rewired(value.sources, swap))
    if kind.__module__ == "torch.nn.modules.module" and hasattr(value, "with_module"):
        # A state_dict hook that wants its module.
        owner = value.module() if value.with_module else None
        return kind(_rewired(value.hook, swap), owner and swap(owner))
    return value


_ATOMS = frozenset({int, float, bool, str, bytes, type(None), complex})
