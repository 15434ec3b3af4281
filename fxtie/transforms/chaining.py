"""`chain`: one transform after the other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from fxtie.errors import RuleError
from fxtie.transforms.fitting import Shaped
from fxtie.transforms.protocol import Transform, check_transform, fitted_to, transform_name
from fxtie.transforms.registry import register


class _Sequence:
    """What the two kinds of `chain` have in common."""

    transforms: tuple[Transform, ...]

    def for_target(
        self, target: Tensor, *, sources: int | None = None, value: Tensor | None = None
    ) -> Transform:
        """The chain of what its members are for this target."""
        last = len(self.transforms) - 1
        fitted = tuple(
            fitted_to(f, target, sources=1 if i else sources, value=value if i == last else None)
            for i, f in enumerate(self.transforms)
        )
        unchanged = all(new is old for new, old in zip(fitted, self.transforms, strict=True))
        return self if unchanged else chain(*fitted)  # type: ignore[return-value]

    def __repr__(self) -> str:
        return f"chain({', '.join(transform_name(f) for f in self.transforms)})"


@dataclass(frozen=True, repr=False)
class _Chain(_Sequence):
    """A chain of which nothing is learned."""

    transforms: tuple[Transform, ...]

    def __call__(self, *sources: Tensor) -> Tensor:
        return _run(self.transforms, sources)


class _LearnedChain(_Sequence, nn.Module):
    """A chain with modules in it: a module itself, so that their parameters are found."""

    def __init__(self, transforms: tuple[Transform, ...]) -> None:
        super().__init__()
        self.plain = {i: f for i, f in enumerate(transforms) if not isinstance(f, nn.Module)}
        for i, f in enumerate(transforms):
            if isinstance(f, nn.Module):
                self.add_module(str(i), f)

    @property
    def transforms(self) -> tuple[Transform, ...]:  # type: ignore[override]
        members: dict[int, Any] = self.plain | {int(i): f for i, f in self._modules.items()}
        return tuple(members[i] for i in range(len(members)))

    def forward(self, *sources: Tensor) -> Tensor:
        return _run(self.transforms, sources)


@register("chain", makes=(_Chain, _LearnedChain))
def chain(*transforms: Transform) -> Transform:
    """One transform after the other, the first one first: `chain(f, g)(x) == g(f(x))`.

    The first takes all sources, each later one what the one before it gave. Chains in chains are
    laid flat. Chains of equal transforms are equal; one that holds an `nn.Module` is one itself.

    Fitting: every member that adapts is given the target. So the members after it have to keep the
    shape: `chain(tile(), scale(0.5), ChannelScale())` is right, and planning refuses
    `chain(tile(), transpose())` unless the result happens to fit. Of `tile`, `crop`, `pad` and
    `resize` only one may take the target's shape (a second would have nothing left to do); give the
    others theirs: `chain(crop(shape=(8, 8)), tile())`.

    Args:
        *transforms: one or more callables.

    Returns:
        A callable on the first transform's sources, with `transforms` as an attribute.

    Raises:
        ValueError: for no transforms, something not callable, or two that would both take the
            target's shape.

    >>> import torch
    >>> from fxtie.transforms import rot90, scale, square, tile
    >>> chain(square, scale(0.5))(torch.tensor([2.0, 4.0]))
    tensor([2., 8.])
    >>> chain(torch.square, rot90(1), tile())
    chain(square, rot90(1), tile())
    """
    flat: list[Transform] = []
    for f in transforms:
        try:
            check_transform(f, "A member of chain()")
        except RuleError as error:
            raise ValueError(str(error)) from None
        flat.extend(f.transforms if isinstance(f, _Sequence) else (f,))
    if not flat:
        raise ValueError("chain() needs one or more transforms. The one that does nothing is same.")
    open_ended = [f for f in flat if isinstance(f, Shaped) and f.is_open]
    if len(open_ended) > 1:
        first, last = open_ended[0], open_ended[-1]
        raise ValueError(
            f"In a chain only one transform can take the target's shape, but {first!r} and "
            f"{last!r} both would. Give the first its own: {type(first).__name__}(..., shape=...)."
        )
    if any(isinstance(f, nn.Module) for f in flat):
        return _LearnedChain(tuple(flat))
    return _Chain(tuple(flat))


def _run(transforms: Sequence[Transform], sources: tuple[Tensor, ...]) -> Tensor:
    result = transforms[0](*sources)
    for f in transforms[1:]:
        result = f(result)
    return result  # type: ignore[no-any-return]
