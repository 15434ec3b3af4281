"""What the tests ask of the oracle, which lives in `fxtie/life/verifying/oracle.py`."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

import fxtie
from fxtie.life.verifying.oracle import Comparison, compare, oracle_run, tensors
from fxtie.life.verifying.results import Vacuous

__all__ = ["Vacuous", "assert_tied_equals_oracle", "compare", "oracle_run", "tensors"]


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
