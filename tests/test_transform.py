"""The pass on every layer type, geometry and form of model, against the oracle."""

import collections
import copy
import dataclasses
import functools
import gc
import io
import warnings
import weakref

import pytest
import torch
import torch.nn.functional as F
from models import Branches
from oracle import assert_tied_equals_oracle
from torch import fx, nn

import fxtie
from fxtie import Rule, Tie, transforms
from fxtie.tied.path_copy import PathCopy


def check(model, rules, *args, **kwargs):
    """Tie, and compare with the oracle in both modes. Returns the tied model."""
    plan = fxtie.plan(model, rules)
    tied = fxtie.transform(model, plan)
    for train in (False, True):
        assert_tied_equals_oracle(model, tied, plan.ties, args, kwargs, train=train)
    if isinstance(tied, fx.GraphModule):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            tied.graph.lint()
    return tied


class TwoConvs(nn.Module):
    def __init__(self, out: int = 32) -> None:
        super().__init__()
        self.conv_1 = nn.Conv2d(16, 32, 3, padding=1)
        self.down = nn.AvgPool3d((2, 1, 1))
        channels = 16 if out == 32 else 32
        self.conv_2 = nn.Conv2d(channels, out, 3, padding=1)

    def forward(self, x):
        x = self.conv_1(x).relu()
        if self.conv_2.in_channels == 16:
            x = self.down(x)
        return self.conv_2(x)


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


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = nn.MultiheadAttention(8, 2, batch_first=True)
        self.b = nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, x):
        return self.b(*[self.a(x, x, x)[0]] * 3)[0]


def test_multihead_attention_as_target_and_as_parent():
    flip = transforms.flip(0)
    rules = [
        Rule("b", "a", in_proj_weight=flip, in_proj_bias=torch.neg),
        Rule("b.out_proj", "a.out_proj", flip, torch.neg),
    ]
    check(Attention(), rules, torch.randn(2, 3, 8))


class TwoLSTMs(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.LSTM(4, 4), nn.LSTM(4, 4)

    def forward(self, x):
        return self.b(self.a(x)[0])[0]


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


class UntraceableRoot(nn.Module):
    """Control flow on values, methods and attributes of its own."""

    kind = "untraceable"

    def __init__(self):
        super().__init__()
        self.a = nn.Linear(6, 6)
        self.b = nn.Sequential(nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 6))

    def forward(self, x):
        if x.sum() > 0:
            return self.b(self.a(x))
        return self.predict(x)

    def predict(self, x):
        for layer in self.b:
            x = layer(x)
        return self.a(x)


@pytest.mark.parametrize("sign", [1, -1])
def test_an_untraceable_root_is_kept(sign):
    net = UntraceableRoot()
    rules = Rule("b.*", "a", transforms.flip(0))
    tied = check(net, rules, sign * torch.rand(4, 6))
    assert isinstance(tied, UntraceableRoot) and not isinstance(tied, fx.GraphModule)
    assert isinstance(tied.b, fx.GraphModule) and isinstance(tied.b, nn.Sequential)
    assert tied.kind == "untraceable" and len(tied.b) == 3
    (kept,) = fxtie.report(tied).kept
    assert kept.name == "" and kept.file == __file__ and "branches on" in kept.reason
    with pytest.raises(fxtie.CaptureError, match=r"test_transform\.py:"):
        fxtie.transform(net, rules, strict=True)


class UntraceableTarget(nn.Linear):
    def forward(self, x):
        y = super().forward(x)
        return y if y.sum() > 0 else -2 * y


def test_an_untraceable_target_is_called_with_its_derived_tensors():
    net = nn.Sequential(nn.Linear(6, 6), UntraceableTarget(6, 6), nn.Linear(6, 6))
    rules = [Rule("1", "0", torch.neg), Rule("2", "1", torch.neg)]
    tied = check(net, rules, torch.randn(4, 6))
    assert isinstance(tied, fx.GraphModule)
    assert [k.name for k in fxtie.report(tied).kept] == ["1"]


class UsesContext(nn.Module):
    def __init__(self, context):
        super().__init__()
        self.context = context
        self.inner, self.outer = nn.Linear(6, 6), nn.Linear(6, 6)

    def forward(self, x):
        if self.context == "no_grad":
            with torch.no_grad():
                x = self.inner(x)
        elif self.context == "autocast":
            with torch.autocast("cpu", torch.bfloat16):
                x = self.inner(x)
        elif self.context == "checkpoint":
            x = torch.utils.checkpoint.checkpoint(self.inner, x, use_reentrant=False)
        elif self.context == "is_grad_enabled":
            x = self.inner(x) if torch.is_grad_enabled() else -self.inner(x)
        elif self.context == "random":
            import random

            x = self.inner(x) if random.random() < 0.5 else -self.inner(x)
        elif self.context == "writes":
            self.last = x
            x = self.inner(x)
        else:
            x = self.inner(x)
        return self.outer(x.float())


CONTEXTS = ["no_grad", "autocast", "checkpoint", "is_grad_enabled", "random", "writes"]


@pytest.mark.parametrize("context", CONTEXTS)
def test_what_a_graph_cannot_say_is_kept(context):
    net = nn.Sequential(nn.Linear(6, 6), UsesContext(context))
    x = torch.randn(4, 6)
    rules = [Rule("1.inner", "0", torch.neg), Rule("1.outer", "0", transforms.flip(0))]
    if context == "checkpoint":  # the oracle's own recomputation would not see its swapped tensors
        tied = fxtie.transform(net, rules)
        plain = nn.Sequential(net[0], UsesContext("nothing"))
        plain.load_state_dict(net.state_dict())
        ties = fxtie.plan(plain, rules).ties
        assert_tied_equals_oracle(plain, tied, ties, (x,), train=True)
    else:
        tied = check(net, rules, x)
    # Whether gradients are enabled is a question whose answer a guard can check.
    assert [k.name for k in fxtie.report(tied).kept] == ["1"] * (context != "is_grad_enabled")
    assert "last" not in vars(net[1])
    if context == "writes":
        tied(x)
        assert isinstance(tied[1].last, torch.Tensor)


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


class Hooked(nn.Module):
    def __init__(self):
        super().__init__()
        self.calls = []
        self.block = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 6))
        self.block.register_forward_hook(lambda *args: self.calls.append("block"))
        self.register_forward_pre_hook(lambda *args: self.calls.append("root"))

    def forward(self, x):
        return self.block(x)


def test_hooks_run_once_per_call():
    net = Hooked()
    tied = fxtie.transform(net, Rule("block.1", "block.0", torch.neg))
    assert net.calls == []
    tied(torch.randn(2, 6))
    assert tied.calls == ["root", "block"]
    assert tied.calls is net.calls, "what holds no module of the path is the model's own"


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


class Chooses(nn.Linear):
    """Chooses one of its methods as its forward, as some architectures do."""

    def __init__(self, *args):
        super().__init__(*args)
        self.forward = self.forward_doubled

    def forward_doubled(self, x):
        return F.linear(x, self.weight * 2, self.bias)


def test_a_forward_that_is_chosen_on_the_instance():
    net = nn.Sequential(nn.Linear(6, 6), Chooses(6, 6), nn.Sequential(Chooses(6, 6)))
    tied = check(net, Rule("re:1|2.0", "0", torch.neg), torch.randn(4, 6))
    assert not fxtie.report(tied).kept
    check(Chooses(6, 6), Rule("weight", "weight", torch.neg), torch.randn(4, 6))
    foreign = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 6))
    foreign[1].forward = functools.partial(F.linear, weight=foreign[1].weight)
    tied = fxtie.transform(foreign, Rule("1.bias", "0.bias"))
    assert [k.name for k in fxtie.report(tied).kept] == ["1"]


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


class Frozen(nn.Module):
    def __init__(self):
        super().__init__()
        self.norms = nn.Sequential(nn.BatchNorm1d(6), nn.BatchNorm1d(6), nn.Dropout(0.5))
        self.head = nn.Linear(6, 6)
        self.tail = nn.Linear(6, 6)

    def forward(self, x):
        x = F.dropout(self.norms(x), 0.3, self.training)
        return self.tail(self.head(x))


@pytest.mark.parametrize("frozen", ["", "norms", "norms.1", "norms.2"])
def test_training_flags_of_parts_are_honoured(frozen):
    net = Frozen()
    rules = [Rule("norms.1", "norms.0"), Rule("tail", "head", torch.neg)]
    plan = fxtie.plan(net, rules)
    tied = fxtie.transform(net, plan)
    x = torch.randn(8, 6)
    for model in (net, tied):
        model.train()
        model.get_submodule(frozen).eval()
    assert_tied_equals_oracle(net, tied, plan.ties, (x,), train=None)


def test_one_graph_where_both_modes_agree():
    tied = fxtie.transform(TwoConvs(), Rule("conv_2", "conv_1"))
    assert tied.train().graph is tied.eval().graph
    tied = fxtie.transform(Frozen(), Rule("norms.1", "norms.0"))
    assert tied.train().graph is not tied.eval().graph


# Lambdas inside of others on one line have no source code that is sure to be theirs in Python 3.10.
DOUBLED = Rule("norms.1", "norms.0", lambda w: w * 2)
LESSENED = Rule("head", "head", lambda w: w - 1)
FORMS = {
    "captured": lambda: (TwoConvs(), Rule("conv_2", "conv_1", torch.square), (2, 16, 8, 8)),
    "kept root": lambda: (UntraceableRoot(), Rule("b.*", "a", torch.neg), (4, 6)),
    "modes": lambda: (Frozen(), DOUBLED, (8, 6)),
    "self": lambda: (Frozen(), LESSENED, (8, 6)),
    "learnable": lambda: (Frozen(), Rule("tail", "head", transforms.LowRank(2)), (8, 6)),
    "learnable, kept": lambda: (UntraceableRoot(), Rule("b.0", "a", transforms.LowRank(2)), (4, 6)),
}


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


def test_the_model_is_untouched_and_independent_of_mode():
    net = Frozen().eval()
    before = {name: dict(vars(m)) for name, m in net.named_modules()}
    tied = fxtie.transform(net, [Rule("norms.1", "norms.0"), Rule("tail", "head")])
    for name, module in net.named_modules():
        assert vars(module) == before[name] and not isinstance(module, PathCopy)
    tied.train()
    assert not net.norms[1].training and not net.tail.training and not net.training


def test_a_source_can_be_replaced_without_the_original():
    """Sources have modules of their own: a new tensor in one reaches its targets, and no other."""
    net = TwoConvs()
    before = net.conv_1.weight
    tied = fxtie.transform(net, Rule("conv_2", "conv_1", torch.square))
    assert type(tied.conv_1) is not nn.Conv2d and isinstance(tied.conv_1, nn.Conv2d)
    tied.conv_1.weight = nn.Parameter(torch.ones_like(before))
    assert net.conv_1.weight is before
    assert torch.equal(tied.conv_2.weight, torch.ones_like(before))


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
    (diff,) = fxtie.diff(first, again).regions
    layers = [layer.name for layer in diff.layers if layer.changed]
    assert layers == [f"{prefix}{name}" for name in changed]


def test_a_transform_that_fails_is_told():
    """Not as a model that has no such attribute, which is what Python makes of it."""

    def fragile(weight):
        return weight * (2 if weight.sum() < 1e9 else weight.nonsense)

    net = TwoConvs()
    tied = fxtie.transform(net, Rule("conv_2", "conv_1", fragile))
    nn.init.constant_(net.conv_1.weight, 1e9)
    with pytest.raises(fxtie.FxtieError, match=r"'conv_2\.weight' can't be derived: .*nonsense"):
        tied.conv_2.weight  # noqa: B018


class Wrapper(nn.Module):
    """Has the attributes of what it wraps, as adapters often do."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def __getattr__(self, name):
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("inner"), name)

    def forward(self, x):
        return 2 * self.inner(x)


def test_a_wrapped_source_is_copied_as_a_whole():
    net = nn.Sequential(Wrapper(nn.Linear(4, 4)), nn.Linear(4, 4))
    tied = fxtie.transform(net, Rule("1.weight", "0.inner.weight", torch.sin))
    x = torch.randn(2, 4)
    for other in (copy.deepcopy(tied), copy.copy(tied)):
        assert list(other.state_dict()) == list(tied.state_dict())
        assert torch.equal(other(x), tied(x))


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


def test_equal_derivations_are_computed_once():
    net = nn.Sequential(*(nn.Linear(6, 6) for _ in range(5)))
    tied = check(net, Rule("*", "0", transforms.scale(-1.5)), torch.randn(4, 6))
    assert sum("derived" in node.meta for node in tied.graph.nodes) == 1
    tied = check(net, [Rule("1", "0", torch.neg), Rule("2", "0", torch.neg)], torch.randn(4, 6))
    assert len(tied.graph.find_nodes(op="call_function", target=torch.neg)) == 1


def test_a_module_called_twice_derives_once():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(6, 6), nn.Linear(6, 6)

        def forward(self, x):
            return self.b(self.a(self.b(x)))

    tied = check(Net(), Rule("b", "a", torch.neg), torch.randn(4, 6))
    assert len(tied.graph.find_nodes(op="call_function", target=torch.neg)) == 1


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


def test_an_opaque_transform_is_called():
    def branching(w):
        return w if w.sum() > 0 else -w

    net = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 6))
    tied = check(net, Rule("1", "0", branching), torch.randn(4, 6))
    assert any("branching" in str(n.name) or n.name == "_1_weight" for n in tied.graph.nodes)


def test_transforms_that_make_random_numbers_make_them_at_each_call():
    net = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 6))
    tied = check(net, Rule("1", "0", lambda w: w + torch.rand(6)), torch.randn(4, 6))
    x = torch.randn(4, 6)
    assert not torch.equal(tied(x), tied(x))


def test_unused_targets_are_told():
    net = TwoConvs()
    net.aux = nn.Conv2d(16, 32, 3)
    tied = fxtie.transform(net, [Rule("conv_2", "conv_1"), Rule("aux", "conv_1", torch.neg)])
    assert fxtie.report(tied).unused == ("aux.weight", "aux.bias")
    assert "aux.weight" not in tied.state_dict()


def test_a_tied_model_can_be_tied_again():
    net = nn.Sequential(*(nn.Linear(6, 6) for _ in range(4)))
    once = fxtie.transform(net, Rule("1", "0", torch.neg))
    twice = fxtie.transform(once, Rule("3", "2", torch.neg))
    x = torch.randn(4, 6)
    both = fxtie.transform(net, [Rule("1", "0", torch.neg), Rule("3", "2", torch.neg)])
    assert torch.equal(twice(x), both(x))
    assert list(twice.state_dict()) == list(both.state_dict())


def test_members_that_clash_with_graph_module():
    net = nn.ModuleDict({"a": nn.Linear(6, 6), "code": nn.Linear(6, 6)})

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.graph, self.code = nn.Linear(6, 6), nn.Linear(6, 6)

        def forward(self, x):
            return self.code(self.graph(x))

    del net
    tied = check(Net(), Rule("code", "graph", torch.neg), torch.randn(4, 6))
    assert "code, graph" in fxtie.report(tied).kept[0].reason


def test_provenance_points_at_the_users_line():
    tied = fxtie.transform(TwoConvs(), Rule("conv_2", "conv_1", torch.square))
    (square,) = tied.graph.find_nodes(op="call_function", target=torch.square)
    assert square.meta["tie"] == "conv_2.weight"
    assert list(square.meta["nn_module_stack"].values())[-1] == ("conv_2", nn.Conv2d)
    assert __file__ in square.meta["stack_trace"] and "conv_2(x)" in square.meta["stack_trace"]


@pytest.mark.parametrize("form", FORMS)
def test_compiles(form):
    net, rules, shape = FORMS[form]()
    tied = fxtie.transform(net, rules, compile={"backend": "aot_eager"}).eval()
    x = torch.randn(shape)
    torch.testing.assert_close(tied(x), tied._orig_mod(x))
