"""Checks of what transforms are called with: what each refuses, and how it says so."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from fxtie import transforms as T

W = torch.ones(4, 6)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: T.LowRank(2, alpha=0), "LowRank(alpha): alpha is positive, not 0."),
        (lambda: T.LowRank(2, alpha="8"), "LowRank(alpha) takes a number, not '8'."),
        (lambda: T.LowRank(2, dropout=1), "0 <= dropout < 1 is needed, not 1."),
        (lambda: T.weight_norm(2).for_target(W), "weight_norm(dim=2): a target of shape (4, 6)"),
        (lambda: T.weight_norm().for_target(torch.ones(4, 6).int()), "dtype torch.int32"),
        (lambda: T.weight_norm().for_target(W)(torch.ones(4, 5)), "its source has (4, 5)"),
        (lambda: T.basis(0), "basis(k): k is positive, not 0."),
        (lambda: T.basis(2).for_target(torch.ones(())), "one or more dimensions"),
        (
            lambda: T.basis(2).for_target(W)(torch.ones(3, 6)),
            "basis(2) for a target of shape (4, 6) takes sources with 2 rows of shape (6,) in all, "
            "such as fxtie.Bank(2, (1, 6)), not (3, 6).",
        ),
        (lambda: T.basis(2).for_target(W)(torch.ones(2, 5)), "not (2, 5)."),
        (lambda: T.basis(2).for_target(W)(), "not none."),
        (lambda: T.kronecker(())(), "left is a shape such as (4, 8), not ()."),
        (lambda: T.kronecker(4), "left is a shape such as (4, 8), not 4."),
        (lambda: T.kronecker((0, 2)), "not (0, 2)."),
        (lambda: T.kronecker((3, 2)).for_target(W), "have to divide those of the target"),
        (lambda: T.kronecker((2, 2, 2)).for_target(W), "kronecker((2, 2, 2)): the sizes"),
        (lambda: T.kronecker()(W), "kronecker() takes 2 sources, not 1. With learned factors"),
        (lambda: T.interpolate(math.nan), "interpolate(t) takes a finite number, not nan."),
        (lambda: T.interpolate(0.5)(W), "interpolate(0.5) takes 2 sources, not 1."),
        (lambda: T.task_vector("1"), "task_vector(scale) takes a number, not '1'."),
        (lambda: T.task_vector()(W), "takes a base and one or more tuned sources, not 1 in all."),
        (lambda: T.scale(2.0)(W, W), "scale(2.0) takes 1 source, not 2."),
        (lambda: T.learn(T.square), "a transform with one number, such as interpolate(0.5), not"),
        (lambda: T.learn(0.5), "not 0.5."),
        (lambda: T.fake_quant(1), "fake_quant(bits): 2 bits or more are needed, not 1."),
        (lambda: T.fake_quant(4.5), "fake_quant(bits) takes integers, not 4.5."),
        (lambda: T.fake_quant(4, dim=2)(W), "a source of shape (4, 6) has no such dimension."),
    ],
)  # fmt: skip
def test_mistakes(make: Any, says: str) -> None:
    with pytest.raises(ValueError) as error:
        make()
    assert says in str(error.value)
