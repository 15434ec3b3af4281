"""Both sides called alike: differences in one circumstance only, errors, autocast."""

import copy

import pytest
import torch
from spoiling import (
    RULE,
    add_gradient,
    add_one,
    count_batch,
    double_gradients,
    fail,
    finds,
    inputs,
    net,
    spoiled,
    tie,
)
from torch import nn
from two_linears import Two, model_with

import fxtie
from fxtie import Rule

# -- what is wrong, in one circumstance --------------------------------------------------------


CIRCUMSTANCES = {
    "eval, first call": lambda module, calls: calls == 1,
    "eval, second call": lambda module, calls: calls == 2,
    "eval, no_grad": lambda module, calls: not torch.is_grad_enabled(),
    "train, first call": lambda module, calls: module.training,
    "train, second call": lambda module, calls: module.training and calls == 2,
}


CHANGES = [
    (add_one, "output 0"),
    (count_batch, r"the buffer 3\.num_batches_tracked"),
    (double_gradients, r"the gradient of \S+"),
]


@pytest.mark.parametrize(
    ("where", "change", "what"),
    [
        (where, *change)
        for where in CIRCUMSTANCES
        for change in (CHANGES[:2] if "no_grad" in where else CHANGES)
    ],
)
def test_a_difference_in_one_circumstance(where, change, what):
    model = nn.Sequential(*net(), nn.BatchNorm1d(4))
    tied = spoiled(fxtie.transform(model, RULE), change, CIRCUMSTANCES[where])
    finds(model, tied, f"oracle: {what} in {where}: relative error")


def test_a_gradient_on_one_side():
    model = net()

    def cut(module, args, output):
        return output.detach().requires_grad_()

    tied = spoiled(fxtie.transform(model, RULE), cut)
    finds(model, tied, r"the gradient of 0\.weight in eval, first call: only one side has a grad")


def test_a_gradient_where_there_should_be_next_to_none():
    def forward(self, x):
        return self.b(self.a(x)) + 0 * self.unused

    model = model_with(forward, unused=nn.Parameter(torch.ones(())))
    tied = tie(model)
    fxtie.verify(model, add_gradient(copy.deepcopy(tied), "unused", factor=1e-9), inputs())
    message = "the gradient of unused in eval, first call: relative error inf"
    finds(model, add_gradient(tied, "unused", factor=1e-3), message)


def test_gradients_of_inputs():
    model = net()

    def add_to_input(module, args, output):
        return output + (args[0] - args[0].detach()).sum()

    x = inputs(requires_grad=True)
    x.grad = torch.ones_like(x)
    frozen = net().requires_grad_(False)
    fxtie.verify(frozen, fxtie.transform(frozen, RULE), x)
    tied = spoiled(fxtie.transform(model, RULE), add_to_input)
    finds(model, tied, "the gradient of argument 0 in eval, first call: relative error", x)
    assert torch.equal(x.grad, torch.ones_like(x))


def test_inputs_that_have_no_gradients():
    model = model_with(lambda self, x, mask, n: self.b(self.a(x)).masked_fill(mask, 0.5) * n)
    mask = torch.eye(3, 4, dtype=torch.bool)
    fxtie.verify(model, tie(model), inputs(), mask, n=torch.tensor(2, dtype=torch.int8))


def test_inputs_that_are_changed():
    def forward(self, x, batch):
        y = self.b(self.a(x * 1))
        batch["seen"] = batch["x"].add_(1)
        return y

    model, batch = model_with(forward), {"x": torch.zeros(2)}
    tied = tie(model)
    fxtie.verify(model, tied, inputs(), batch=batch)
    assert batch.keys() == {"x"} and not batch["x"].any()

    def add_one_more(module, args, output):
        args[0].add_(1)

    spoiled(tied, add_one_more, lambda module, calls: calls == 2)
    message = "argument 0 after the call in eval, second call: relative error"
    finds(model, tied, message, inputs(), batch=batch)


def test_an_error_on_one_side():
    model = net()
    tied = spoiled(fxtie.transform(model, RULE), fail, lambda module, calls: calls == 2)
    message = "the call in eval, second call: the tied model raises LookupError: lost, the oracle"
    finds(model, tied, message)
    with pytest.raises(fxtie.VerificationError) as caught:
        fxtie.verify(model, tied, inputs())
    assert isinstance(caught.value.__cause__, LookupError)


class Forces(Two):
    """Differentiates in its forward: impossible without gradients."""

    def forward(self, x):
        x = x.detach().requires_grad_()
        energy = self.b(self.a(x)).tanh().sum()
        (forces,) = torch.autograd.grad(energy, x, create_graph=True)
        return forces


def test_an_error_on_both_sides():
    model = Forces()
    proof = fxtie.verify(model, tie(model), inputs())
    assert proof.calls[2].compared[0] == "both raise RuntimeError"
    tied = spoiled(tie(model), fail, lambda module, calls: torch.is_grad_enabled())
    finds(model, tied, "the tied model raises LookupError: lost, the oracle returns")
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        fxtie.verify(model, tie(model), torch.randn(3, 5))


# -- autocast ----------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_autocast(dtype):
    model = nn.Sequential(*(nn.Linear(4, 4) for _ in range(4)))
    tied = fxtie.transform(model, Rule("re:[1-3]", "0", torch.sin))
    proof = fxtie.verify(model, tied, inputs(), autocast=dtype)
    name = str(dtype).removeprefix("torch.")
    assert [call.call for call in proof.calls[:2]] == [
        f"first call, autocast {name}",
        f"second call, autocast {name}",
    ]
    # The gradients of the uses add up in low precision: that it ran there.
    assert 1e-5 < proof.calls[0].gradient_error < 4 * torch.finfo(dtype).eps

    spoiled(tied, add_one, lambda module, calls: torch.is_autocast_enabled("cpu"))
    fxtie.verify(model, tied, inputs())
    finds(model, tied, f"output 0 in eval, first call, autocast {name}", autocast=dtype)


def test_the_backward_is_outside_of_autocast():
    seen = []

    def forward(self, x):
        y = self.b(self.a(x))
        if y.requires_grad:
            y.register_hook(lambda gradient: seen.append(torch.is_autocast_enabled("cpu")))
        return y

    model = model_with(forward)
    fxtie.verify(model, tie(model), inputs(), autocast=torch.bfloat16)
    assert seen and not any(seen)


def test_a_forward_that_has_an_argument_called_autocast():
    def forward(self, x, autocast=False):
        return self.b(self.a(x)) * (2 if autocast else 1)

    model = model_with(forward)
    tied = tie(model)
    fxtie.verify(model, tied, inputs(), True, autocast=torch.bfloat16)
    for wrong in (True, False, "bf16", torch.float64):
        with pytest.raises(fxtie.FxtieError, match="by position"):
            fxtie.verify(model, tied, inputs(), autocast=wrong)
