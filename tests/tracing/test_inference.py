"""What is surely a tensor, and what may share its storage."""

import operator

import einops
import pytest
import torch
import torch.nn.functional as F
from compared import check, model
from elsewhere import Two
from torch import fx, nn

import fxtie
from fxtie.tracing.inference import Aliases, is_tensor


class Sequence(Two):
    def __init__(self):
        super().__init__()
        self.sequence = nn.Sequential(nn.Linear(4, 4), nn.Tanh())

    def forward(self, x):
        x = self.sequence(self.b(self.a(x)))
        return x[0] if isinstance(x, tuple) else x


class Several(nn.Module):
    def forward(self, x):
        return x * 2, x


def hook_of_several(model):
    model.sequence[1].register_forward_hook(lambda module, args, output: (output, output))


@pytest.mark.parametrize(
    "change",
    [
        lambda model: model.sequence.append(Several()),
        lambda model: setattr(model.sequence, "1", Several()),
        lambda model: setattr(model.sequence[1], "__class__", Several),
        hook_of_several,
    ],
)
def test_a_sequence_that_gives_something_else(change):
    check(Sequence, "graph", change=change)


class Triples(nn.Module):
    def forward(self, weight):
        return weight.mul_(3)


class Doubles(nn.Module):
    def forward(self, weight):
        return weight * 2


def hands_on_a_derived_tensor(self, x):
    weight = self.part(self.b.weight)
    return F.linear(x, weight) + F.linear(x, self.b.weight)


@pytest.mark.parametrize(
    ("part", "expected"),
    [
        (lambda: nn.Hardtanh(-0.01, 0.01, inplace=True), "kept"),
        (Triples, "kept"),
        (Doubles, "graph"),
        (nn.Tanh, "graph"),
    ],
)
def test_a_derived_tensor_that_a_part_gets(part, expected):
    check(model(hands_on_a_derived_tensor, part=part), expected)


@torch.library.custom_op("fxtie_tests::triple", mutates_args={"weight"})
def triple(weight: torch.Tensor) -> None:
    weight.mul_(3)


def changes_by_an_operator(self, x):
    weight = self.b.weight.detach()
    torch.ops.fxtie_tests.triple(weight)
    return F.linear(x, weight) + F.linear(x, self.b.weight)


def test_an_operator_that_says_what_it_changes():
    check(model(changes_by_an_operator), "kept")


@torch.library.custom_op("fxtie_tests::square", mutates_args=())
def square(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return x * 2, x * 3


def asks_what_it_gives(self, x):
    y = torch.ops.fxtie_tests.square((self.b(self.a(x))).detach())
    return y if isinstance(y, torch.Tensor) else y[1]


def test_an_operator_named_as_one_of_torchs():
    check(model(asks_what_it_gives), "kept")


LAYERS = nn.ModuleDict(
    {
        "fc": nn.Linear(4, 4),
        "rnn": nn.LSTM(4, 4),
        "same": nn.Identity(),
        "stack": nn.Sequential(nn.LSTM(4, 4), nn.Tanh()),
        "pair": nn.Sequential(nn.Tanh(), nn.LSTM(4, 4)),
    }
)


def calls(kind, target, *more):
    return lambda graph, x: getattr(graph, f"call_{kind}")(target, (x, *more))


@pytest.mark.parametrize(
    ("make", "is_one"),
    [
        (lambda graph, x: x, True),
        (lambda graph, x: graph.placeholder("other"), False),
        (lambda graph, x: graph.placeholder("*args"), False),
        (calls("module", "fc"), True),
        (calls("module", "rnn"), False),
        (calls("module", "same"), True),
        (calls("module", "stack"), True),
        (calls("module", "pair"), False),
        (calls("method", "relu"), True),
        (calls("method", "chunk", 2), False),
        (calls("function", torch.relu), True),
        (calls("function", torch.tanh), True),
        (calls("function", torch.ops.aten.tanh), False),
        (calls("function", torch.ops.aten.relu), True),
        (calls("method", "float"), True),
        (calls("function", einops.rearrange, "a b -> b a"), True),
        (lambda graph, x: graph.call_function(einops.rearrange, ([x], "a b c -> b a c")), False),
        (calls("function", einops.pack, "* b"), False),
        (calls("function", torch.max), False),
        (calls("function", operator.add, 1), True),
        (calls("function", operator.mod, 1), False),
        (calls("function", operator.getitem, 0), False),
        (calls("function", torch.ops.fxtie_tests.square.default), False),
    ],
)
def test_what_is_surely_a_tensor(make, is_one):
    graph = fx.Graph()
    node = make(graph, graph.placeholder("x"))
    assert is_tensor(node, LAYERS.get_submodule, lambda n: n.target != "other") == is_one


def test_what_may_share_storage():
    graph = fx.Graph()
    x, w = graph.placeholder("x"), graph.get_attr("fc.weight")
    view = graph.call_method("view", (x, -1))
    total = graph.call_function(torch.add, (view, w))
    made, same = graph.call_module("fc", (view,)), graph.call_module("same", (view,))
    aliases = Aliases(LAYERS)
    assert [*map(len, (aliases.of([view]), aliases.of([view, w]), aliases.of([])))] == [1, 2, 0]
    assert [aliases.of([node]) for node in (total, made, same)] == [set(), set(), {x}]


@torch.fx.wrap
def positive(x):
    return x


def gets_it_from_a_function(self, x):
    weight = positive(self.b.weight.detach())
    weight.mul_(3)
    return F.linear(x, weight) + F.linear(x, self.b.weight)


def gets_a_view_of_it(self, x):
    weight = einops.repeat(self.b.weight.detach(), "i j -> 1 i j")
    weight.mul_(3)
    return F.linear(x, weight[0]) + F.linear(x, self.b.weight)


def gets_it_from_a_list(self, x):
    weights = self.b.weight.detach().chunk(2) + self.a.weight.detach().chunk(2)
    weights[0].mul_(3)
    return F.linear(x, weights[0]).sum() + F.linear(x, self.b.weight)


def gets_it_as_the_greater(self, x):
    bias = max(self.b.bias.detach()[:1], torch.full((1,), -9.0))
    bias.mul_(3)
    return x * bias + F.linear(x, self.b.weight, self.b.bias)


@pytest.mark.parametrize(
    "forward",
    [gets_it_from_a_function, gets_a_view_of_it, gets_it_from_a_list, gets_it_as_the_greater],
)
def test_a_derived_tensor_that_a_function_gives_back(forward):
    rule = fxtie.Rule("b", "a", weight=torch.square, bias=torch.neg)
    check(model(forward), "kept", rule=rule)


def adds_in_place(self, x):
    y = self.a(x) + self.b.bias
    y += 1
    return self.b(y)


def test_what_is_computed_of_a_derived_tensor_may_change():
    check(model(adds_in_place), "graph", rule=fxtie.Rule("b", "a", bias=torch.neg, weight=None))


class Projecting(Two):
    """Its projection owns a source, so that the tied model has a copy of it."""

    def __init__(self):
        super().__init__()
        self.project = nn.Sequential(nn.Identity(), nn.Linear(4, 4))

    def forward(self, x):
        shortcut = self.project(x)
        if shortcut is None:
            shortcut = x
        return self.b(self.a(x)) + shortcut.float().view(*x.shape)


def gives_none(model):
    model.project = nn.Sequential(Nothing())


class Nothing(nn.Module):
    def forward(self, x):
        return None


@pytest.mark.parametrize("change", [None, gives_none])
def test_what_a_copied_sequence_gives(change):
    rule = fxtie.Rule("b", "project.1", weight=torch.square)
    if change is not None:
        rule = fxtie.Rule("b", "a", weight=torch.square)
    check(Projecting, "graph", change=change, rule=rule)


class Odd:
    """A value that gives nothing when it is computed with."""

    def __mul__(self, other):
        return None

    def float(self):
        return None


def asks_whether_a_product_is_none(self, x, scale):
    scale = scale * 2
    return self.b(self.a(x)) * (3 if scale is None else scale)


def asks_whether_a_method_gives_none(self, x, scale):
    scale = scale.float()
    return self.b(self.a(x)) * (3 if scale is None else scale)


def asks_whether_a_rearranged_value_is_none(self, x, scale):
    scale = einops.rearrange(scale, "... -> ...")
    return self.b(self.a(x)) * (3 if scale is None else scale)


@pytest.mark.parametrize(
    "forward",
    [
        asks_whether_a_product_is_none,
        asks_whether_a_method_gives_none,
        asks_whether_a_rearranged_value_is_none,
    ],
)
def test_whether_what_is_computed_of_an_argument_is_none(forward):
    calls = [lambda: ((torch.randn(3, 4), torch.ones(4)), {})]
    if forward is not asks_whether_a_rearranged_value_is_none:
        calls.append(lambda: ((torch.randn(3, 4), Odd()), {}))
    check(model(forward), "graph", *calls)


class Part(nn.Module):
    """What it gives depends on what it reads."""

    def __init__(self):
        super().__init__()
        self.pair = False

    def forward(self, x):
        return (x.tanh(), x) if self.pair else torch.tanh(x)


class PartOfParts(Part):
    def __init__(self):
        super().__init__()
        self.inner = nn.Tanh()

    def forward(self, x):
        y = self.inner(x)
        return y * 2 if self.pair else y


class PartOfMode(Part):
    def forward(self, x):
        return (x, x) if self.training else x.tanh()


class PartThatTries(Part):
    def forward(self, x):
        try:
            return super().forward(x)
        except TypeError:
            return x, x


class PartOfArgument(Part):
    def forward(self, x):
        return x


def asks_what_a_part_gives(self, x):
    y = self.part(self.b(self.a(x)))
    return y[0] * 3 if isinstance(y, tuple) else y


def gives_a_pair(model):
    model.part.pair = True


def gives_a_pair_inside(model):
    model.part.inner = Several()


def hook_that_gives_a_pair(model):
    model.part.register_forward_hook(lambda module, args, output: (output, output))


@pytest.mark.parametrize(
    ("part", "change"),
    [
        (Part, gives_a_pair),
        (PartOfParts, gives_a_pair_inside),
        (Part, hook_that_gives_a_pair),
        (PartOfParts, hook_that_gives_a_pair),
    ],
)
def test_what_a_part_gives(part, change):
    check(model(asks_what_a_part_gives, part=part), "graph", change=change)


@pytest.mark.parametrize(
    ("part", "expected"), [(PartOfMode, "kept"), (PartThatTries, "kept"), (PartOfArgument, "graph")]
)
def test_parts_that_may_give_something_else(part, expected):
    check(model(asks_what_a_part_gives, part=part), expected)


class Turns(nn.Module):
    """Changes what another part gives."""

    def __init__(self, part):
        super().__init__()
        self.held = [part]

    def forward(self, x):
        self.held[0].pair = not self.held[0].pair
        return x


class Turned(Two):
    def __init__(self):
        super().__init__()
        self.part = Part()
        self.turns = Turns(self.part)

    def forward(self, x):
        return asks_what_a_part_gives(self, self.turns(x))


def test_a_part_that_another_part_changes():
    check(Turned, "kept")


class Pooled(Two):
    def __init__(self):
        super().__init__()
        self.pool = nn.MaxPool1d(1)

    def forward(self, x):
        y = self.pool(self.b(self.a(x))[None])
        return y[0] * 3 if isinstance(y, tuple) else y


def gives_indices(model):
    model.pool.return_indices = True


def test_a_pooling_that_gives_indices():
    check(Pooled, "graph", change=gives_indices)
