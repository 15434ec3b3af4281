"""A derived tensor: how it is computed, and from which tensors of a model."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.compiler import is_dynamo_compiling

from fxtie.errors import FxtieError
from fxtie.foreign import loading_of
from fxtie.tied.fsdp import refuse_flattened
from fxtie.tied.sharded import (
    Reader,
    derive,
    divided,
    is_distributed,
    mesh_of,
    placed,
    reading_dtype,
    run,
    source_value,
)
from fxtie.transforms.parts import Part, whole_of
from fxtie.transforms.protocol import formula, transform_name


@dataclass(frozen=True, eq=False)
class Source:
    """A tensor to read at call time, by its name in a model.

    So it survives `.to()`, `to_empty()`, `load_state_dict(assign=True)`, deepcopy and pickling, and
    a module that is replaced is read from then on, as by a graph.
    """

    root: nn.Module
    name: str
    is_own: bool = False  # whether it is the stored value of the tensor that is derived from it

    @property
    def attr(self) -> str:
        return self.name.rpartition(".")[2]

    @property
    def owner(self) -> nn.Module:
        """The module that owns the tensor now."""
        module: Any = self.root
        for part in self.name.split(".")[:-1]:
            child = module._modules.get(part)
            # Wrappers, as of activation checkpointing, have the attributes of what they wrap.
            module = getattr(module, part, None) if child is None else child
            if module is None:
                raise FxtieError(
                    f"{self.name!r} is a source of derived tensors, and the model has no {part!r} "
                    f"any more. If this is a stage of a pipeline, call "
                    f"fxtie.distributed.share_across_stages; else put the module back, or make a "
                    f"plain model with fxtie.materialize before you take it out."
                )
        return module  # type: ignore[no-any-return]

    @property
    def derived(self) -> Derived | None:
        """How the tensor is derived itself, if its attribute computes it."""
        members = self.owner.__dict__
        state = members.get("_fxtie")
        if state is None or self.is_own or self.attr in state.once or self.attr in members:
            return None
        found: Derived | None = state.derived.get(self.attr)
        return found

    @property
    def is_there(self) -> bool:
        """Whether the model still has the tensor."""
        try:
            owner = self.owner
        except FxtieError:
            return False
        return self.attr in {*owner._parameters, *owner._buffers} or hasattr(owner, self.attr)

    def steps(self) -> Iterator[tuple[nn.Module, str, nn.Module]]:
        """The way to the owner: each module, the name of its child, and the child."""
        module: Any = self.root
        for part in self.name.split(".")[:-1]:
            child = module._modules[part]
            yield module, part, child
            module = child


@dataclass(frozen=True, eq=False)
class Derived:
    """How a target tensor is computed."""

    name: str  # the target's tensor name in the whole model
    owner: nn.Module  # the module that reads it
    # Callable on the source tensors (lowered), or a learnable module.
    transform: Callable[..., torch.Tensor]
    sources: tuple[Source, ...]
    shape: torch.Size  # the shape it gives
    # Of the Parameter that it stands for; None if it stands for a buffer.
    requires_grad: bool | None = True
    stored: bool = False  # the target's own stored value is a source (a self-derived tensor)
    is_shared: bool = False  # whether others are derived alike, or from it
    # The mesh and the placements that tensor parallelism wants it to have.
    placement: tuple[Any, tuple[Any, ...]] | None = None

    def compute(self) -> torch.Tensor:
        if is_dynamo_compiling() and not is_distributed():
            return self._in_order()
        return self.one_of(self.run([*map(self.read, self.sources)]))

    def _in_order(self) -> torch.Tensor:
        """The same, sources first.

        Dynamo follows calls by calls of its own: a chain of twenty reads would be too deep.
        """
        values: dict[str, torch.Tensor] = {}
        pending = [self]
        while pending:
            derived = pending[-1]
            if derived.name in values:  # several are derived from it
                pending.pop()
                continue
            made_of = [source.derived for source in derived.sources]
            missing = [d for d in made_of if d is not None and d.name not in values]
            if missing:
                pending += missing
                continue
            given = []
            for source, inner in zip(derived.sources, made_of, strict=True):
                given.append(derived.read(source) if inner is None else values[inner.name])
            values[derived.name] = derived.one_of(derived.run(given))
            pending.pop()
        return values[self.name]

    def run(
        self, sources: Sequence[torch.Tensor], gathers: dict[Any, torch.Tensor] | None = None
    ) -> Any:
        """What the transform gives for what `read` gave: a tensor, or one for each of its parts.

        `gathers` are sources that were gathered from other processes in the same call.
        """
        transform = whole_of(self.transform)
        if not is_distributed():
            return run(transform, sources, self.name)
        places = ((source.owner, source.attr) for source in self.sources)
        given = [(*place, value) for place, value in zip(places, sources, strict=True)]
        gathers = {} if gathers is None else gathers
        reader = Reader(self.name, self.owner, self._is_distributed, gathers)
        return derive(transform, given, reader)

    def one_of(self, result: Any) -> torch.Tensor:
        """This tensor, out of what `run` gave."""
        value: torch.Tensor = result if self.part is None else result[self.part.index]
        return value if self.placement is None else placed(value, *self.placement, self.name)

    def in_parts(self, value: torch.Tensor) -> torch.Tensor:
        """Its value, divided among the processes that hold the first source that is sharded."""
        if is_distributed():
            for source in self.sources:
                if (mesh := mesh_of(source.owner, source.attr)) is not None:
                    return divided(value, mesh, self.name)
        return value

    @property
    def is_in_parts(self) -> bool:
        """Whether several processes hold it, or a source of it, together."""
        return is_distributed() and (
            self.placement is not None
            or any(mesh_of(s.owner, s.attr) is not None for s in self.sources)
        )

    @property
    def _is_distributed(self) -> bool:
        is_distributed: bool = self.owner.__dict__["_fxtie"].is_distributed
        return is_distributed

    @property
    def formula(self) -> str:
        """What it is derived as: `square(conv_1.weight)`."""
        return formula(transform_name(self.transform), [source.name for source in self.sources])

    @property
    def part(self) -> Part | None:
        """The transform, if it returns several tensors, of which this is one."""
        return self.transform if isinstance(self.transform, Part) else None

    @property
    def identity(self) -> Any:
        """Equal for tensors that one run of a transform gives: not for two random ones."""
        whole = whole_of(self.transform)
        if getattr(whole, "is_repeatable", False):
            return id(whole), *self.where
        part = self.part
        return id(whole), self.name if part is None else part.of, *self.where

    @property
    def where(self) -> tuple[Any, ...]:
        """Equal for tensors that come in equal form, given equal sources."""
        return (self._is_distributed, reading_dtype(self.owner)) if is_distributed() else ()

    def read(self, source: Source) -> Any:
        owner = source.owner
        if is_distributed():
            refuse_flattened(owner, source.name)
        if source.attr in owner.__dict__:
            raise FxtieError(
                f"{self.name!r} is derived from {source.name!r}, a plain attribute by now. If "
                f"a hook computes it before each forward (as of torch.nn.utils.prune), reading it "
                f"elsewhere gives a stale value. Use torch.nn.utils.parametrize instead, or remove "
                f"the hook first."
            )
        module = Stored(owner) if source.is_own else owner
        value = getattr(module, source.attr)
        if is_distributed():
            return source_value(owner, source.attr, value, self.owner)
        if value.is_meta and (loading := loading_of(owner)) is not None:
            with loading:
                return getattr(module, source.attr)
        return value


class Stored:
    """A module's stored tensors, read past its derived attributes."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module

    def __getattr__(self, name: str) -> Any:
        return nn.Module.__getattr__(self.module, name)
