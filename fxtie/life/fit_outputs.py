"""What a fit does to a model's outputs, and the second moments of what its layers are given.

Both in eval mode and without gradients.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from fxtie.errors import FxtieError
from fxtie.life.fit_problem import numbers
from fxtie.life.verifying.oracle import oracle_run, tensors
from fxtie.planning.names import Names
from fxtie.planning.plan import Plan

Call: TypeAlias = tuple[tuple[Any, ...], dict[str, Any]]


def calls_of(inputs: Iterable[Any]) -> list[Call]:
    """Each batch as arguments: a tensor is one, a tuple or list several, a dict by name.

    Raises:
        FxtieError: if there are none.
    """
    if isinstance(inputs, Tensor | Mapping) or not isinstance(inputs, Iterable):
        kind = type(inputs).__name__
        raise FxtieError(f"inputs= is a list of batches, not one {kind}: write inputs=[batch].")
    calls: list[Call] = []
    for batch in inputs:
        if isinstance(batch, Mapping):
            calls.append(((), dict(batch)))
        else:
            calls.append((tuple(batch) if isinstance(batch, tuple | list) else (batch,), {}))
    if not calls:
        raise FxtieError("inputs= holds no batch.")
    return calls


@contextlib.contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, mode in modes.items():
            module.training = mode


def input_moments(model: nn.Module, plan: Plan, calls: Sequence[Call]) -> dict[str, Tensor]:
    """For each target that is the weight of an `nn.Linear`, the sum of `x x^T` over its inputs."""
    names = Names(model)
    owners: dict[nn.Module, list[str]] = {}
    for tie in plan.ties:
        slot = names.get(tie.target)
        if isinstance(slot.owner, nn.Linear) and slot.attr == "weight":
            owners.setdefault(slot.owner, []).append(tie.target)
    found: dict[str, Tensor] = {}

    def note(module: nn.Module, args: tuple[Any, ...]) -> None:
        if args and isinstance(args[0], Tensor):
            x = numbers(args[0].reshape(-1, args[0].shape[-1]))
            for target in owners[module]:
                found[target] = found.get(target, 0) + x.mT @ x.conj()

    hooks = [owner.register_forward_pre_hook(note) for owner in owners]
    try:
        with _evaluating(model):
            for args, kwargs in calls:
                model(*args, **kwargs)
    finally:
        for hook in hooks:
            hook.remove()
    return found


def output_change(
    model: nn.Module, plan: Plan, calls: Sequence[Call], trained: Mapping[str, Tensor]
) -> float:
    """`|tied - trained| / |trained|` of the model's floating-point outputs, over all batches.

    `model` has the fitted values; `trained` are those that the sources had before.

    Raises:
        FxtieError: if the model returns no floating-point tensor.
    """
    learned = {f"ties.{name}": module for name, module in plan.modules.items()}
    distance = norm = 0.0
    with _evaluating(model):
        for args, kwargs in calls:
            expected = torch.func.functional_call(model, dict(trained), args, kwargs)
            expected_tensors = [t.clone() for t in tensors(expected) if _has_numbers(t)]
            derived = oracle_run(model, plan.ties, args, kwargs, learned=learned)
            derived_tensors = [t for t in tensors(derived) if _has_numbers(t)]
            if not expected_tensors:
                raise FxtieError("inputs=: the model returns no floating-point tensor to compare.")
            for a, b in zip(derived_tensors, expected_tensors, strict=True):
                distance += (a - b).norm().item() ** 2
                norm += b.norm().item() ** 2
    return (distance / norm) ** 0.5 if norm else float("inf") if distance else 0.0


def _has_numbers(tensor: Tensor) -> bool:
    return tensor.is_floating_point() or tensor.is_complex()
