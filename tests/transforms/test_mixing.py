"""`Mix` and its like: where they start, and how `Mix` counts its sources."""

from __future__ import annotations

import math

import pytest
import torch
from transform_cases import layers

import fxtie
from fxtie import Rule
from fxtie import transforms as T

SHARED = {
    "Mix": lambda shape: Rule("*", fxtie.Bank(4, shape), T.Mix(), None),
    "Mix-one": lambda shape: Rule("*", fxtie.Bank(1, shape), T.Mix(), None),
    "basis": lambda shape: Rule("*", fxtie.Bank(16, (1, *shape[1:])), T.basis(16), None),
    "kronecker": lambda shape: Rule("*", None, T.kronecker((8, 8)), None),
}


@pytest.mark.parametrize("kind", ["Linear", "Conv2d", "ConvTranspose2d"])
@pytest.mark.parametrize("name", SHARED)
def test_derived_tensors_start_with_the_variance_of_the_layer(name: str, kind: str) -> None:
    torch.manual_seed(0)
    net = layers(kind, 40)
    own = torch.stack([layer.weight for layer in net]).var().item()
    tied = fxtie.transform(net, SHARED[name](tuple(net[0].weight.shape)))
    derived = torch.stack([tied[i].weight for i in range(len(net))])
    assert derived.mean().abs() < 0.1 * math.sqrt(own)
    assert derived.var().item() == pytest.approx(own, rel=0.15)


@pytest.mark.parametrize("name", ["Mix", "basis", "kronecker"])
def test_no_two_targets_start_equal(name: str) -> None:
    net = layers("Linear", 12)
    tied = fxtie.transform(net, SHARED[name](tuple(net[0].weight.shape)))
    weights = [tied[i].weight for i in range(len(net))]
    for i, a in enumerate(weights):
        for b in weights[:i]:
            assert (a - b).norm() > 0.05 * a.norm()


def test_the_weights_of_a_mixture_have_length_1() -> None:
    for n in (1, 2, 5):
        mix = T.Mix(n).for_target(torch.empty(3, dtype=torch.float64))
        for _ in range(3):
            torch.testing.assert_close(mix.weights.norm(), torch.ones_like(mix.weights[0]))
            mix.reset_parameters()


def test_mix_counts_its_sources() -> None:
    net = layers("Linear", 3)
    plan = fxtie.plan(net, Rule("*", fxtie.Bank(5, (96, 64)), T.Mix(), None))
    assert [repr(tie.transform) for tie in plan.ties] == ["Mix(5)"] * 3
    chained = T.chain(T.Mix(), T.square, T.Mix())
    fitted = chained.for_target(torch.empty(2), sources=3)
    assert repr(fitted) == "chain(Mix(3), square, Mix(1))"
    assert T.Mix(2).for_target(torch.empty(2), sources=3).n == 2
    plan = fxtie.plan(net, Rule("2", ("0", "1"), T.Mix(), T.Mix()))
    assert [repr(tie.transform) for tie in plan.ties] == ["Mix(2)", "Mix(2)"]


def test_mix_that_can_not_count_says_so() -> None:
    with pytest.raises(ValueError) as error:
        T.Mix().for_target(torch.empty(2))
    assert str(error.value) == (
        "Mix() doesn't know the number of its sources. Write Mix(n), or for_target(target, "
        "sources=n), as planning does."
    )
    with pytest.raises(ValueError, match=r"Mix\(2\) takes 2 sources, not 3"):
        T.Mix(2).for_target(torch.empty(2))(*torch.ones(3, 2))
    net = layers("Linear", 3)
    with pytest.raises(fxtie.PlanError, match=r"Mix\(3\) takes 3 sources, not 2"):
        fxtie.plan(net, Rule("2", ("0", "1"), T.Mix(3), None))
