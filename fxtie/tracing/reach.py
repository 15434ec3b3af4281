"""Which objects the code of a module can reach, and so may change."""

from __future__ import annotations

import types
from typing import Any

import torch
from torch import nn

from fxtie.runtime.guards import ATOMS


class Reach:
    """What modules refer to, each looked at once."""

    def __init__(self) -> None:
        self._found: dict[nn.Module, frozenset[int] | None] = {}

    def includes(self, module: nn.Module, holder: Any) -> bool:
        """Whether the code of a module may get at an object by what the module refers to."""
        is_global = isinstance(holder, type | types.CellType) or (
            isinstance(holder, dict) and "__builtins__" in holder
        )
        if is_global:
            return True
        if module not in self._found:
            self._found[module] = _objects(module)
        found = self._found[module]
        return found is None or id(holder) in found


def _objects(module: nn.Module) -> frozenset[int] | None:
    """The ids of what a module refers to, by attributes and containers; None if it may be all."""
    ids: set[int] = set()
    pending: list[Any] = [module]
    while pending:
        value = pending.pop()
        kind = type(value)
        if kind in ATOMS or id(value) in ids or isinstance(value, torch.Tensor | type):
            continue
        ids.add(id(value))
        if isinstance(value, dict):
            pending += [*value.keys(), *value.values()]
        elif isinstance(value, list | tuple | set | frozenset):
            pending += value
        elif isinstance(value, types.MethodType):
            pending.append(value.__self__)
        elif isinstance(value, types.FunctionType):
            pending += [cell.cell_contents for cell in value.__closure__ or () if _is_filled(cell)]
        elif hasattr(value, "__dict__"):
            pending += [v for k, v in vars(value).items() if not k.startswith("_fxtie_")]
        elif not isinstance(value, types.BuiltinFunctionType):
            return None
    return frozenset(ids)


def _is_filled(cell: types.CellType) -> bool:
    try:
        return cell.cell_contents is not None
    except ValueError:
        return False
