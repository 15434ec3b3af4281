"""What a graph takes for granted: of the model, of what is outside of it, of copies and pickles."""

import collections
import copy
import pickle
import types

import pytest
import torch
import torch.nn.functional as F
from compared import RULE, check, model, x
from elsewhere import Two
from torch import nn
from torch.nn.modules.module import register_module_forward_hook

import fxtie


def in_a_comprehension(self, x):
    return self.b(self.a(x)) * sum([n for n in self.numbers if n > self.limit])


def more_numbers(model):
    model.numbers = (1, 2, 3)


def a_lower_limit(model):
    model.limit = 0


@pytest.mark.parametrize("change", [more_numbers, a_lower_limit])
def test_each_part_of_a_comprehension(change):
    check(model(in_a_comprehension, numbers=(1, 2), limit=1), "graph", change=change)


def adds_a_tensor(self, x):
    return self.b(self.a(x)) + self.extra


def makes_a_list(self, x):
    for layer in nn.ModuleList(self.layers):
        x = layer(x)
    return self.b(self.a(x))


def makes_a_sequence(self, x):
    return self.b(self.a(nn.Sequential(self.named)(x)))


def reverses_the_list(model):
    model.layers.reverse()


def reverses_the_dict(model):
    model.named.move_to_end("tanh")


class Lists(Two):
    def __init__(self):
        super().__init__()
        tanh, exp = nn.Tanh(), nn.Softplus()
        self.blocks, self.layers = nn.ModuleList([tanh, exp]), [tanh, exp]
        self.named = collections.OrderedDict(tanh=tanh, exp=exp)


@pytest.mark.parametrize(
    ("forward", "change"),
    [(makes_a_list, reverses_the_list), (makes_a_sequence, reverses_the_dict)],
)
def test_a_container_of_modules_that_it_makes(forward, change):
    check(model(forward, Lists), "graph", change=change)


def test_an_added_layer_is_told():
    """Not so where a wrapper of torch's takes a layer's place."""
    tied = fxtie.transform(model(makes_a_list, Lists)(), RULE)
    tied.layers.append(nn.ReLU())
    with pytest.warns(fxtie.Outdated, match="layers"):
        tied(x())


def test_hooks_for_all_modules():
    tied, seen = fxtie.transform(model(adds_a_tensor, extra=lambda: torch.ones(4))(), RULE), []
    tied(x())
    handle = register_module_forward_hook(lambda module, args, output: seen.append(module))
    try:
        tied(x())
    finally:
        handle.remove()
    assert tied.b in seen and fxtie.report(tied).missed


CONFIG = types.SimpleNamespace(scale=2)


CONSTANT = torch.ones(4)


ACTIVATIONS = {"double": lambda x: x * 2}


class Configured(Two):
    def forward(self, x):
        return self.b(self.a(x)) * CONFIG.scale


class Activated(Two):
    def forward(self, x):
        return ACTIVATIONS["double"](self.b(self.a(x)))


def test_a_copy_sees_what_is_outside_of_the_model(monkeypatch):
    tied = fxtie.transform(Configured(), RULE)
    copied, given = copy.deepcopy(tied), x()
    before = copied(given)
    monkeypatch.setattr(CONFIG, "scale", 3)
    with pytest.warns(fxtie.Outdated):
        assert torch.allclose(copied(given), before * 1.5)


def test_a_copy_has_tensors_of_its_own():
    def forward(self, x):
        return self.b(self.a(x)) * self.tensors[0] + CONSTANT

    tied, given = fxtie.transform(model(forward, tensors=lambda: [torch.ones(4)])(), RULE), x()
    copied, before = copy.deepcopy(tied), tied(given)
    copied.tensors[0].zero_()
    assert torch.equal(tied(given), before)
    assert torch.equal(copied(given), CONSTANT.expand(3, 4))
    CONSTANT.add_(1)
    assert torch.equal(copied(given), CONSTANT.expand(3, 4))
    assert not (fxtie.report(copied).missed or fxtie.report(copied).kept)


@pytest.mark.parametrize("make", [Configured, Activated])
def test_a_pickled_graph_holds_for_what_can_be_found_again(make):
    tied = fxtie.transform(make(), RULE)
    assert not fxtie.report(tied).kept
    again, given = pickle.loads(pickle.dumps(tied)), x()
    with pytest.warns(fxtie.Outdated, match="was not pickled"):
        assert torch.equal(again(given), tied(given))


def test_a_pickled_graph_goes_on():
    class_level = fxtie.transform(model_at_module_level(), RULE)
    again, given = pickle.loads(pickle.dumps(class_level)), x()
    assert torch.equal(again(given), class_level(given))
    assert not fxtie.report(again).missed


class Plainly(Two):
    def forward(self, x):
        return F.relu(self.b(self.a(x)))


def model_at_module_level():
    return Plainly()


FACTOR = 2.0


def scaled(weight):
    return weight * FACTOR


def per_row(weight):
    return weight / weight.shape[0]


def test_transforms_follow_what_they_read(monkeypatch):
    tied = fxtie.transform(Plainly(), fxtie.Rule("b", "a", weight=scaled, bias=None))
    monkeypatch.setitem(globals(), "FACTOR", 5.0)
    assert torch.equal(tied.b.weight, tied.a.weight * 5)
    given = x()
    with pytest.warns(fxtie.Outdated):
        assert torch.equal(tied(given), type(tied)._fxtie_made.user.forward(tied, given))


def test_transforms_follow_the_shape_of_their_source():
    tied = fxtie.transform(Plainly(), fxtie.Rule("b", "a", weight=per_row, bias=None))
    tied.a.weight = nn.Parameter(torch.randn(8, 4))
    assert torch.equal(tied.b.weight, tied.a.weight / 8)
