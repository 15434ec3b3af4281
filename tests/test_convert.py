"""Between tied and plain: initialise, materialise, checkpoints both ways."""

import copy
import io
import pickle

import pytest
import torch
from oracle import tensors
from torch import nn
from vision import import_torchvision

import fxtie
from fxtie import Rule, transforms


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = nn.Linear(6, 6)
        self.b = nn.Sequential(nn.Linear(6, 6), nn.BatchNorm1d(6), nn.Linear(6, 6))
        self.c = nn.LSTM(6, 6)

    def forward(self, x):
        return self.c(self.b(self.a(x)))[0]


class Kept(Net):
    def forward(self, x):
        return super().forward(x) if x.sum() < 1e9 else x


RULES = [
    Rule("b.0", "a", torch.neg),
    Rule("b.2", "a", transforms.LowRank(2)),
    Rule("a", "a", lambda w: w * 0.5),
    Rule("c.weight_hh_l0", "c.weight_ih_l0", torch.neg),
]


@pytest.mark.parametrize("cls", [Net, Kept])
@pytest.mark.parametrize("train", [False, True])
def test_materialize(cls, train):
    net = cls()
    tied = fxtie.transform(net, RULES).train(train)
    for p in tied.ties.parameters():
        nn.init.normal_(p)
    plain = fxtie.materialize(tied)
    assert type(plain) is cls and type(plain.b) is nn.Sequential and plain.training is train
    assert [(n, p.shape) for n, p in plain.named_parameters()] == [
        (n, p.shape) for n, p in net.named_parameters()
    ]
    assert list(plain.state_dict()) == list(net.state_dict())
    assert "fxtie" not in str([*map(vars, plain.modules())])
    x = torch.randn(8, 6)
    expected = copy.deepcopy(tied)(x)
    assert torch.equal(copy.deepcopy(plain)(x), expected) and expected.std() > 1e-3
    cls().load_state_dict(plain.state_dict())
    with torch.no_grad():
        plain.a.weight.zero_()
    assert tied.a._fxtie_stored.weight.abs().sum() > 0


def test_a_materialized_model_needs_nothing_of_fxtie():
    plain = fxtie.materialize(fxtie.transform(Net(), RULES))
    found = pickle.dumps(plain)
    assert b"fxtie" not in found


def test_materialize_a_real_model():
    net = import_torchvision().models.resnet18(weights=None).eval()
    tied = fxtie.transform(net, Rule("layer*.1.conv2", "layer{0}.1.conv1", torch.neg))
    x = torch.randn(1, 3, 64, 64)
    plain = fxtie.materialize(tied)
    assert torch.equal(plain(x), tied(x))
    net.load_state_dict(plain.state_dict())
    assert torch.equal(net(x), plain(x))


def test_what_is_not_tied_is_refused():
    for call in (fxtie.materialize, fxtie.untied_state_dict, fxtie.report):
        with pytest.raises(fxtie.FxtieError, match="not a tied model, but Linear"):
            call(nn.Linear(2, 2))


def test_initialize_sets_values_once():
    net = Net()
    plan = fxtie.initialize(net, [Rule("b.0", "a", torch.neg), Rule("b.2", "b.0", torch.square)])
    assert len(plan.ties) == 4
    assert torch.equal(net.b[2].weight, net.a.weight**2) and torch.equal(net.b[0].bias, net.a.bias)
    assert net.b[2].weight.requires_grad and net.b[2].weight is not net.b[0].weight
    before = net.a.weight.clone()
    with pytest.raises(fxtie.PlanError):
        fxtie.initialize(net, [Rule("a.weight", "b.0.weight"), Rule("c", "a")])
    assert torch.equal(net.a.weight, before)


def test_initialize_from_a_bank():
    net, bank = Net(), fxtie.Bank(2, (6, 6))
    fxtie.initialize(net, Rule("b.*", bank, transforms.Mix(2), None, exclude="b.1"))
    torch.testing.assert_close(net.b[0].weight, (bank.templates[0] + bank.templates[1]) / 2)


def test_checkpoints_go_both_ways():
    net, other = Net(), Net()
    tied = fxtie.transform(net, RULES[:1])
    tied.load_state_dict(other.state_dict())
    distances = fxtie.report(tied).distances
    assert set(distances) == {"b.0.weight", "b.0.bias"}
    given, derived = other.b[0].weight, -other.a.weight
    expected = ((derived - given).norm() / given.norm()).item()
    assert distances["b.0.weight"] == pytest.approx(expected, rel=1e-5) and expected > 0.1
    assert "away from the checkpoint's value" in str(fxtie.report(tied))
    again = Net()
    again.load_state_dict(fxtie.untied_state_dict(tied))
    assert torch.equal(again.b[0].weight, -net.a.weight)
    exact = fxtie.transform(Net(), RULES[:1])
    exact.load_state_dict(again.state_dict())
    assert set(fxtie.report(exact).distances.values()) == {0.0}


def test_distances_survive_copies():
    tied = fxtie.transform(Net(), RULES[:1])
    tied.load_state_dict(Net().state_dict())
    file = io.BytesIO()
    torch.save(tied, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=False)
    assert fxtie.report(loaded).distances == fxtie.report(tied).distances
    assert list(tensors(loaded(torch.randn(4, 6))))


def test_learnable_transforms_of_two_passes_have_names_of_their_own():
    net = nn.Sequential(*(nn.Linear(6, 6) for _ in range(3)))
    bank = fxtie.Bank(2, (6, 6))
    once = fxtie.transform(net, Rule("0", bank, torch.add, None))
    keys = list(once.state_dict())
    twice = fxtie.transform(once, Rule("1", fxtie.Bank(2, (6, 6)), torch.sub, None))
    assert list(once.state_dict()) == keys
    assert {k.split(".")[1] for k in twice.state_dict() if "ties" in k} == {"bank", "bank_2"}


def test_materialize_after_derive_once_leaves_nothing_behind():
    tied = fxtie.transform(Kept(), RULES)
    with fxtie.derive_once(tied):
        tied(torch.randn(4, 6))
    plain = fxtie.materialize(tied)
    assert not [name for m in plain.modules() for name in vars(m) if "fxtie" in name]
