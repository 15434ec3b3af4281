"""What is surely a tensor, and what may share its storage."""

import pytest
import torch
import torch.nn.functional as F
from compared import check, model
from elsewhere import Two
from torch import nn


class Sequence(Two):
    def __init__(self):
        super().__init__()
        self.sequence = nn.Sequential(nn.Linear(4, 4), nn.Tanh())

    def forward(self, x):
        x = self.sequence(self.b(self.a(x)))
        return x[0] if isinstance(x, tuple) else x


class Several(nn.Module):
    def forward(self, x):
        return x * 2, x


def hook_of_several(model):
    model.sequence[1].register_forward_hook(lambda module, args, output: (output, output))


@pytest.mark.parametrize(
    "change",
    [
        lambda model: model.sequence.append(Several()),
        lambda model: setattr(model.sequence, "1", Several()),
        lambda model: setattr(model.sequence[1], "__class__", Several),
        hook_of_several,
    ],
)
def test_a_sequence_that_gives_something_else(change):
    check(Sequence, "graph", change=change)


class Triples(nn.Module):
    def forward(self, weight):
        return weight.mul_(3)


class Doubles(nn.Module):
    def forward(self, weight):
        return weight * 2


def hands_on_a_derived_tensor(self, x):
    weight = self.part(self.b.weight)
    return F.linear(x, weight) + F.linear(x, self.b.weight)


@pytest.mark.parametrize(
    ("part", "expected"),
    [
        (lambda: nn.Hardtanh(-0.01, 0.01, inplace=True), "kept"),
        (Triples, "kept"),
        (Doubles, "graph"),
        (nn.Tanh, "graph"),
    ],
)
def test_a_derived_tensor_that_a_part_gets(part, expected):
    check(model(hands_on_a_derived_tensor, part=part), expected)


@torch.library.custom_op("fxtie_tests::triple", mutates_args={"weight"})
def triple(weight: torch.Tensor) -> None:
    weight.mul_(3)


def changes_by_an_operator(self, x):
    weight = self.b.weight.detach()
    torch.ops.fxtie_tests.triple(weight)
    return F.linear(x, weight) + F.linear(x, self.b.weight)


def test_an_operator_that_says_what_it_changes():
    check(model(changes_by_an_operator), "kept")


@torch.library.custom_op("fxtie_tests::square", mutates_args=())
def square(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return x * 2, x * 3


def asks_what_it_gives(self, x):
    y = torch.ops.fxtie_tests.square((self.b(self.a(x))).detach())
    return y if isinstance(y, torch.Tensor) else y[1]


def test_an_operator_named_as_one_of_torchs():
    check(model(asks_what_it_gives), "kept")
