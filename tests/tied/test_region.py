"""Captured forwards: modes, copies, pickles, and changes that a graph follows or does not."""

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from tied_forms import FORMS
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import (
    apply_activation_checkpointing,
)
from two_linears import RULE, Two, model_with

import fxtie
from fxtie import Rule


@pytest.mark.parametrize("form", FORMS)
def test_dtype_device_and_assignment(form):
    net, rules, shape = FORMS[form]()
    tied = fxtie.transform(net, rules).eval()
    state = copy.deepcopy(tied.state_dict())
    x = torch.randn(shape)
    expected = tied(x)
    double = copy.deepcopy(tied).double()
    torch.testing.assert_close(double(x.double()).float(), expected, rtol=1e-4, atol=1e-5)
    empty = copy.deepcopy(tied).to("meta").to_empty(device="cpu")
    empty.load_state_dict(state)
    assert torch.equal(empty(x), expected)
    meta = copy.deepcopy(tied).to("meta")
    meta.load_state_dict(state, assign=True)
    assert torch.equal(meta(x), expected)


@pytest.mark.parametrize("form", FORMS)
def test_compiles(form):
    net, rules, shape = FORMS[form]()
    tied = fxtie.transform(net, rules, compile={"backend": "aot_eager"}).eval()
    x = torch.randn(shape)
    torch.testing.assert_close(tied(x), tied._orig_mod(x))


def test_data_parallel_is_refused():
    with pytest.raises(fxtie.FxtieError, match="DistributedDataParallel"):
        fxtie.transform(Two(), RULE)._replicate_for_data_parallel()


def test_a_kept_forward_compiles():
    def forward(self, x):
        with torch.no_grad():
            shift = self.a(x)
        return self.b(x) + shift

    tied = fxtie.transform(model_with(forward), RULE)
    assert fxtie.report(tied).kept
    x = torch.randn(3, 4)
    torch._dynamo.reset()
    compiled = torch.compile(tied, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), tied(x))


class Switched(nn.Module):
    gain = 1.0

    def __init__(self):
        super().__init__()
        self.two, self.doubled = Two(), False

    def forward(self, x):
        x = self.two(x) * self.gain
        return x * 2 if self.doubled else x


def set_attribute(model):
    model.doubled = True


def set_class_attribute(model):
    model.gain = 3.0


def set_inner_module(model):
    model.two = Two()


def hook_inner_module(model):
    model.two.register_forward_hook(lambda module, args, output: output + 1)


@pytest.mark.parametrize(
    "change", [set_attribute, set_class_attribute, set_inner_module, hook_inner_module]
)
@pytest.mark.parametrize("copied", [False, True])
def test_a_change_that_a_graph_cannot_follow(change, copied):
    model, x = Switched(), torch.randn(3, 4)
    tied = fxtie.transform(model, Rule("two.b", "two.a", weight=torch.square))
    if copied:
        tied = copy.deepcopy(tied)
    before = tied(x)
    torch.manual_seed(0)
    change(tied)
    torch.manual_seed(0)
    change(model)
    if change is not set_inner_module:
        model.two.b.weight.data = model.two.a.weight.detach().square()
        model.two.b.bias.data = model.two.a.bias.detach()
    with pytest.warns(fxtie.Outdated, match="Its own forward runs"):
        after = tied(x)
    assert not torch.equal(after, before)
    torch.testing.assert_close(tied(x), model(x))  # and warns no more
    calls, _ = fxtie.report(tied).missed[""]
    assert calls == 2
    again = pickle.loads(pickle.dumps(tied)) if change is set_attribute else copy.deepcopy(tied)
    torch.testing.assert_close(again(x), tied(x))


def test_wrappers_of_torch_are_no_change_to_warn_of():
    """Warnings are errors here."""
    model = nn.Sequential(*(nn.Sequential(nn.Linear(4, 4), nn.Tanh()) for _ in range(3)))
    rule, x = Rule("2", "0", weight=torch.square), torch.randn(3, 4)
    tied, expected = fxtie.transform(model, rule), fxtie.transform(model, rule, trace=False)(x)
    apply_activation_checkpointing(tied, check_fn=lambda m: isinstance(m, nn.Linear))
    assert torch.equal(tied(x), expected)
    calls, reason = fxtie.report(tied).missed[""]
    assert calls == 1 and "was replaced" in reason


def test_a_change_that_a_short_text_does_not_show_is_told_as_one():
    tied = fxtie.transform(nn.Sequential(*(nn.Linear(4, 4) for _ in range(9))), Rule("2", "0"))
    tied[8] = nn.Linear(4, 4)
    with pytest.warns(fxtie.Outdated, match="of a Sequential does not hold any more: _modules was"):
        tied(torch.randn(3, 4))
    assert fxtie.report(tied).missed[""] == (1, "_modules was replaced")
    assert fxtie.report(tied).summary().endswith(", 1 call without a graph")


def test_changes_that_a_graph_follows():
    tied = fxtie.transform(Switched(), Rule("two.b", "two.a", weight=torch.square))
    x = torch.randn(3, 4)
    before = tied(x)
    tied.note = "something new"
    tied.doubled = False
    tied.train().eval()
    tied.two.a.weight = nn.Parameter(torch.randn(4, 4))
    assert not torch.equal(tied(x), before)
    assert not fxtie.report(tied).missed
    a = tied.two.a
    torch.testing.assert_close(tied(x), F.linear(a(x), a.weight.square(), a.bias))
    assert not fxtie.report(tied).kept


def test_a_model_that_has_changed_can_be_tied_again():
    model, x = Switched(), torch.randn(3, 4)
    tied = fxtie.transform(model, Rule("two.b", "two.a", weight=torch.square))
    tied.doubled = True
    with pytest.warns(
        fxtie.Outdated, match="a Switched does not hold any more: doubled is True, was False"
    ):
        tied(x)
    assert fxtie.report(tied).missed == {"": (1, "doubled is True, was False")}
    again = fxtie.transform(tied, Rule("two.a", "two.a", weight=torch.neg))
    assert not fxtie.report(again).kept
    assert torch.equal(again(x), fxtie.materialize(again)(x))
