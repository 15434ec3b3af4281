"""Free tensors: banks and named tensors, as sources of rules and by themselves."""

import pytest
import torch
from oracle import tied_and_compared as check
from torch import nn

import fxtie
from fxtie import Bank, Rule, Tensors, Tie


def test_tensors_of_different_shapes():
    model = nn.Sequential(*(nn.Linear(6, 4) for _ in range(3)))
    given = torch.randn(4, 2)
    tensors = Tensors(A=(2, 6), B=given, frozen=("B",))
    low_rank = Rule("*", ("{0}", tensors), weight=lambda own, A, B: own + B @ A)
    tied = fxtie.transform(model, low_rank)
    assert torch.equal(tied[1].weight, model[1].weight + given @ tensors.A)
    assert [n for n, _ in tied.named_buffers()] == ["ties.tensors.B"]
    assert "ties.tensors.A" in dict(tied.named_parameters())
    given.zero_()
    assert tensors.B.any()


def test_one_of_them_and_one_of_a_bank():
    model = nn.Sequential(*(nn.Linear(4, 4) for _ in range(2)))
    tensors, bank = Tensors(A=(4, 4), B=(4,)), Bank(3, (4, 4))
    rules = [Tie("0.weight", (bank[1], tensors["A"]), torch.add), Tie("0.bias", tensors["B"])]
    tied = check(model, rules, torch.randn(3, 4))
    assert torch.equal(tied[0].weight, bank.templates[1] + tensors.A)
    assert torch.equal(tied[0].bias, tensors.B)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Tensors(), "one tensor or more"),
        (
            lambda: Tensors(A=3),
            "'A' is given by its shape, such as (2, 8), or as a tensor, not as 3",
        ),
        (lambda: Tensors(A=(2, 0.5)), "'A' is given by its shape"),
        (lambda: Tensors(A=torch.ones(2, dtype=torch.int64)), "'A' can't be a tensor of fxtie"),
        (lambda: Tensors(forward=(2,)), "'forward' can't be a tensor of fxtie.Tensors"),
        (lambda: Tensors(A=(2,), frozen=("B",)), "There is no tensor 'B' to freeze."),
        (lambda: Tensors(A=(2,))["a"], "There is no tensor 'a' here."),
        (lambda: Bank(2.5, (3, 3)), "one template or more, not 2.5"),
        (lambda: Bank(2, (2,))[2], "has the templates 0 to 1, not 2"),
    ],
)
def test_what_makes_no_sense_is_refused(make, words):
    with pytest.raises(fxtie.RuleError) as told:
        make()
    assert words in str(told.value)
