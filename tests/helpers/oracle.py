"""One call of a tied model beside the oracle, which lives in `fxtie/life/verifying/oracle.py`."""

from __future__ import annotations

import copy
import itertools
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

import fxtie
from fxtie.life.verifying.oracle import (
    backward,
    dropped,
    gradient_error,
    gradient_of,
    oracle_run,
    scale,
    seed,
    slot,
    tensors,
)
from fxtie.life.verifying.results import Vacuous, VerificationError
from fxtie.life.verifying.values import norm_of, relative_error
from fxtie.transforms.parts import module_of

__all__ = [
    "Vacuous",
    "assert_tied_equals_oracle",
    "compare",
    "gradient_errors",
    "oracle_run",
    "tensors",
    "tied_and_compared",
]


@dataclass
class Comparison:
    """How far a tied model is from the oracle.

    Attributes:
        output_error: the largest relative error of an output or buffer, by norm.
        gradient_error: the same of the gradient of a stored tensor.
        output_norm: root mean square of all outputs.
        exact: whether outputs and buffers are equal.
    """

    output_error: float
    gradient_error: float
    output_norm: float
    exact: bool


def compare(
    model: nn.Module,
    tied: nn.Module,
    ties: Any,
    args: Any,
    kwargs: Any = None,
    *,
    train: bool | None,
) -> Comparison:
    """Run both sides once, on copies, and measure. `train=None` leaves the flags as they are."""
    model, ties = copy.deepcopy((model, tuple(ties)))  # learnable transforms go along
    tied, args_, kwargs_ = copy.deepcopy((tied, args, kwargs or {}))
    if train is not None:
        for module in (model, tied, *_learned(ties)):
            module.train(train)

    def then(output: Any) -> None:
        seed()
        backward(list(tensors(output)))

    seed()
    found = tied(*args, **(kwargs or {}))
    then(found)
    seed()
    expected = oracle_run(model, ties, args_, kwargs_, then)
    _require(type(found) is type(expected), f"{type(found)} is returned, not {type(expected)}")
    outputs, references = list(tensors(found)), list(tensors(expected))
    _require(len(outputs) == len(references) > 0, f"{len(outputs)} tensors are returned")
    buffers = dict(model.named_buffers())
    kept = [(buffer, buffers[n]) for n, buffer in tied.named_buffers() if n in buffers]
    errors = [relative_error(*p) for p in (*zip(outputs, references, strict=True), *kept)]
    gradient_error = max(gradient_errors(model, tied, ties).values(), default=0.0)
    norm, reason = scale(references)
    if reason:
        raise Vacuous(reason)
    return Comparison(max(errors), gradient_error, norm, not any(errors))


def assert_tied_equals_oracle(
    model: nn.Module,
    tied: nn.Module,
    ties: Any,
    args: Any,
    kwargs: Any = None,
    *,
    train: bool | None,
    exact: bool = True,
    tolerance: float | None = None,
    untraced: bool = True,
) -> Comparison:
    """Outputs bit for bit, gradients to rounding, or to `tolerance`.

    Args:
        untraced: compare what is tied with `trace=False` as well.
    """
    double = any(p.dtype == torch.float64 for p in model.parameters())
    tolerance = tolerance or (1e-12 if double else 1e-5)
    others = [fxtie.transform(model, list(ties), trace=False)] if untraced else []
    for one in (*others, tied):
        result = compare(model, one, ties, args, kwargs, train=train)
        assert result.exact or not exact, f"outputs differ by {result.output_error:.2e}"
        assert result.output_error < tolerance
        assert result.gradient_error < tolerance, f"gradients differ by {result.gradient_error:.2e}"
    return result


def tied_and_compared(model: nn.Module, rules: Any, *args: Any) -> Any:
    """The tied model, compared with the oracle in both modes."""
    plan = fxtie.plan(model, rules)
    tied, untraced = fxtie.transform(model, plan), fxtie.transform(model, plan, trace=False)
    for one, train in itertools.product((tied, untraced), (False, True)):
        if not plan.modules:
            assert_tied_equals_oracle(model, one, plan.ties, args, train=train, untraced=False)
        elif train:  # verify knows of free tensors, and goes through both modes
            fxtie.verify(model, one, *args)
    return tied


def _learned(ties: Any) -> list[nn.Module]:
    """Learnable transforms, once each, in the order in which a tied model registers them."""
    return list({id(m): m for tie in ties if (m := module_of(tie.transform)) is not None}.values())


def gradient_errors(model: nn.Module, tied: nn.Module, ties: Any) -> dict[str, float]:
    """Relative error of each gradient. Every stored tensor must be there on both sides."""
    expected = dict(model.named_parameters(remove_duplicate=False))
    found = dict(tied.named_parameters(remove_duplicate=False))
    gone = dropped(model, ties)
    missing = {name for name in expected if slot(model, name) not in gone} - set(found)
    _require(not missing, f"stored tensors are missing: {', '.join(sorted(missing))}")
    references = [p for module in _learned(ties) for p in module.parameters()]
    own = [name for name in found if name.startswith("ties.")]
    if references and len(own) == len(references):
        expected |= dict(zip(own, references, strict=True))
    shared, errors = [name for name in found if name in expected], {}
    for name in shared:
        fault, error = gradient_error(found[name], expected[name])
        _require(not fault, f"{fault} of {name}")
        if error is not None:
            errors[name] = error
    if not any(norm_of(gradient_of(expected[name])) for name in shared):
        raise Vacuous("all gradients vanish")
    return errors


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise VerificationError(f"The tied model differs from the oracle: {message}.")
