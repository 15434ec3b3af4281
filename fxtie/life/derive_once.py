"""`derive_once`: a block in which every derived tensor is computed once for many calls.

At entry each derived tensor is computed and cut off as a leaf, which all calls in the block read.
Gradients gather on the leaves and go back through the transforms once, at exit.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, TypeAlias

import torch
from torch import nn
from torch.optim.optimizer import register_optimizer_step_pre_hook

from fxtie._torch import TorchDispatchMode
from fxtie.errors import FxtieError
from fxtie.life.once_values import Guard, Value, Values, guards_of
from fxtie.planning.names import SlotKey
from fxtie.tied.derived import Derived, Source, Stored
from fxtie.tied.path_copy import tied_model
from fxtie.tied.region import Region
from fxtie.tied.state import state_of
from fxtie.tied.tied_module import TiedModule, derived_tensors
from fxtie.transforms.parts import whole_of


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
    if any(state_of(owner).once for owner in owners):
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
            region._fxtie.read_from(_values_of(region, by_owner))
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
            region._fxtie.read_from(None)
        for owner in owners:
            state_of(owner).once = {}
    pairs = [(value.live, value.leaf.grad) for value in values if value.leaf is not value.live]
    reached = [(live, grad) for live, grad in pairs if grad is not None]
    if reached:
        lives, grads = zip(*reached, strict=True)
        torch.autograd.backward(lives, grads)


_ByOwner: TypeAlias = Mapping[nn.Module, Mapping[str, Value]]


def _values_of(region: Region, by_owner: _ByOwner) -> Values:
    """The values of a region, by the names that its graphs know."""
    return Values(
        {
            derived.name: by_owner[module][name.rpartition(".")[2]]
            for name, module, derived in derived_tensors(region)
        }
    )


def _compute(owners: list[TiedModule]) -> _ByOwner:
    """The values of all derived tensors, by owner and attribute, put where these read them."""
    entry = _Entry()
    by_owner: dict[nn.Module, dict[str, Value]] = {}
    for owner in owners:
        derived = state_of(owner).derived
        if once := {attr: entry.value(owner, attr, found) for attr, found in derived.items()}:
            by_owner[owner] = once
    for module, once in by_owner.items():  # now that all of them could be computed
        state_of(module).once = once
    return by_owner


class _Entry:
    """Computes derived tensors. Equal derivations run once."""

    def __init__(self) -> None:
        self.with_grad = torch.is_grad_enabled()
        self._by_slot: dict[SlotKey, Value] = {}
        self._by_derivation: dict[Any, Value] = {}
        self._runs: dict[Any, Any] = {}  # of transforms that return several tensors
        self._alive: list[torch.Tensor] = []  # so that an id is one tensor's

    def value(self, owner: nn.Module, attr: str, derived: Derived) -> Value:
        slot = id(owner), attr
        if slot not in self._by_slot:
            sources: list[torch.Tensor] = []
            guards: list[Guard] = []
            for source in derived.sources:
                tensor, found = self._read(derived, source)
                sources.append(tensor)
                guards += found
            self._alive += sources
            self._by_slot[slot] = self._derive(derived, sources, guards)
        return self._by_slot[slot]

    def _derive(self, derived: Derived, sources: list[torch.Tensor], guards: list[Guard]) -> Value:
        transform, part = whole_of(derived.transform), derived.part
        is_module = isinstance(transform, nn.Module)
        alike = id(transform) if is_module and part is None else derived.identity
        run = alike, *derived.where, *map(id, sources)
        key = *run, derived.placement, part and part.index
        if key in self._by_derivation:
            return self._by_derivation[key]
        # A module has no graph to tell whether it is random.
        draws = _Draws()  # type: ignore[no-untyped-call]
        if run not in self._runs:
            with draws if is_module else contextlib.nullcontext():
                result = derived.run(sources)
            if part is not None:
                self._runs[run] = result
        live = derived.one_of(result if part is None else self._runs[run])
        guards += guards_of(transform, f"the transform of {derived.name}")
        is_cut = self.with_grad and live.requires_grad
        leaf = live.detach().requires_grad_() if is_cut else live
        value = Value(derived.name, live, leaf, tuple(guards), self.with_grad)
        if part is not None or not draws.found:
            self._by_derivation[key] = value
        return value

    def _read(self, derived: Derived, source: Source) -> tuple[torch.Tensor, Iterable[Guard]]:
        owner, attr = source.owner, source.attr
        inner = state_of(owner).derived.get(attr)
        if inner is not None and not source.is_own:
            value = self.value(owner, attr, inner)
            return value.live, value.guards
        tensor = derived.read(source)
        if attr in owner._parameters or attr in owner._buffers:
            holder = Stored(owner) if source.is_own else owner
            return tensor, (Guard.of(source.name, holder, attr, tensor),)
        parametrizations: Any = owner.parametrizations
        return tensor, guards_of(parametrizations[attr], source.name)


class _Draws(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes whether a random op runs."""

    found = False

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        self.found = self.found or torch.Tag.nondeterministic_seeded in function.tags
        return function(*args, **(kwargs or {}))
