"""Values of derived tensors in a block of `derive_once`, as leaves that calls read.

They raise if a source or its gradient is changed before the block ends.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from fxtie._torch import has_storage, queue_callback
from fxtie.errors import FxtieError


@dataclass(eq=False)
class Value:
    """A derived tensor in the block."""

    name: str
    live: torch.Tensor  # computed from its sources, with their graph
    leaf: torch.Tensor  # what the calls read; gradients gather here
    guards: tuple[Guard, ...]  # the stored tensors that it depends on, as they were
    with_grad: bool  # whether the block was entered with gradients enabled
    is_open: bool = True  # whether the block still runs
    # Once the leaf has a gradient: the gradients of the sources that it will go to.
    watches: list[_Watch] = field(default_factory=list)

    def __post_init__(self) -> None:
        if self.leaf is not self.live:
            self.leaf.register_hook(self.before_gradient)  # type: ignore[no-untyped-call]

    def __call__(self) -> torch.Tensor:
        if torch.is_grad_enabled() and not self.with_grad:
            raise FxtieError(
                "derive_once was entered under no_grad, so its values carry no gradients. Enter "
                "it with gradients enabled, or keep no_grad around the calls."
            )
        if not torch.compiler.is_compiling():
            self.check()
        return self.leaf

    def before_gradient(self, _: torch.Tensor) -> None:
        if not self.is_open:
            raise FxtieError(
                "A backward through calls that were made inside of derive_once, after its end: "
                f"gradients of {self.name!r} would not reach its sources. Run it in the block."
            )
        self.settle()
        if not self.watches:  # at the end, when no other thread sets gradients
            queue_callback(self.watch)

    def watch(self) -> None:
        """Begin to watch the gradients of the sources."""
        sources = {id(g.tensor): g for g in self.guards if g.tensor.requires_grad}
        leaves = [guard for guard in sources.values() if guard.tensor.is_leaf]
        self.watches = self.watches or [_Watch.of(guard, self) for guard in leaves]

    def unwatch(self) -> None:
        for watch in self.watches:
            watch.leave(self)
        self.watches = []

    def settle(self) -> None:
        """Find out what was done to the gradients of the sources, other than by a backward."""
        for watch in list(self.watches):
            watch.settle()

    def reset(self, name: str) -> None:
        """Drop the gradient after that of a source was dropped; raise unless all sources' were."""
        for watch in self.watches:
            if watch.tensor.grad is not None:
                raise FxtieError(
                    f"Inside of derive_once the gradient of {name!r} was reset, but not that of "
                    f"{watch.name!r}. {self.name!r} is derived from both, and until the block "
                    f"ends its gradient is for both. Reset both, as tied.zero_grad() does, or "
                    f"leave the block first."
                )
        self.leaf.grad = None
        self.unwatch()

    def check(self) -> None:
        for guard in self.guards:
            if guard.now() is not guard.tensor or _state(guard.tensor) != guard.state:
                raise FxtieError(
                    f"{guard.name!r} has changed inside of derive_once, so the value of "
                    f"{self.name!r} is stale. Leave the block before you step or load."
                )


class _Watch:
    """The gradient of a source, while leaves hold parts of it."""

    def __init__(self, guard: Guard) -> None:
        self.name, self.tensor = guard.name, guard.tensor
        self.users: dict[Value, None] = {}  # the values whose leaves hold parts
        self.stand_in: torch.Tensor | None = None
        if self.tensor.grad is None:  # else there would be nothing to reset
            self.tensor.grad = self.stand_in = torch.zeros_like(self.tensor)
        self.after_gradient(self.tensor)
        self._hooks = (
            self.tensor.register_hook(self.before_gradient),  # type: ignore[no-untyped-call]
            self.tensor.register_post_accumulate_grad_hook(self.after_gradient),  # type: ignore[no-untyped-call]
        )

    @staticmethod
    def of(guard: Guard, user: Value) -> _Watch:
        """The watch of a source: one for all blocks, since models may share the source."""
        if (watch := _watches.get(id(guard.tensor))) is None:
            watch = _watches[id(guard.tensor)] = _Watch(guard)
        watch.users[user] = None
        return watch

    def leave(self, user: Value) -> None:
        del self.users[user]
        if not self.users:
            del _watches[id(self.tensor)]
            for hook in self._hooks:
                hook.remove()
            self.drop_stand_in()

    def drop_stand_in(self) -> None:
        if self.stand_in is not None and self.tensor.grad is self.stand_in:
            self.tensor.grad = None

    def settle(self) -> None:
        """Reset the users if the gradient was reset; raise if it was changed otherwise."""
        grad = self.tensor.grad
        if grad is self.grad and grad._version == self.version:
            return
        if grad is not None:
            user = next(iter(self.users))
            raise FxtieError(
                f"The gradient of {self.name!r} was changed inside of derive_once (clipped, "
                f"unscaled, zeroed in place?), but what comes by way of {user.name!r} is added to "
                f"it at the end of the block. Leave the block first. Inside of it, only "
                f"zero_grad(set_to_none=True) works."
            )
        for user in list(self.users):
            user.reset(self.name)

    def before_gradient(self, _: torch.Tensor) -> None:
        self.settle()
        self.drop_stand_in()

    def after_gradient(self, _: torch.Tensor) -> None:
        assert self.tensor.grad is not None
        self.grad = self.tensor.grad
        self.version = self.grad._version


_watches: dict[int, _Watch] = {}  # by id of the source


class Values:
    """The values of a region by name, as its graphs read them: checked once a call."""

    def __init__(self, named: Mapping[str, Value]) -> None:
        self.leaves = {name: value.leaf for name, value in named.items()}
        # Many values share a source: one of them checks it.
        by_guard = {id(g.tensor): value for value in named.values() for g in value.guards}
        self.checks = tuple(dict.fromkeys(by_guard.values()))

    def __call__(self) -> Mapping[str, torch.Tensor]:
        for check in self.checks:
            check()
        return self.leaves


@dataclass(frozen=True, eq=False)
class Guard:
    """A stored tensor that a value depends on, as it was when the block began."""

    name: str
    owner: Any
    attr: str
    tensor: torch.Tensor
    state: tuple[Any, ...]

    @classmethod
    def of(cls, name: str, owner: Any, attr: str, tensor: torch.Tensor) -> Guard:
        return cls(name, owner, attr, tensor, _state(tensor))

    def now(self) -> Any:
        return getattr(self.owner, self.attr)


def _state(tensor: torch.Tensor) -> tuple[Any, ...]:
    """What changes if a tensor is changed in place, or given other memory (`p.data = x`)."""
    version = 0 if tensor.is_inference() else tensor._version
    if not has_storage(tensor):
        return version, tensor.dtype
    # A storage is the same object as long as it lives.
    return version, tensor.dtype, tensor.untyped_storage(), tensor.stride()


def guards_of(module: Any, where: str) -> Iterator[Guard]:
    """Guards of what a learnable transform or a parametrization is made of."""
    if isinstance(module, nn.Module):
        for inner in module.modules():
            stored = (inner.named_parameters(recurse=False), inner.named_buffers(recurse=False))
            for name, tensor in itertools.chain(*stored):
                yield Guard.of(f"{name} of {where}", inner, name, tensor)
