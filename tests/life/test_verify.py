"""`fxtie.verify`: what passes, what is found, what was passed in."""

import copy

import pytest
import torch
from spoiling import RULE, add_gradient, finds, inputs, net
from torch import fx, nn
from two_linears import model_with

import fxtie
from fxtie import Rule

# -- what is right -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "dtype",
    [torch.float32, torch.float64, torch.bfloat16, torch.complex64],
    ids=str,
)
def test_a_right_model_passes(dtype):
    model = nn.Sequential(*(nn.Linear(4, 4, dtype=dtype) for _ in range(6)))
    tied = fxtie.transform(model, Rule("re:[1-5]", "0", torch.sin))
    fxtie.verify(model, tied, inputs(dtype=dtype))


def test_each_mode_and_circumstance_has_a_row():
    model = nn.Sequential(*net(), nn.BatchNorm1d(4))
    tied = fxtie.transform(model, RULE)
    proof = fxtie.verify(model, tied, inputs())
    assert isinstance(proof, fxtie.Verification)
    assert [(call.mode, call.call) for call in proof.calls] == [
        (mode, call)
        for mode in ("eval", "train")
        for call in ("first call", "second call", "no_grad")
    ]
    first, _, no_grad = proof.calls[:3]
    state = ("parameters", "buffers", "attributes")
    assert first.compared == ("outputs", "gradients", "inputs", *state)
    assert no_grad.compared == ("outputs", "inputs", *state)
    # The output, the input, 4 parameters, 3 buffers; 4 gradients.
    assert (first.tensors, no_grad.tensors) == (13, 9)
    assert first.output_error == 0 and first.gradient_error < 1e-5
    assert no_grad.gradient_error is None
    assert not proof.skipped
    lines = str(proof).splitlines()
    assert lines[0].split()[:3] == ["mode", "call", "compared"] and len(lines) == 8
    assert lines[-1].split()[:2] == ["train", "no_grad"] and lines[-1].split()[-2:] == ["0", "-"]


@pytest.mark.parametrize(
    "transform", [fxtie.transforms.LowRank(2), nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5))]
)
def test_learnable_transforms_are_compared(transform):
    model = net()
    tied = fxtie.transform(model, Rule("2", "0", weight=transform))
    fxtie.verify(model, tied, inputs())
    name = list(dict(tied.named_parameters()))[-1]
    assert name.startswith("ties.2_weight.")
    add_gradient(tied, name)
    finds(model, tied, f"the gradient of {name} in eval, first call: relative error")


def test_how_often_a_transform_runs_is_not_compared():
    class Counting(nn.Module):
        def __init__(self):
            super().__init__()
            self.gain, self.runs = nn.Parameter(torch.ones(())), 0

        def forward(self, weight):
            self.runs += 1
            return weight * self.gain

    def forward(self, x):
        return self.b(self.b(self.a(x))) if x.sum() < 1e9 else x

    model = model_with(forward)
    transform = Counting()
    tied = fxtie.transform(model, Rule("b", "a", weight=transform, bias=None))
    transform.runs = 0
    with torch.no_grad():
        tied(inputs())
    assert transform.runs == 2, "else there is nothing to see here"
    assert not fxtie.verify(model, tied, inputs()).skipped


def test_banks_are_compared():
    model = net()
    rule = Rule("re:[02]", fxtie.Bank(2, (4, 4)), weight=fxtie.transforms.Mix(2), bias=None)
    tied = fxtie.transform(model, rule)
    proof = fxtie.verify(model, tied, inputs())
    # 2 biases, 2 templates, the mixture of each target; output and input.
    assert len(list(tied.parameters())) == 6 and proof.calls[0].tensors == 14
    add_gradient(tied, "ties.bank.templates.1")
    finds(model, tied, r"the gradient of ties\.bank\.templates\.1 in eval, first call")


def test_the_transforms_of_a_model_tied_twice_are_compared():
    model = nn.Sequential(*net(), nn.Linear(4, 4))
    first = fxtie.transform(model, Rule("2", "0", weight=fxtie.transforms.LowRank(2)))
    again = fxtie.transform(first, Rule("3", "0", weight=fxtie.transforms.LowRank(3)))
    fxtie.verify(first, again, inputs())
    for name in ("ties.2_weight.B", "ties.3_weight.B"):
        wrong = add_gradient(copy.deepcopy(again), name)
        finds(first, wrong, f"the gradient of {name} in eval, first call: relative error")
    finds(model, again, r"differ before any call, in the parameter 2\.weight: it is missing")


def test_a_model_that_is_a_graph():
    model = fx.symbolic_trace(net())
    assert not fxtie.verify(model, fxtie.transform(model, RULE), inputs()).skipped


def test_sparse_gradients():
    model = nn.Sequential(nn.Embedding(5, 4, sparse=True), nn.Linear(4, 4), nn.Linear(4, 4))
    tied = fxtie.transform(model, Rule("2", "1", torch.square))
    fxtie.verify(model, tied, torch.tensor([1, 2, 2]))


# -- what is wrong, in one circumstance --------------------------------------------------------


def test_a_wrong_output_is_found():
    model = net()
    tied = fxtie.transform(model, RULE)
    (square,) = tied.graph.find_nodes(op="call_function", target=torch.square)
    square.target = torch.neg
    tied.recompile()
    finds(model, tied, "output 0 in eval, first call: relative error")
    with pytest.raises(fxtie.VerificationError, match="output 0 in eval"):
        fxtie.verify(model, tied, inputs())


def test_a_wrong_gradient_is_found():
    model = net()
    tied = fxtie.transform(model, RULE)
    (square,) = tied.graph.find_nodes(op="call_function", target=torch.square)
    with tied.graph.inserting_after(square):
        cut = tied.graph.call_method("detach", (square,))
    square.replace_all_uses_with(cut, lambda user: user is not cut)
    tied.recompile()
    finds(model, tied, r"gradient of 0\.weight in eval, first call: relative error")


def test_lists_of_weights():
    """An nn.LSTM lists its weights, which the tied one does not have."""

    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.LSTM(4, 4), nn.LSTM(4, 4)

        def forward(self, x):
            return self.b(self.a(x)[0])

    model = Twice()
    assert not fxtie.verify(model, tie_lstm(model), torch.randn(2, 3, 4)).skipped


def tie_lstm(model):
    return fxtie.transform(model, Rule("b", "a", weight_ih_l0=torch.sin))


# -- what was passed in ------------------------------------------------------------------------


def test_models_that_differ_before_any_call():
    model = net()
    tied = fxtie.transform(model, RULE)
    other = copy.deepcopy(tied)
    other[0].weight.data += 1
    finds(model, other, r"differ before any call, in the parameter 0\.weight: relative error")
    # Stored tensors are the model's own, so that one that was trained is verified as it is.
    tied[0].weight.data += 1
    fxtie.verify(model, tied, inputs())


def test_a_copied_model_has_lost_its_lambdas():
    model = net()
    tied = fxtie.transform(model, Rule("2", "0", lambda w: w * 2))
    assert not fxtie.verify(model, tied, inputs()).skipped
    proof = fxtie.verify(model, copy.deepcopy(tied), inputs())
    assert list(proof.skipped) == ["the graph of 2.weight's transform"]


def test_what_is_no_tied_model():
    with pytest.raises(fxtie.FxtieError, match="tied model"):
        fxtie.verify(net(), net(), inputs())
