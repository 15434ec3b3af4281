"""What the tests ask of the oracle, which lives in `fxtie/life/verifying/oracle.py`."""

from __future__ import annotations

import itertools
from typing import Any

import torch
from torch import nn

import fxtie
from fxtie.life.verifying.oracle import Comparison, compare, oracle_run, tensors
from fxtie.life.verifying.results import Vacuous

__all__ = [
    "Vacuous",
    "assert_tied_equals_oracle",
    "compare",
    "oracle_run",
    "tensors",
    "tied_and_compared",
]


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
