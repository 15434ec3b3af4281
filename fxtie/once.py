"""`derive_once`: every derived tensor computed once for many calls.

In: a tied model. Out: a block in which its derived attributes are values instead of computations.

At entry each derived tensor is computed and cut off as a leaf, which all calls in the block read.
Gradients gather on the leaves and go back through the transforms once, at exit.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import torch
from torch import nn
from torch.optim.optimizer import register_optimizer_step_pre_hook
from torch.utils._python_dispatch import TorchDispatchMode

from fxtie.errors import FxtieError
from fxtie.names import SlotKey
from fxtie.runtime.copied import tied_model
from fxtie.runtime.region import Region
from fxtie.runtime.tied import Derived, Source, Stored, TiedModule, derived_tensors


@dataclass(eq=False)
class _Value:
    """A derived tensor in the block.

    Attributes:
        live: computed from its sources, with their graph.
        leaf: what the calls read; gradients gather here.
        guards: the stored tensors that it depends on, as they were.
        with_grad: whether the block was entered with gradients enabled.
        is_open: whether the block lasts.
        watches: once the leaf has a gradient: those of the sources, which it will be added to.
    """

    name: str
    live: torch.Tensor
    leaf: torch.Tensor
    guards: tuple[_Guard, ...]
    with_grad: bool
    is_open: bool = True
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
            torch.autograd.Variable._execution_engine.queue_callback(self.watch)

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
        """Follow what was done to the gradients of the sources."""
        for watch in list(self.watches):
            watch.settle()

    def reset(self, name: str) -> None:
        """Drop the gradient, as that of a source was: all of them have to be."""
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
    """The gradient of a source, while parts of it are on leaves.

    Args:
        guard: the source's.

    Attributes:
        users: the values whose leaves have them.
    """

    def __init__(self, guard: _Guard) -> None:
        self.name, self.tensor = guard.name, guard.tensor
        self.users: dict[_Value, None] = {}
        self.stand_in: torch.Tensor | None = None
        if self.tensor.grad is None:  # else there would be nothing to reset
            self.tensor.grad = self.stand_in = torch.zeros_like(self.tensor)
        self.after_gradient(self.tensor)
        self._hooks = (
            self.tensor.register_hook(self.before_gradient),  # type: ignore[no-untyped-call]
            self.tensor.register_post_accumulate_grad_hook(self.after_gradient),  # type: ignore[no-untyped-call]
        )

    @staticmethod
    def of(guard: _Guard, user: _Value) -> _Watch:
        """That of a source: one for all blocks, since models may have it in common."""
        if (watch := _watches.get(id(guard.tensor))) is None:
            watch = _watches[id(guard.tensor)] = _Watch(guard)
        watch.users[user] = None
        return watch

    def leave(self, user: _Value) -> None:
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
        """Follow what anything but a backward has done to the gradient."""
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


class _Values:
    """The values of a region, as its graphs read them: checked once a call.

    Args:
        named: the values, by the names of the derived tensors.
    """

    def __init__(self, named: Mapping[str, _Value]) -> None:
        self.leaves = {name: value.leaf for name, value in named.items()}
        # Many values have a source in common: for each source, one value that checks it.
        by_guard = {id(g.tensor): value for value in named.values() for g in value.guards}
        self.checks = tuple(dict.fromkeys(by_guard.values()))

    def __call__(self) -> Mapping[str, torch.Tensor]:
        for check in self.checks:
            check()
        return self.leaves


@dataclass(frozen=True, eq=False)
class _Guard:
    name: str
    owner: Any
    attr: str
    tensor: torch.Tensor
    state: tuple[Any, ...]

    @classmethod
    def of(cls, name: str, owner: Any, attr: str, tensor: torch.Tensor) -> _Guard:
        return cls(name, owner, attr, tensor, _state(tensor))

    def now(self) -> Any:
        return getattr(self.owner, self.attr)


def _state(tensor: torch.Tensor) -> tuple[Any, ...]:
    """What changes if a tensor is changed in place, or given other memory (`p.data = x`)."""
    version = 0 if tensor.is_inference() else tensor._version
    if not torch._C._has_storage(tensor):
        return version, tensor.dtype
    # A storage is the same object as long as it lives.
    return version, tensor.dtype, tensor.untyped_storage(), tensor.stride()


@contextlib.contextmanager
def derive_once(tied: nn.Module) -> Iterator[None]:
    """A block in which every derived tensor is computed once, however often the model is called.

    Under `no_grad` it is a cache for inference. In training it is for several micro-batches:
    gradients gather on the derived values and flow back through the transforms once, at exit, so
    the sources have their gradients after the block. They equal those without it, up to the
    rounding of a sum.

    Args:
        tied: the result of `transform`, compiled or not.

    Raises:
        FxtieError: for an optimizer step, a load or another change of a source inside of the block,
            so that no stale value is used; for changes of its gradient there; for a block in a
            block; for calls with gradients in a block that was entered without; for a backward
            after the block of what was computed in it.

    Notes:
        * The transforms run at entry, outside of an autocast context that begins in the block.
        * Gradients are for `backward()`: in the block, `torch.autograd.grad` with respect to a
          source does not see the tensors derived from it.
        * Until the end of the block a source's `.grad` lacks what comes by way of derived tensors,
          and is zeros instead of None if nothing else has come. `zero_grad()` may be called in the
          block: it drops all that has gathered so far. To change gradients otherwise, as
          `clip_grad_norm_` and `GradScaler.unscale_` do, leave the block first; else an
          error is raised.
        * Changes that bypass autograd's version counters are not noticed, and leave stale values:
          writes to the memory of a source through `p.data` (`p.data.mul_(2)`) or a numpy array,
          and any write to a tensor that was made under `inference_mode`. Write `with
          torch.no_grad(): p.mul_(2)` instead, which raises, or leave the block first. Setting
          `p.data = x`, as `tied.to(dtype)` does, is noticed.

    Example:
        >>> import fxtie
        >>> net = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
        >>> tied = fxtie.transform(net, fxtie.Rule("1", "0", weight=torch.square))
        >>> with fxtie.derive_once(tied):
        ...     for x in torch.randn(8, 2, 4):
        ...         tied(x).sum().backward()
        >>> net[0].weight.grad is not None
        True
    """
    tied = tied_model(tied)
    owners = [module for module in tied.modules() if isinstance(module, TiedModule)]
    if any(owner._fxtie_once for owner in owners):
        raise FxtieError("derive_once is already in force for this model.")
    regions = [owner for owner in owners if isinstance(owner, Region)]
    by_owner = _compute(owners)
    values = list(dict.fromkeys(value for once in by_owner.values() for value in once.values()))
    guarded = {id(guard.tensor) for value in values for guard in value.guards}

    def refuse_step(optimizer: torch.optim.Optimizer, *_: Any) -> None:
        if any(id(p) in guarded for group in optimizer.param_groups for p in group["params"]):
            raise FxtieError("An optimizer step inside of derive_once: leave the block first.")

    hook = register_optimizer_step_pre_hook(refuse_step)
    try:
        for region in regions:
            region._fxtie_read_from(_values_of(region, by_owner))
        yield
        for value in values:
            value.check()
            value.settle()
    finally:
        hook.remove()
        for value in values:
            value.is_open = False
            value.unwatch()
        for region in regions:
            region._fxtie_read_from(None)
        for owner in owners:
            owner.__dict__.pop("_fxtie_once", None)
    pairs = [(value.live, value.leaf.grad) for value in values if value.leaf is not value.live]
    reached = [(live, grad) for live, grad in pairs if grad is not None]
    if reached:
        lives, grads = zip(*reached, strict=True)
        torch.autograd.backward(lives, grads)


_ByOwner: TypeAlias = Mapping[nn.Module, Mapping[str, _Value]]


def _values_of(region: Region, by_owner: _ByOwner) -> _Values:
    """The values of a region, by the names that its graphs know."""
    return _Values(
        {
            derived.name: by_owner[module][name.rpartition(".")[2]]
            for name, module, derived in derived_tensors(region)
        }
    )


def _compute(owners: list[TiedModule]) -> _ByOwner:
    """The values of all derived tensors, by owner and attribute, put where these read them."""
    entry = _Entry()
    by_owner: dict[nn.Module, dict[str, _Value]] = {}
    for owner in owners:
        derived = owner._fxtie_derived
        if once := {attr: entry.value(owner, attr, found) for attr, found in derived.items()}:
            by_owner[owner] = once
    for module, once in by_owner.items():  # now that all of them could be computed
        module.__dict__["_fxtie_once"] = once
    return by_owner


class _Entry:
    """Computes derived tensors, those that are derived alike once."""

    def __init__(self) -> None:
        self.with_grad = torch.is_grad_enabled()
        self._by_slot: dict[SlotKey, _Value] = {}
        self._by_derivation: dict[Any, _Value] = {}
        self._alive: list[torch.Tensor] = []  # so that an id is one tensor's

    def value(self, owner: nn.Module, attr: str, derived: Derived) -> _Value:
        slot = id(owner), attr
        if slot not in self._by_slot:
            sources: list[torch.Tensor] = []
            guards: list[_Guard] = []
            for source in derived.sources:
                tensor, found = self._read(derived, source)
                sources.append(tensor)
                guards += found
            self._alive += sources
            self._by_slot[slot] = self._derive(derived, sources, guards)
        return self._by_slot[slot]

    def _derive(
        self, derived: Derived, sources: list[torch.Tensor], guards: list[_Guard]
    ) -> _Value:
        transform = derived.transform
        is_module = isinstance(transform, nn.Module)
        alike = id(transform) if is_module else derived.identity
        key = alike, *map(id, sources)
        if key in self._by_derivation:
            return self._by_derivation[key]
        # A module has no graph to tell whether it is random.
        draws = _Draws()  # type: ignore[no-untyped-call]
        with draws if is_module else contextlib.nullcontext():
            live = transform(*sources)
        guards += _guards_of(transform, f"the transform of {derived.name}")
        is_cut = self.with_grad and live.requires_grad
        leaf = live.detach().requires_grad_() if is_cut else live
        value = _Value(derived.name, live, leaf, tuple(guards), self.with_grad)
        if not draws.found:
            self._by_derivation[key] = value
        return value

    def _read(self, derived: Derived, source: Source) -> tuple[torch.Tensor, Iterable[_Guard]]:
        owner, attr = source.owner, source.attr
        inner = getattr(owner, "_fxtie_derived", {}).get(attr)
        if inner is not None and not derived.stored:
            value = self.value(owner, attr, inner)
            return value.live, value.guards
        tensor = derived.read(source)
        if attr in owner._parameters or attr in owner._buffers:
            holder = Stored(owner) if derived.stored else owner
            return tensor, (_Guard.of(source.name, holder, attr, tensor),)
        parametrizations: Any = owner.parametrizations
        return tensor, _guards_of(parametrizations[attr], source.name)


class _Draws(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes whether a random op runs."""

    found = False

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        self.found = self.found or torch.Tag.nondeterministic_seeded in function.tags
        return function(*args, **(kwargs or {}))


def _guards_of(module: Any, where: str) -> Iterator[_Guard]:
    """Guards of what a learnable transform or a parametrization is made of."""
    if isinstance(module, nn.Module):
        for inner in module.modules():
            stored = (inner.named_parameters(recurse=False), inner.named_buffers(recurse=False))
            for name, tensor in itertools.chain(*stored):
                yield _Guard.of(f"{name} of {where}", inner, name, tensor)
