"""The oracle: what a tied model must compute, by `torch.func.functional_call`.

It shares no code with the pass. The derived values are computed in plain Python from the model's
own tensors and swapped in for one call. Both sides run on copies of their own, from the same random
state, and are compared: outputs bit for bit, gradients of every stored tensor, buffers afterwards.
"""

from __future__ import annotations

import copy
import dataclasses
import random
from collections.abc import Iterator
from typing import Any

import numpy
import torch
from torch import nn


class Vacuous(AssertionError):
    """The comparison would prove nothing: outputs or gradients vanish, or don't vary."""


@dataclasses.dataclass
class Comparison:
    """How far a tied model is from the oracle.

    Attributes:
        output_error: largest relative error of an output, by norm.
        gradient_error: the same of a gradient.
        output_norm: root mean square of all outputs.
        exact: whether the outputs are equal bit for bit.
    """

    output_error: float
    gradient_error: float
    output_norm: float
    exact: bool


def tensors(value: Any) -> Iterator[torch.Tensor]:
    """The tensors in nested outputs."""
    if isinstance(value, torch.Tensor):
        yield value
    elif dataclasses.is_dataclass(value):
        for field in dataclasses.fields(value):
            yield from tensors(getattr(value, field.name))
    elif isinstance(value, dict):
        for item in value.values():
            yield from tensors(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from tensors(item)


def read(model: nn.Module, name: str) -> torch.Tensor:
    """A parameter, buffer or parametrized tensor by its dotted name."""
    prefix, _, attr = name.rpartition(".")
    return getattr(model.get_submodule(prefix), attr)


def slot(model: nn.Module, name: str) -> tuple[int, str]:
    """Where a tensor is: the same for all names of one module."""
    prefix, _, attr = name.rpartition(".")
    return id(model.get_submodule(prefix)), attr


def oracle_run(model: nn.Module, ties: Any, args: Any, kwargs: Any) -> Any:
    """The model's output with the ties' targets swapped for their derived values."""
    values: dict[str, torch.Tensor] = {}
    for tie in ties:  # in the order of a plan: what is read comes first
        sources = [
            values[name] if name in values and name != tie.target else read(model, name)
            for name in tie.sources
        ]
        values[tie.target] = tie.transform(*sources)
    return torch.func.functional_call(model, values, args, kwargs, tie_weights=False)


def seed() -> None:
    torch.manual_seed(1234)
    random.seed(1234)
    numpy.random.seed(1234)


def relative_error(found: torch.Tensor, expected: torch.Tensor) -> float:
    if found.shape != expected.shape or found.dtype != expected.dtype:
        return float("inf")
    found, expected = found.detach().double(), expected.detach().double()
    norm = expected.norm().item()
    difference = (found - expected).norm().item()
    return difference / norm if norm else (0.0 if difference == 0 else float("inf"))


def backward(outputs: list[torch.Tensor]) -> None:
    """Gradients of a fixed random combination of the outputs."""
    generator = torch.Generator().manual_seed(7)
    losses = []
    for output in outputs:
        if output.requires_grad and output.numel():
            weights = torch.randn(output.shape, generator=generator, dtype=torch.float32)
            losses.append((output.float() * weights.to(output.device)).mean())
    torch.stack(losses).sum().backward()


def compare(
    model: nn.Module,
    tied: nn.Module,
    ties: Any,
    args: Any,
    kwargs: Any = None,
    *,
    train: bool | None,
) -> Comparison:
    """Run both sides on copies and measure. `train=None` leaves the flags as they are."""
    kwargs = kwargs or {}
    model, ties = copy.deepcopy((model, tuple(ties)))  # learnable transforms go along
    tied = copy.deepcopy(tied)
    if train is not None:
        model.train(train)
        tied.train(train)
    args_, kwargs_ = copy.deepcopy((args, kwargs))
    seed()
    found = tied(*args, **kwargs)
    seed()
    expected = oracle_run(model, ties, args_, kwargs_)
    assert type(found) is type(expected), f"{type(found)} is not {type(expected)}"
    outputs, references = list(tensors(found)), list(tensors(expected))
    assert len(outputs) == len(references) > 0
    output_error = max(map(relative_error, outputs, references))
    exact = all(map(torch.equal, outputs, references))
    together = torch.cat([r.detach().double().flatten() for r in references])
    seed()
    backward(outputs)
    seed()
    backward(references)
    gradient_error = compare_gradients(model, tied, ties)
    buffers = dict(model.named_buffers())
    for name, buffer in tied.named_buffers():
        if name in buffers:
            assert torch.equal(buffer, buffers[name]), f"buffer {name} differs"
    norm = together.square().mean().sqrt().item()
    if not torch.isfinite(together).all():
        raise Vacuous("outputs are not finite")
    if norm < 1e-6 or (together.numel() > 1 and together.std().item() < 1e-6 * norm):
        raise Vacuous(f"outputs are near zero or constant: norm {norm:.1e}")
    return Comparison(output_error, gradient_error, norm, exact)


def compare_gradients(model: nn.Module, tied: nn.Module, ties: Any) -> float:
    """Largest relative error of a gradient. Every stored tensor must be there on both sides."""
    expected = dict(model.named_parameters(remove_duplicate=False))
    found = dict(tied.named_parameters(remove_duplicate=False))
    dropped = {slot(model, tie.target) for tie in ties if tie.sources != (tie.target,)}
    missing = {name for name in expected if slot(model, name) not in dropped} - set(found)
    assert not missing, f"stored tensors are missing: {sorted(missing)}"
    errors, alive = [0.0], 0.0
    for name, parameter in found.items():
        if name.startswith("ties."):
            continue
        reference = expected[name]
        assert (parameter.grad is None) == (reference.grad is None), f"gradient of {name}"
        if reference.grad is not None:
            alive += reference.grad.double().norm().item()
            # A gradient that vanishes beside its tensor is rounding and nothing else.
            if reference.grad.norm() > 1e-7 * (1 + reference.detach().norm()):
                errors.append(relative_error(parameter.grad, reference.grad))
    learned = {id(m): m for tie in ties if isinstance(m := tie.transform, nn.Module)}
    references = [p for m in learned.values() for p in m.parameters()]
    own = [p for name, p in found.items() if name.startswith("ties.")]
    if references and len(own) == len(references):
        for parameter, reference in zip(own, references, strict=True):
            if reference.grad is not None:
                assert parameter.grad is not None
                errors.append(relative_error(parameter.grad, reference.grad))
    if alive == 0:
        raise Vacuous("all gradients vanish")
    return max(errors)


def assert_tied_equals_oracle(
    model: nn.Module,
    tied: nn.Module,
    ties: Any,
    args: Any,
    kwargs: Any = None,
    *,
    train: bool | None,
    exact: bool = True,
) -> Comparison:
    """Outputs bit for bit, gradients to rounding."""
    result = compare(model, tied, ties, args, kwargs, train=train)
    assert result.exact or not exact, f"outputs differ by {result.output_error:.2e}"
    double = any(p.dtype == torch.float64 for p in model.parameters())
    tolerance = 1e-12 if double else 1e-5
    assert result.output_error < tolerance
    assert result.gradient_error < tolerance, f"gradients differ by {result.gradient_error:.2e}"
    return result
