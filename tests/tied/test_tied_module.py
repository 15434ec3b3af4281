"""Derived tensors as attributes: names in state dicts, reading, writing, errors."""

import pytest
import torch
from tied_forms import FORMS, TwoConvs
from torch import nn
from two_linears import Two

import fxtie
from fxtie import Rule, Tie


@pytest.mark.parametrize("form", FORMS)
def test_state_dict_has_the_stored_tensors_under_their_names(form):
    net, rules, _ = FORMS[form]()
    plan = fxtie.plan(net, rules)
    tied = fxtie.transform(net, plan)
    derived = {tie.target for tie in plan.ties if not tie.is_self_derived}
    expected = set(net.state_dict()) - derived
    for train in (True, False):
        found = tied.train(train).state_dict()
        assert {key for key in found if not key.startswith("ties.")} == expected
    for name, p in tied.named_parameters():
        if not name.startswith("ties."):
            assert p is net.get_parameter(name)


@pytest.mark.parametrize("form", FORMS)
def test_an_untied_checkpoint_loads(form):
    net, rules, _ = FORMS[form]()
    tied = fxtie.transform(net, rules)
    other = FORMS[form]()[0].state_dict()
    tied.load_state_dict({**tied.state_dict(), **other})
    for name, p in tied.named_parameters():
        if not name.startswith("ties."):
            assert torch.equal(p, other[name])
    with pytest.raises(RuntimeError, match="nonsense"):
        tied.load_state_dict({**tied.state_dict(), "nonsense": torch.ones(1)})


def test_derived_tensors_are_attributes():
    net = TwoConvs()
    tied = fxtie.transform(net, Rule("conv_2", "conv_1", torch.square))
    assert torch.equal(tied.conv_2.weight, net.conv_1.weight**2)
    assert tied.conv_2.bias is net.conv_1.bias
    with pytest.raises(fxtie.FxtieError, match=r"'conv_2\.weight' is derived"):
        tied.conv_2.weight = nn.Parameter(torch.zeros(1))
    with pytest.raises(
        fxtie.FxtieError, match=r"'conv_2\.weight' is derived and cannot be deleted"
    ):
        del tied.conv_2.weight
    with pytest.raises(fxtie.PlanError, match=r"'conv_2\.weight' is derived already"):
        fxtie.plan(tied, Tie("conv_1.weight", "conv_2.weight"))


def test_a_checkpoint_of_another_shape_is_no_matter_of_ties():
    tied = fxtie.transform(Two(), Rule("b", "a", weight=torch.square))
    state = {**tied.state_dict(), "a.weight": torch.ones(1)}
    with pytest.raises(RuntimeError, match="size mismatch") as told:
        tied.load_state_dict(state)
    assert "rules" not in str(told.value)


def test_a_layer_that_has_a_derived_tensor_can_be_a_source_of_others():
    tied = fxtie.transform(Two(), Tie("b.weight", "a.weight"))
    again = fxtie.transform(tied, Tie("a.bias", "b.bias", torch.neg))
    x = torch.randn(3, 4)
    assert torch.equal(again(x), fxtie.materialize(again)(x))
    assert sorted(again.state_dict()) == ["a.weight", "b.bias"]


def test_print_says_what_is_derived():
    net = nn.Sequential(nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1), nn.LSTM(3, 3, 2), nn.Flatten())
    lstm = Tie("2.weight_ih_l1", "2.weight_ih_l0", torch.neg)
    tied = fxtie.transform(net, [Rule("1", "0", torch.square, bias=None), lstm])
    assert str(tied).splitlines()[2:4] == [
        "  (1): Conv2d(3, 3, kernel_size=(1, 1), stride=(1, 1), weight=square(0.weight))",
        "  (2): LSTM(3, 3, num_layers=2, weight_ih_l1=neg(2.weight_ih_l0))",
    ]
    assert repr(tied) == str(tied)
    linears = fxtie.transform(Two(), Rule("b", "a", torch.neg))
    assert str(linears.b).endswith("bias=a.bias, weight=neg(a.weight))"), "and not bias=True"


@pytest.mark.parametrize("form", FORMS)
def test_every_derived_tensor_is_in_what_is_printed(form):
    net, rules, _ = FORMS[form]()
    tied = fxtie.transform(net, rules)
    text = str(tied)
    assert all(f"{tie.target.rpartition('.')[2]}=" in text for tie in fxtie.report(tied).plan.ties)
    assert "def forward" not in text


def test_looking_at_an_attribute_that_torch_sets_changes_nothing():
    net = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    tied = fxtie.transform(net, fxtie.Rule("1", "0", weight=torch.square))
    assert not tied._distribute_module_applied
    tied.load_state_dict(tied.state_dict())
    assert torch.equal(tied[1].weight, net[0].weight.square())
    assert [name for name, _ in tied.named_parameters()] == ["0.weight", "0.bias"]
