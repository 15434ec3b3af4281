"""Modules that the pass has copied: of a class that is made of the user's."""

import copy
import io

import pytest
import torch
import torch.nn.functional as F
from loops import Loop, inputs, tie
from tied_forms import FORMS, TwoConvs
from torch import nn
from two_linears import RULE, Two

import fxtie
from fxtie import Rule


def test_members_past_a_setattr_that_refuses():
    class Frozen(Two):
        def __setattr__(self, name, value):
            if self.__dict__.get("frozen"):
                raise TypeError(f"frozen: {name}")
            super().__setattr__(name, value)

    model = Frozen()
    model.frozen = True
    tied = fxtie.transform(model, RULE)
    x = torch.randn(3, 4)
    expected = F.linear(model.a(x), model.a.weight.square(), model.a.bias)
    torch.testing.assert_close(tied(x), expected)


def test_a_transform_that_fails_is_told():
    """Not as a model that has no such attribute, which is what Python makes of it."""

    def fragile(weight):
        return weight * (2 if weight.sum() < 1e9 else weight.nonsense)

    net = TwoConvs()
    tied = fxtie.transform(net, Rule("conv_2", "conv_1", fragile))
    nn.init.constant_(net.conv_1.weight, 1e9)
    with pytest.raises(fxtie.FxtieError, match=r"'conv_2\.weight' can't be derived: .*nonsense"):
        tied.conv_2.weight  # noqa: B018


def test_a_model_prints_as_its_class_has_it():
    class Named(nn.Sequential):
        def __str__(self):
            return f"{len(self)} layers"

    tied = fxtie.transform(Named(nn.Linear(2, 2), nn.Linear(2, 2)), Rule("1", "0"))
    assert str(tied) == "2 layers"


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("train", [False, True])
def test_copies_and_pickles(form, train):
    net, rules, shape = FORMS[form]()
    tied = fxtie.transform(net, rules).train(train)
    x = torch.randn(shape)
    file = io.BytesIO()
    torch.save(tied, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=False)
    for other in (copy.deepcopy(tied), loaded, copy.deepcopy(loaded)):
        torch.manual_seed(0)
        expected = copy.deepcopy(tied)(x)
        torch.manual_seed(0)
        assert torch.equal(other(x), expected)
        assert list(other.state_dict()) == list(tied.state_dict())
        with torch.no_grad():
            for p in other.parameters():
                p.mul_(2)  # independent of the first
        torch.manual_seed(0)
        assert not torch.equal(other(x), expected)
        assert isinstance(other, type(net)) and fxtie.report(other).ties > 0


def test_a_class_that_is_patched_afterwards(monkeypatch):
    _, tied, _, _ = tie()
    monkeypatch.setattr(Loop, "forward", lambda self, x: self.out(x))
    assert torch.equal(tied(x := inputs()), tied.out(x))
