"""What a transform is, and what the ready-made ones have in common."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeAlias, runtime_checkable

from torch import Tensor, nn

from fxtie.errors import RuleError
from fxtie.transforms.registry import is_maker
from fxtie.words import list_names

Transform: TypeAlias = Callable[..., Any]
"""Any differentiable callable `f(*sources) -> tensor`, or an `nn.Module`."""

Shape: TypeAlias = tuple[int, ...]


@runtime_checkable
class FitsTarget(Protocol):
    """The protocol of transforms that adapt to their target. Your own can implement it as well.

    Planning calls `for_target` once per target, outside of any tracing, with a tensor that has the
    target's shape, dtype and device but no data (a fake or meta tensor), and uses what it returns
    in place of the transform. What it returns is a callable on the sources that

    * gives a tensor of exactly the target's shape,
    * compares equal to another one that computes the same, if it may be shared, and
    * if it is learnable, is an `nn.Module` that already has its parameters.

    `for_target` may take any of these keywords; planning passes those in its signature:

    * `name`: the target's name, such as "conv_2.weight".
    * `sources`: the number of sources.
    * `value`: the target's own value before it is tied, detached, or None if it has no data. A
      learnable transform can start from it, as `weight_norm` does.

    A transform that fits its target already returns itself, so fitting twice changes nothing.

    Example:
        >>> import torch
        >>> from dataclasses import dataclass
        >>> @dataclass(frozen=True)
        ... class Column:
        ...     '''A vector, repeated as the columns of the target.'''
        ...     def for_target(self, target):
        ...         shape = tuple(target.shape)
        ...         return lambda source: source.unsqueeze(1).expand(shape)
        >>> Column().for_target(torch.empty(2, 3))(torch.tensor([1.0, 2.0]))
        tensor([[1., 1., 1.],
                [2., 2., 2.]])
    """

    def for_target(self, target: Tensor) -> Transform:
        """The transform for this target. Raises ValueError if it can't fit."""
        ...


@runtime_checkable
class ComparesLayers(Protocol):
    """The protocol of transforms that fit some pairs of layers only, whatever the shapes say.

    Planning calls `fault_between` once per tie of two tensors, with the modules that own them.

    Example:
        >>> from fxtie.transforms import transpose
        >>> encoder, decoder = nn.Conv2d(8, 8, 3), nn.ConvTranspose2d(8, 8, 3)
        >>> print(transpose().fault_between(encoder, nn.Conv2d(8, 8, 3)))
        None
        >>> transpose().fault_between(encoder, decoder)[:59]
        'a ConvTranspose2d that leads back from a Conv2d takes its w'
    """

    def fault_between(self, source: nn.Module, target: nn.Module) -> str | None:
        """Why the transform is wrong from `source` to `target`, and the remedy; None if it isn't.

        Args:
            source: the module that owns the source tensor.
            target: the module that owns the target tensor.

        Returns:
            Sentences that go on after "conv_2.weight: ", so the first begins in lower case.
        """
        ...


def fitted_to(transform: Transform, target: Tensor, **context: Any) -> Transform:
    """What `for_target` makes of a transform; without that method, the transform itself.

    Of the context (`name`, `sources` and `value`) it gets what it takes, see `FitsTarget`.
    """
    adapt = getattr(transform, "for_target", None)  # much faster than isinstance with a Protocol
    if adapt is None:
        return transform
    takes = inspect.signature(adapt).parameters
    if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in takes.values()):
        context = {key: value for key, value in context.items() if key in takes}
    fitted: Transform = adapt(target, **context)
    return fitted


def check_transform(value: object, where: str) -> None:
    """Refuse what is not a transform: no callable, or one that makes transforms (`rot90`).

    Raises:
        RuleError: with what to write instead; it begins with `where` the value was passed.
    """
    if is_maker(value):
        name = getattr(value, "__qualname__", repr(value))
        raise RuleError(
            f"{where} is {name}, which makes transforms. Call it: {name}({_arguments(value)})."
        )
    if not callable(value):
        hint = " Names of transforms are for rule files." if isinstance(value, str) else ""
        raise RuleError(
            f"{where} is a callable on tensors, such as fxtie.same(), not {type(value).__name__}: "
            f"{value!r}.{hint}"
        )


def _arguments(maker: Any) -> str:
    """The arguments that a call has to give."""
    try:
        parameters = inspect.signature(maker).parameters.values()
    except (TypeError, ValueError):  # built in
        return "..."
    needed = [p for p in parameters if p.default is p.empty and p.kind is not p.VAR_KEYWORD]
    return ", ".join("..." if p.kind is p.VAR_POSITIONAL else p.name for p in needed)


def transform_name(transform: Transform | None) -> str:
    """How a transform is shown in tables: its function name, or its repr if that is one line."""
    if transform is None or isinstance(transform, Tensor):
        return repr(transform)
    name = getattr(transform, "__name__", None)
    if not isinstance(name, str):
        name = repr(transform)
    return name if "\n" not in name else f"{type(transform).__name__}(…)"


def formula(transform: str, sources: Sequence[str]) -> str:
    """What a tensor is derived as: `square(conv_1.weight)`; `conv_1.weight` if it is the same."""
    read = list_names(sources)
    return read if transform == "same" else f"{transform}({read})"


class Named:
    """Base of the dataclasses here: a repr that reads as the call that makes it."""

    def __repr__(self) -> str:
        parts = []
        fields = dataclasses.fields(self)  # type: ignore[arg-type]
        for field in sorted(fields, key=lambda field: field.kw_only is True):
            value = getattr(self, field.name)
            if field.default is dataclasses.MISSING:
                parts.append(repr(value))
            elif value != field.default:
                parts.append(f"{field.name}={value!r}")
        return f"{type(self).__name__}({', '.join(parts)})"


def set_fields(frozen: object, **fields: Any) -> None:
    """Sets fields of a frozen dataclass while it is made."""
    for name, value in fields.items():
        object.__setattr__(frozen, name, value)


class HasCoefficient(Named):
    """Base of the dataclasses with one number, which `learn` can learn.

    The result is a linear function of that number plus a constant.
    """

    def coefficient(self) -> float:
        """The number."""
        raise NotImplementedError

    def run(self, coefficient: float | Tensor, *sources: Tensor) -> Tensor:
        """The transform with another number."""
        raise NotImplementedError

    def __call__(self, *sources: Tensor) -> Tensor:
        return self.run(self.coefficient(), *sources)
