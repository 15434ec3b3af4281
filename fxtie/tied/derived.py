"""A derived tensor: how it is computed, and from which tensors of a model.

In: names of tensors, and a transform. Out: its value, computed at each read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from fxtie.errors import FxtieError
from fxtie.transforms.parts import Part, whole_of


@dataclass(frozen=True, eq=False)
class Source:
    """A tensor to read at call time, by its name in a model.

    So it survives `.to()`, `to_empty()`, `load_state_dict(assign=True)`, deepcopy and pickling, and
    a module that is replaced is read from then on, as by a graph.

    Attributes:
        is_own: whether it is the stored value of the tensor that is derived from it.
    """

    root: nn.Module
    name: str
    is_own: bool = False

    @property
    def attr(self) -> str:
        return self.name.rpartition(".")[2]

    @property
    def owner(self) -> nn.Module:
        """The module that owns the tensor now."""
        module: Any = self.root
        for part in self.name.split(".")[:-1]:
            module = module._modules[part]
        return module  # type: ignore[no-any-return]

    def steps(self) -> Iterator[tuple[nn.Module, str, nn.Module]]:
        """The way to the owner: each module, the name of its child, and the child."""
        module: Any = self.root
        for part in self.name.split(".")[:-1]:
            child = module._modules[part]
            yield module, part, child
            module = child


@dataclass(frozen=True, eq=False)
class Derived:
    """How a target tensor is computed.

    Attributes:
        name: the target's tensor name in the whole model.
        transform: callable on the source tensors (lowered), or a learnable module.
        sources: what it gets.
        shape: the shape it gives.
        requires_grad: of the Parameter that it stands for; None if it stands for a buffer.
        stored: the target's own stored value is a source (a self-derived tensor).
        is_shared: whether others are derived alike, or from it.
    """

    name: str
    transform: Callable[..., torch.Tensor]
    sources: tuple[Source, ...]
    shape: torch.Size
    requires_grad: bool | None = True
    stored: bool = False
    is_shared: bool = False

    def compute(self) -> torch.Tensor:
        return self.transform(*map(self.read, self.sources))

    @property
    def part(self) -> Part | None:
        """The transform, if it returns several tensors, of which this is one."""
        return self.transform if isinstance(self.transform, Part) else None

    @property
    def identity(self) -> Any:
        """Equal for tensors that one run of a transform gives: not for two random ones."""
        whole = whole_of(self.transform)
        if getattr(whole, "is_repeatable", False):
            return id(whole)
        part = self.part
        return id(whole), self.name if part is None else part.of

    def read(self, source: Source) -> Any:
        owner = source.owner
        if source.attr in owner.__dict__:
            raise FxtieError(
                f"{self.name!r} is derived from {source.name!r}, a plain attribute by now. If "
                f"a hook computes it before each forward (as of torch.nn.utils.prune), reading it "
                f"elsewhere gives a stale value. Use torch.nn.utils.parametrize instead, or remove "
                f"the hook first."
            )
        return getattr(Stored(owner) if source.is_own else owner, source.attr)


class Stored:
    """A module's stored tensors, read past its derived attributes."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module

    def __getattr__(self, name: str) -> Any:
        return nn.Module.__getattr__(self.module, name)
