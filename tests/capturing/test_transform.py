"""The pass on every layer type and geometry, against the oracle."""

import collections
import copy
import dataclasses

import pytest
import torch
import torch.nn.functional as F
from models import Branches
from oracle import assert_tied_equals_oracle
from tied_forms import Attention, Frozen, TwoConvs, TwoLSTMs, check
from torch import fx, nn
from two_linears import Kept, Two

import fxtie
from fxtie import Rule, transforms
from fxtie.tied.path_copy import PathCopy


class HandLinked(TwoConvs):
    def __init__(self) -> None:
        super().__init__()
        del self.conv_2

    def forward(self, x):
        x = self.down(self.conv_1(x).relu())
        return F.conv2d(x, self.conv_1.weight**2, self.conv_1.bias, padding=1)


def ops(graph: fx.Graph) -> list[tuple[str, object]]:
    return [(node.op, node.target) for node in graph.nodes]


def test_the_first_example():
    net = TwoConvs()
    tied = check(net, Rule("conv_2", "conv_1", weight=torch.square), torch.randn(2, 16, 8, 8))
    found = ops(tied.graph)
    assert ("call_module", "conv_2") not in found
    weight, square = found.index(("get_attr", "conv_1.weight")), ("call_function", torch.square)
    assert found.index(square) == weight + 1
    (conv,) = tied.graph.find_nodes(op="call_function", target=F.conv2d)
    assert [n.target for n in conv.all_input_nodes[1:]] == [torch.square, "conv_1.bias"]
    assert list(tied.state_dict()) == ["conv_1.weight", "conv_1.bias"]
    assert sum(p.numel() for p in tied.parameters()) == 32 * 16 * 9 + 32


def test_gradients_equal_those_of_a_hand_written_module():
    net, linked = TwoConvs(), HandLinked()
    linked.load_state_dict(net.conv_1.state_dict(prefix="conv_1."))
    tied = fxtie.transform(net, Rule("conv_2", "conv_1", weight=torch.square))
    x = torch.randn(2, 16, 8, 8)
    loss, expected = tied(x).square().mean(), linked(x).square().mean()
    loss.backward()
    expected.backward()
    assert torch.equal(loss, expected)
    for p, q in zip(tied.parameters(), linked.parameters(), strict=True):
        assert q.grad.norm() > 1e-3
        torch.testing.assert_close(p.grad, q.grad, rtol=1e-5, atol=1e-7)


def test_a_larger_target_is_tiled():
    net = TwoConvs(out=64)
    rule = Rule("conv_2", "conv_1", weight=transforms.tile(), bias=transforms.tile())
    tied = check(net, rule, torch.randn(2, 16, 8, 8))
    assert sum(p.numel() for p in tied.parameters()) == 32 * 16 * 9 + 32


GEOMETRIES = [
    {"padding": 1},
    {"stride": 2, "padding": (2,), "dilation": 2},
    {"padding": "same"},
    {"padding": "valid"},
    *({"padding": 1, "padding_mode": m} for m in ("zeros", "reflect", "replicate", "circular")),
    {"groups": 2},
]


@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize("options", GEOMETRIES, ids=str)
def test_a_conv_keeps_its_own_geometry(dims, options):
    if dims == 3 and options.get("padding_mode") == "reflect":
        options = {**options, "padding_mode": "circular"}
    options = {k: v * dims if isinstance(v, tuple) else v for k, v in options.items()}
    conv = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[dims - 1]
    groups = options.get("groups", 1)
    net = nn.Sequential(conv(4, 4, 3, padding=1, groups=groups), conv(4, 4, 3, **options))
    tied = check(net, Rule("1", "0", torch.neg), torch.randn(2, 4, *[7] * dims))
    assert not tied.graph.find_nodes(op="call_module", target="1")


@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize("output_size", [False, True])
def test_transposed_convs(dims, output_size):
    conv = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)[dims - 1]

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = conv(4, 4, 3), conv(4, 4, 3, stride=2, groups=1)

        def forward(self, x):
            x = self.a(x)
            return self.b(x, output_size=[14] * dims) if output_size else self.b(x)

    check(Net(), Rule("b", "a", lambda w: w.flip(0)), torch.randn(2, 4, *[4] * dims))


class OwnForward(nn.Conv2d):
    """Weight standardisation in a forward of its own, as many labs have it."""

    def forward(self, x):
        w = self.weight
        w = (w - w.mean((1, 2, 3), keepdim=True)) / (w.std((1, 2, 3), keepdim=True) + 1e-5)
        return F.conv2d(x, w, self.bias, self.stride, self.padding)


LAYERS = {
    "linear": (lambda: nn.Linear(6, 6), (3, 6), {"weight": torch.neg}),
    "linear without bias": (lambda: nn.Linear(6, 6, bias=False), (3, 6), {"weight": torch.neg}),
    "layer norm": (lambda: nn.LayerNorm(6), (3, 6), {"weight": lambda w: w + 1}),
    "group norm": (lambda: nn.GroupNorm(2, 6), (3, 6, 4), {"weight": lambda w: w + 1}),
    "batch norm 1d": (lambda: nn.BatchNorm1d(6), (5, 6), {"weight": lambda w: w + 1}),
    "batch norm 2d": (lambda: nn.BatchNorm2d(6), (5, 6, 3, 3), {"weight": lambda w: w + 1}),
    "batch norm 3d": (lambda: nn.BatchNorm3d(6), (5, 6, 2, 2, 2), {"weight": lambda w: w + 1}),
    "cumulative average": (lambda: nn.BatchNorm2d(6, momentum=None), (5, 6, 3, 3), {}),
    "prelu": (lambda: nn.PReLU(6), (3, 6), {"weight": torch.neg, "bias": None}),
    "own forward": (lambda: OwnForward(6, 6, 1), (3, 6, 4, 4), {"weight": torch.square}),
    "bilinear": (lambda: nn.Bilinear(6, 6, 6), None, {"weight": torch.neg}),
}


@pytest.mark.parametrize("kind", LAYERS)
def test_layers_as_targets(kind):
    make, shape, options = LAYERS[kind]

    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = make(), make()

        def forward(self, x):
            return self.b(x, self.a(x, x)) if shape is None else self.b(self.a(x))

    check(Twice(), Rule("b", "a", **options), torch.randn(shape or (3, 6)))


def test_embedding():
    net = nn.Sequential(nn.Embedding(10, 6), nn.Linear(6, 10, bias=False))
    tied = check(net, Rule("1.weight", "0.weight"), torch.randint(10, (3, 4)))
    assert list(tied.state_dict()) == ["0.weight"]
    pair = nn.ModuleList([nn.Embedding(10, 6), nn.Embedding(10, 6)])

    class Sum(nn.Module):
        def __init__(self):
            super().__init__()
            self.tables = pair

        def forward(self, tokens):
            return self.tables[0](tokens) + 2 * self.tables[1](tokens)

    check(Sum(), Rule("tables.1", "tables.0", lambda w: w.flip(0)), torch.randint(10, (3, 4)))


def test_multihead_attention_as_target_and_as_parent():
    flip = transforms.flip(0)
    rules = [
        Rule("b", "a", in_proj_weight=flip, in_proj_bias=torch.neg, exclude="b.out_proj"),
        Rule("b.out_proj", "a.out_proj", flip, torch.neg),
    ]
    check(Attention(), rules, torch.randn(2, 3, 8))


def test_recurrent_layers():
    tensors = dict.fromkeys(["weight_ih_l0", "weight_hh_l0", "bias_ih_l0"], torch.neg)
    tied = check(TwoLSTMs(), Rule("b", "a", **tensors), torch.randn(3, 2, 4))
    again = copy.deepcopy(tied)
    x = torch.randn(3, 2, 4)
    assert torch.equal(again(x), tied(x))


class Chain(nn.Module):
    """A model with what is awkward: calls twice, aliases, lists, direct reads, options, dropout."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Linear(6, 6)
        self.blocks = nn.Sequential(
            *(nn.Sequential(nn.Linear(6, 6), nn.Dropout(0.2), nn.Tanh()) for _ in range(4))
        )
        self.again = self.blocks[1]
        self.listed = [self.blocks[2]]
        self.head = nn.Linear(6, 6)
        self.scale = nn.Parameter(torch.rand(6) + 0.5)
        self.shift = nn.Parameter(torch.rand(6) + 0.5)
        self.register_buffer("offset", torch.rand(6))

    def forward(self, x, mask=None, *, gain=1.0):
        if mask is not None:
            x = x * mask
        x = self.stem(x) * self.scale + self.shift
        for block in self.blocks[:2]:
            x = block(x)
        x = self.listed[0](self.again(x)) * gain
        return F.linear(x, self.head.weight) + self.offset


CHAIN_RULES = [
    Rule("blocks.*.0", "blocks.0.0", torch.neg),
    Rule("blocks.0.0", "stem", lambda w: w.flip(0)),
    Rule("shift", "scale", lambda s: s + 1),
    Rule("head.weight", ("stem.weight", "blocks.3.0.weight"), lambda a, b: a - 2 * b),
]


@pytest.mark.parametrize("given", ["nothing", "mask", "gain"])
def test_awkward_models(given):
    kwargs = {"nothing": {}, "mask": {"mask": torch.randn(6)}, "gain": {"gain": 2.0}}[given]
    tied = check(Chain(), CHAIN_RULES, torch.randn(4, 6), **kwargs)
    assert isinstance(tied, fx.GraphModule)


def test_an_optional_argument_can_be_given_by_position():
    net = Chain().eval()
    tied = fxtie.transform(net, Rule("head", "stem"))
    x, mask = torch.randn(4, 6), torch.randn(6)
    assert torch.equal(tied(x, mask), tied(x, mask=mask))
    assert not torch.equal(tied(x, mask), tied(x))


def test_buffers_are_sources():
    check(Chain(), Rule("shift", "offset", lambda b: b * 3), torch.randn(4, 6))


def test_parametrized_sources():
    net = nn.Sequential(*(nn.Linear(6, 6) for _ in range(3)))
    nn.utils.parametrizations.weight_norm(net[0])
    tied = check(net, [Rule("1", "0", torch.neg), Rule("2", "1")], torch.randn(4, 6))
    assert "0.parametrizations.weight.original0" in tied.state_dict()


def test_one_parameter_under_two_names():
    net = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 6))
    net[2].weight = net[1].weight
    tied = check(net, Rule("1.weight", "0.weight", torch.neg), torch.randn(4, 6))
    assert "2.weight" in tied.state_dict()
    assert tied.get_parameter("2.weight") is net[1].weight


def test_self_derived():
    standardize = transforms.standardize()
    net = nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Conv2d(6, 6, 3))
    tied = check(net, Rule("**", "{0}", standardize), torch.randn(2, 3, 8, 8))
    assert list(tied.state_dict()) == list(net.state_dict())
    assert torch.equal(tied[0].weight, standardize(net[0].weight))


class MakesTensors(nn.Module):
    """Constants that a stock trace would fold."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(6, 6), nn.Linear(6, 6)
        self.plain = torch.rand(6)
        self.register_buffer("steps", torch.zeros(()))

    def forward(self, x):
        self.steps.add_(1)
        noise = torch.rand(6) + torch.arange(6) * self.plain
        return nn.Softmax(1)(self.b(self.a(x) + noise) * self.steps)


def test_constants_made_in_a_forward_are_made_at_each_call():
    net = MakesTensors()
    tied = check(net, Rule("b", "a", torch.neg), torch.randn(4, 6))
    assert net.steps == 0
    x = torch.randn(4, 6)
    assert not torch.equal(tied(x), tied(x))


class Nested(nn.Module):
    """Dict in, dataclass-like dict out."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(6, 6), nn.Linear(6, 6)

    def forward(self, batch, *rest, **named):
        y = self.b(self.a(batch["x"]))
        return {"y": y, "list": [y + 1, (y * 2,)]}


def test_dict_inputs_and_nested_outputs():
    check(Nested(), Rule("b", "a", torch.neg), {"x": torch.randn(4, 6)})


@dataclasses.dataclass
class Output:
    y: torch.Tensor
    rest: list[torch.Tensor]


Pair = collections.namedtuple("Pair", ["first", "second"])


class Structured(nn.Module):
    def __init__(self, kind):
        super().__init__()
        self.kind = kind
        self.a, self.b = nn.Linear(6, 6), nn.Linear(6, 6)

    def forward(self, x):
        y = self.b(self.a(x))
        return {
            "dataclass": lambda: Output(y, [y + 1]),
            "namedtuple": lambda: Pair(y, y * 2),
            "ordered": lambda: collections.OrderedDict(z=y, a=y - 1),
            "tuple": lambda: (y, None, 3),
        }[self.kind]()


@pytest.mark.parametrize("kind", ["dataclass", "namedtuple", "ordered", "tuple"])
def test_structured_outputs_keep_their_class(kind):
    tied = check(Structured(kind), Rule("b", "a", torch.neg), torch.randn(4, 6))
    assert isinstance(tied, fx.GraphModule)


class Listed(nn.Module):
    def __init__(self):
        super().__init__()
        self.weights = nn.ParameterList(torch.randn(6, 6) for _ in range(3))
        self.named = nn.ParameterDict({"gain": torch.randn(6), "shift": torch.randn(6)})

    def forward(self, x):
        for weight in self.weights:
            x = torch.tanh(x @ weight)
        return x * self.named["gain"] + self.named["shift"]


def test_parameter_lists_and_dicts():
    rules = [
        Rule("weights.*", "weights.0", transforms.flip(0)),
        Rule("named.shift", "named.gain", torch.neg),
    ]
    tied = check(Listed(), rules, torch.randn(4, 6))
    assert list(tied.state_dict()) == ["weights.0", "named.gain"]
    assert isinstance(tied, fx.GraphModule)


def test_none_and_type_tests_of_arguments():
    net, x = Branches(), torch.randn(4, 6)
    tied = check(net, Rule("b", "a", torch.neg), x, torch.randn(4, 6))
    assert isinstance(tied, fx.GraphModule)
    check(net, Rule("b", "a", torch.neg), x, None)
    with pytest.raises((AssertionError, RuntimeError)):
        tied(torch.randn(4, 5), torch.randn(4, 5))


def test_the_model_is_untouched_and_independent_of_mode():
    net = Frozen().eval()
    before = {name: dict(vars(m)) for name, m in net.named_modules()}
    tied = fxtie.transform(net, [Rule("norms.1", "norms.0"), Rule("tail", "head")])
    for name, module in net.named_modules():
        assert vars(module) == before[name] and not isinstance(module, PathCopy)
    tied.train()
    assert not net.norms[1].training and not net.tail.training and not net.training


class Around(nn.Module):
    """No graph holds its forward."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        return self.inner(x) if x.sum() < 1e9 else x


@pytest.mark.parametrize("prefix", ["", "inner."], ids=["captured", "kept root"])
@pytest.mark.parametrize(
    ("target", "source", "changed"), [("2", "0", ["2"]), ("0", "2", ["0", "1"])]
)
def test_a_tied_model_is_tied_again(target, source, changed, prefix):
    """As by all rules at once: both derivations stand in the graph, what is new in the diff."""
    net = nn.Sequential(*(nn.Linear(4, 4) for _ in range(3)))
    if prefix:
        net = Around(net)
    one = Rule(f"{prefix}1", f"{prefix}0", weight=torch.sin, bias=None)
    two = Rule(f"{prefix}{target}", f"{prefix}{source}", weight=torch.cos, bias=None)
    first = fxtie.transform(net, one)
    before = set(first.state_dict())
    again = fxtie.transform(first, two)
    ties = fxtie.plan(net, [one, two]).ties
    for train in (False, True):
        assert_tied_equals_oracle(net, again, ties, (torch.randn(2, 4),), train=train)
    (region,) = (m for m in again.modules() if isinstance(m, fx.GraphModule))
    targets = [node.target for node in region.graph.nodes]
    assert targets.count(torch.sin) == targets.count(torch.cos) == 1
    assert set(first.state_dict()) == before
    assert list(again.state_dict()) == list(fxtie.transform(net, [one, two]).state_dict())
    (diff,) = fxtie.diff(first, again).regions
    layers = [layer.name for layer in diff.layers if layer.changed]
    assert layers == [f"{prefix}{name}" for name in changed]


def test_learnable_transforms_are_registered_trained_and_shared():
    net = nn.Sequential(*(nn.Linear(6, 6) for _ in range(3)))
    shared = transforms.LowRank(2).for_target(net[1].weight)
    with torch.no_grad():
        for p in shared.parameters():
            p.normal_()
    tied = check(net, Rule("*", "0", shared), torch.randn(4, 6))
    learned = [name for name, _ in tied.named_parameters() if name.startswith("ties.")]
    assert len(learned) == len(list(shared.parameters()))
    tied(torch.randn(4, 6)).sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in shared.parameters())


def test_a_bank_of_templates_and_a_rule_without_source():
    net = nn.Sequential(*(nn.Linear(6, 6) for _ in range(3)))
    bank = fxtie.Bank(2, (6, 6))
    rules = [
        Rule("0", bank, lambda a, b: a - b, bias=None),
        Rule("1", bank, lambda a, b: a + 2 * b, bias=None),
        Rule("2.weight", None, lambda: torch.eye(6)),
    ]
    tied = fxtie.transform(net, rules)
    assert {n for n, _ in tied.named_parameters() if "ties" in n} == {
        "ties.bank.templates.0",
        "ties.bank.templates.1",
    }
    x = torch.randn(4, 6)
    a, b = bank.templates
    expected = F.linear(F.linear(x, a - b, net[0].bias), a + 2 * b, net[1].bias) + net[2].bias
    assert torch.equal(tied(x), expected)


def test_tying_under_inference_mode():
    model = Two()
    with torch.inference_mode():
        tied = fxtie.transform(model, Rule("b", "a", weight=torch.square))
    plan = fxtie.report(tied).plan
    assert_tied_equals_oracle(model, tied, plan.ties, (torch.randn(3, 4),), train=True)


@pytest.mark.parametrize("make", [Two, Kept])
def test_a_target_without_sources(make):
    tied = fxtie.transform(make(), Rule("b.weight", None, lambda: torch.full((4, 4), 0.5)))
    x = torch.randn(3, 4)
    assert torch.equal(tied.b.weight, torch.full((4, 4), 0.5))
    shift = x.mean() if make is Kept else 0
    torch.testing.assert_close(tied(x), F.linear(tied.a(x), tied.b.weight, tied.b.bias) + shift)


@pytest.mark.parametrize("trace", [True, False])
def test_untraced(trace):
    model = nn.Sequential(Two(), Kept())
    rules = [Rule("0.b", "0.a", weight=torch.square), Rule("1.b", "0.a", weight=torch.neg)]
    tied = fxtie.transform(model, rules, trace=trace)
    report = fxtie.report(tied)
    assert (report.regions > 0) == trace and report.ties == 4
    assert isinstance(tied, nn.Sequential) and isinstance(tied[0], Two)
    assert isinstance(tied, torch.fx.GraphModule) == trace
    for train in (True, False):
        assert_tied_equals_oracle(model, tied, report.plan.ties, (torch.randn(3, 4),), train=train)
