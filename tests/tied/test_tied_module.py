"""Derived tensors as attributes: names in state dicts, reading, writing, errors."""

import gc
import weakref

import pytest
import torch
from tied_forms import FORMS, Attention, TwoConvs, TwoLSTMs, UntraceableRoot
from torch import nn
from torch.nn.utils import prune
from two_linears import Kept, Two

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


@pytest.mark.parametrize(
    ("make", "target", "source"),
    [
        (TwoConvs, "conv_2.weight", "conv_1.weight"),
        (UntraceableRoot, "b.0.weight", "a.weight"),
        (Attention, "b.in_proj_weight", "a.in_proj_weight"),
        (TwoLSTMs, "b.weight_ih_l0", "a.weight_ih_l0"),
    ],
)
def test_dropped_tensors_are_not_kept_alive(make, target, source):
    net = make()
    dropped = weakref.ref(net.get_parameter(target))
    tied = fxtie.transform(net, Tie(target, source, torch.neg))
    assert dropped() is not None
    del net
    gc.collect()
    assert dropped() is None
    assert tied is not None


def test_a_transform_that_fails_is_told():
    """Not as a model that has no such attribute, which is what Python makes of it."""

    def fragile(weight):
        return weight * (2 if weight.sum() < 1e9 else weight.nonsense)

    net = TwoConvs()
    tied = fxtie.transform(net, Rule("conv_2", "conv_1", fragile))
    nn.init.constant_(net.conv_1.weight, 1e9)
    with pytest.raises(fxtie.FxtieError, match=r"'conv_2\.weight' can't be derived: .*nonsense"):
        tied.conv_2.weight  # noqa: B018


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


@pytest.mark.parametrize("make", [Two, Kept])
def test_a_source_that_is_pruned_is_refused(make):
    """Its weight is a plain attribute then, which a hook computes before its own forward."""
    model = make()
    tied = fxtie.transform(model, Rule("b", "a", weight=torch.square))
    tied(torch.randn(3, 4))
    prune.l1_unstructured(tied.a, "weight", 0.5)
    with (
        pytest.warns(fxtie.Outdated, match=r"a\.weight was set"),
        pytest.raises(fxtie.FxtieError, match=r"'a\.weight', a plain attribute by now"),
    ):
        tied(torch.randn(3, 4))


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


def test_a_model_prints_as_its_class_has_it():
    class Named(nn.Sequential):
        def __str__(self):
            return f"{len(self)} layers"

    tied = fxtie.transform(Named(nn.Linear(2, 2), nn.Linear(2, 2)), Rule("1", "0"))
    assert str(tied) == "2 layers"


def test_looking_at_an_attribute_that_torch_sets_changes_nothing():
    net = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    tied = fxtie.transform(net, fxtie.Rule("1", "0", weight=torch.square))
    assert not tied._distribute_module_applied
    tied.load_state_dict(tied.state_dict())
    assert torch.equal(tied[1].weight, net[0].weight.square())
    assert [name for name, _ in tied.named_parameters()] == ["0.weight", "0.bias"]
