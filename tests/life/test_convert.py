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
from fxtie import Rule, Tie, transforms


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
    fxtie.initialize(net, Rule("b.*", bank, transforms.mean(), None, exclude="b.1"))
    torch.testing.assert_close(net.b[0].weight, (bank.templates[0] + bank.templates[1]) / 2)


def layers(n=3, size=6):
    return nn.ModuleDict({"abcdefgh"[i]: nn.Linear(size, size, bias=False) for i in range(n)})


def share_parameter(net):
    net["b"].weight = net["a"].weight


def share_memory(net):
    net["b"].weight = nn.Parameter(net["a"].weight.data)


def share_a_part(net):
    whole = torch.randn(9, 6)
    net["a"].weight, net["b"].weight = nn.Parameter(whole[:6]), nn.Parameter(whole[3:])


SHARED = [share_parameter, share_memory, share_a_part]
TWO_VALUES = [
    [Tie("a.weight", "c.weight", torch.sin), Tie("b.weight", "c.weight", torch.cos)],
    [Tie("a.weight", "c.weight", torch.sin), Tie("b.weight", "d.weight", torch.sin)],
    [Tie("a.weight", "a.weight", torch.sin), Tie("b.weight", "c.weight")],
]
HIDDEN = [
    [Tie("a.weight", "c.weight", torch.sin), Tie("c.weight", "b.weight", torch.cos)],  # a cycle
    [Tie("a.weight", "c.weight", torch.sin), Tie("d.weight", "b.weight", torch.cos)],
    [Tie("a.weight", "a.weight", torch.sin), Tie("d.weight", "b.weight", torch.cos)],
    [Tie("a.weight", "b.weight", torch.sin)],
]


def refused(net, ties, message):
    before = copy.deepcopy(net.state_dict())
    for order in (ties, ties[::-1]):
        with pytest.raises(fxtie.PlanError, match=message) as told:
            fxtie.initialize(net, order)
        assert "'a.weight'" in str(told.value) and "'b.weight'" in str(told.value)
    for key, value in net.state_dict().items():
        assert torch.equal(value, before[key])


@pytest.mark.parametrize("share", SHARED)
@pytest.mark.parametrize("ties", TWO_VALUES)
def test_initialize_refuses_two_values_of_one_tensor(share, ties):
    net = layers(4)
    share(net)
    refused(net, ties, "Two rules for one tensor: .* share their memory")
    assert len(fxtie.plan(net, ties).ties) == 2  # a tied model has a tensor for each


@pytest.mark.parametrize("share", SHARED)
@pytest.mark.parametrize("ties", HIDDEN)
def test_initialize_refuses_what_depends_on_the_order(share, ties):
    net = layers(4)
    share(net)
    refused(net, ties, "'b.weight', which shares its memory with the target 'a.weight'")


def test_initialize_of_shared_tensors_that_agree():
    net = layers(4)
    share_parameter(net)
    c = net["c"].weight.detach().clone()
    fxtie.initialize(net, Rule("re:[abd]", "c", torch.sin))
    assert torch.equal(net["a"].weight, torch.sin(c)) and net["b"].weight is net["a"].weight
    fxtie.initialize(net, [Rule("b", "a"), Rule("d", "b", torch.cos)])  # it is the same already
    assert torch.equal(net["d"].weight, torch.cos(torch.sin(c)))
    before = net["a"].weight.detach().clone()
    ties = [Tie(f"{name}.weight", f"{name}.weight", torch.exp) for name in "ab"]
    fxtie.initialize(net, ties)  # once, not twice
    assert torch.equal(net["a"].weight, torch.exp(before))


def test_initialize_of_parts_of_one_storage():
    net = layers(2)
    whole = torch.randn(12, 6)
    net["a"].weight, net["b"].weight = nn.Parameter(whole[:6]), nn.Parameter(whole[6:])
    fxtie.initialize(net, Rule("b", "a", torch.sin))
    assert torch.equal(net["b"].weight, torch.sin(net["a"].weight))
    lstm = nn.LSTM(6, 6)
    fxtie.initialize(lstm, Tie("weight_hh_l0", "weight_ih_l0", torch.neg))
    assert torch.equal(lstm.weight_hh_l0, -lstm.weight_ih_l0)


def test_initialize_knows_what_parametrized_sources_are_computed_from():
    net = layers(3)
    nn.utils.parametrizations.orthogonal(net["b"])
    net["a"].weight = net["b"].parametrizations.weight.original
    ties = [Tie("a.weight", "c.weight"), Tie("c.weight", "b.weight")]
    with pytest.raises(fxtie.PlanError, match=r"'b.weight', which shares its memory"):
        fxtie.initialize(net, ties)


def test_initialize_on_meta_and_of_nothing():
    net = layers(3).to("meta")
    fxtie.initialize(net, [Rule("b", "a", torch.sin), Rule("c", "b", torch.cos)])
    net = nn.ModuleDict({name: nn.Embedding(0, 4) for name in "abc"})
    fxtie.initialize(net, [Rule("b", "a", torch.sin), Rule("c", "a", torch.cos)])


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
