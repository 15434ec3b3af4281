"""`derive_once`: every derived tensor computed once for many calls.

In: a tied model. Out: a block in which its derived attributes are values instead of computations.
Called by users.

At entry each derived tensor is computed and cut off as a leaf, which all calls in the block read.
Gradients gather on the leaves and go back through the transforms once, at exit.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import nn
from torch.optim.optimizer import register_optimizer_step_pre_hook

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
    """

    name: str
    live: torch.Tensor
    leaf: torch.Tensor
    guards: tuple[_Guard, ...]
    with_grad: bool
    is_open: bool = True

    def __post_init__(self) -> None:
        if self.leaf is not self.live:
            self.leaf.register_hook(self.refuse_when_closed)  # type: ignore[no-untyped-call]

    def __call__(self) -> torch.Tensor:
        if torch.is_grad_enabled() and not self.with_grad:
            raise FxtieError(
                "derive_once was entered under no_grad, so its values carry no gradients. Enter "
                "it with gradients enabled, or keep no_grad around the calls."
            )
        if not torch.compiler.is_compiling():
            self.check()
        return self.leaf

    def refuse_when_closed(self, _: torch.Tensor) -> None:
        if not self.is_open:
            raise FxtieError(
                "A backward through calls that were made inside of derive_once, after its end: "
                f"gradients of {self.name!r} would not reach its sources. Run it in the block."
            )

    def check(self) -> None:
        for guard in self.guards:
            if guard.now() is not guard.tensor or guard.tensor._version != guard.version:
                raise FxtieError(
                    f"{guard.name!r} has changed inside of derive_once, so the value of "
                    f"{self.name!r} is stale. Leave the block before you step or load."
                )


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
    version: int

    def now(self) -> Any:
        return getattr(self.owner, self.attr)


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
        FxtieError: for an optimizer step, a load or any other change of a source inside of the
            block, so that no stale value is ever used; for a block in a block; for calls with
            gradients in a block that was entered without; for a backward after the block of what
            was computed in it.

    Notes:
        * The transforms run at entry, outside of an autocast context that begins in the block.
        * Gradients are for `backward()`: in the block, `torch.autograd.grad` with respect to a
          source does not see the tensors derived from it.

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
    finally:
        hook.remove()
        for value in values:
            value.is_open = False
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
    alive: list[torch.Tensor] = []  # so that an id is one tensor's
    computed: dict[Any, _Value] = {}
    by_slot: dict[SlotKey, _Value] = {}
    with_grad = torch.is_grad_enabled()

    def of(owner: nn.Module, attr: str, derived: Derived) -> _Value:
        slot = (id(owner), attr)
        if slot not in by_slot:
            sources = [read(source, derived.stored) for source in derived.sources]
            alive.extend(tensor for tensor, _ in sources)
            key = (id(derived.transform), *(id(tensor) for tensor, _ in sources))
            if key not in computed:
                live = derived.transform(*(tensor for tensor, _ in sources))
                cut = with_grad and live.requires_grad
                guards = [guard for _, found in sources for guard in found]
                guards += _parameters_of(derived.transform)
                leaf = live.detach().requires_grad_() if cut else live
                computed[key] = _Value(derived.name, live, leaf, tuple(guards), with_grad)
            by_slot[slot] = computed[key]
        return by_slot[slot]

    def read(source: Source, stored: bool) -> tuple[torch.Tensor, tuple[_Guard, ...]]:
        inner = getattr(source.owner, "_fxtie_derived", {}).get(source.attr)
        if inner is not None and not stored:
            value = of(source.owner, source.attr, inner)
            return value.live, value.guards
        owner = Stored(source.owner) if stored else source.owner
        tensor = getattr(owner, source.attr)
        if source.attr in source.owner._parameters or source.attr in source.owner._buffers:
            return tensor, (_Guard(source.name, owner, source.attr, tensor, tensor._version),)
        return tensor, tuple(_parameters_of(source.owner))  # parametrized

    by_owner: dict[nn.Module, dict[str, _Value]] = {}
    for owner in owners:
        once = {attr: of(owner, attr, derived) for attr, derived in owner._fxtie_derived.items()}
        if once:
            by_owner[owner] = once
    for module, once in by_owner.items():  # now that all of them could be computed
        module.__dict__["_fxtie_once"] = once
    return by_owner


def _parameters_of(module: Any) -> Iterator[_Guard]:
    """Guards of what a learnable transform or a parametrization is made of."""
    if isinstance(module, nn.Module):
        for inner in module.modules():
            for name, tensor in inner.named_parameters(recurse=False):
                yield _Guard(name, inner, name, tensor, tensor._version)
