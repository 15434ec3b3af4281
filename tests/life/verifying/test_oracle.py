"""What the oracle refuses to compare, since it would prove nothing."""

import pytest
import torch
from oracle import compare
from spoiling import add_one, finds, inputs, net, spoiled, tie
from two_linears import model_with

import fxtie
from fxtie import Rule
from fxtie.life.verifying.results import Vacuous


def test_a_comparison_that_proves_nothing_is_refused():
    model = net()
    tied = fxtie.transform(model, Rule("2", "0", lambda w: w * 0, lambda b: b * 0))
    with pytest.raises(Vacuous):
        fxtie.verify(model, tied, torch.randn(3, 4))


@pytest.mark.parametrize(
    ("factor", "message"),
    [
        (0.0, "all gradients vanish"),
        (1e-9, "near zero or constant"),
        (float("nan"), "not finite"),
        (float("inf"), "not finite"),
    ],
)
def test_outputs_that_prove_nothing(factor, message):
    model = model_with(lambda self, x: self.b(self.a(x)) * factor)
    tied = tie(model)
    with pytest.raises(Vacuous, match=f"In eval, .*{message}"):
        fxtie.verify(model, tied, inputs())
    with pytest.raises(Vacuous, match=message):
        compare(model, tied, fxtie.report(tied).plan.ties, (inputs(),), train=False)


def test_a_difference_comes_before_what_proves_nothing():
    model = model_with(lambda self, x: self.b(self.a(x)) * 0.0)
    finds(model, spoiled(tie(model), add_one), "output 0 in eval, first call")


def test_gradients_that_are_not_finite():
    def forward(self, x):
        y = self.b(self.a(x))
        return y + (y * 0).sqrt()

    model = model_with(forward)
    with pytest.raises(Vacuous, match="gradients are not finite"):
        fxtie.verify(model, tie(model), inputs())
