"""Convolutions that are done by one, and those that must not be."""

import copy
import functools
import operator
import pickle

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle import assert_tied_equals_oracle
from torch import nn

import fxtie
from fxtie import Rule

CONVS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
FUNCTIONS = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}


def flips(count, **tensors):
    return [
        Rule(f"c.{i}", "c.0", weight=functools.partial(flip, i), **tensors) for i in range(1, count)
    ]


def flip(i, weight):
    return weight.flip(-1) * i


class Doubled(nn.Module):
    def forward(self, x):
        return x.mul_(2)


class Bank(nn.Module):
    """Convolutions of one input, whose forward a test may set."""

    def __init__(self, convs, between=None):
        super().__init__()
        self.c = nn.ModuleList(convs)
        self.between = between

    def forward(self, x):
        outputs = []
        for conv in self.c:
            outputs.append(conv(x))
            if self.between is not None:
                outputs.append(self.between(x, outputs[-1]))
        return tuple(outputs)


def check(model, rules, x, *, exact=False, **options):
    """Tie, compare with the oracle in double precision. Returns the tied model."""
    model, x = model.double(), x.double()
    plan = fxtie.plan(model, rules)
    tied = fxtie.transform(model, plan, **options)
    for train in (True, False):
        assert_tied_equals_oracle(model, tied, plan.ties, (x,), train=train, exact=exact)
    fxtie.verify(model, tied, x)
    with torch.no_grad(), fxtie.derive_once(tied):
        torch.testing.assert_close(tied(x), fxtie.materialize(tied)(x))
    for same in (copy.deepcopy(tied), pickle.loads(pickle.dumps(tied))):
        torch.testing.assert_close(same(x), tied(x), rtol=0, atol=0)
    return tied


def calls(tied, *targets):
    return sum(node.target in targets for node in tied.graph.nodes)


# --- Convolutions -----------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(
    dims=st.integers(1, 3),
    count=st.integers(2, 4),
    channels=st.lists(st.integers(1, 3), min_size=2, max_size=2),
    kernel=st.integers(1, 3),
    stride=st.integers(1, 2),
    padding=st.sampled_from([0, 1, "valid"]),
    bias=st.booleans(),
    is_batched=st.booleans(),
)
def test_siblings_are_one(dims, count, channels, kernel, stride, padding, bias, is_batched):
    def make():
        return CONVS[dims](*channels, kernel, stride=stride, padding=padding, bias=bias)

    model = Bank([make() for _ in range(count)])
    x = torch.randn(*[2] * is_batched, channels[0], *[5] * dims)
    tied = check(model, flips(count), x, merge_convs=True)
    assert calls(tied, FUNCTIONS[dims]) == 1
    assert fxtie.report(tied).merged == count
    assert fxtie.report(tied).summary().endswith(f"{count} merged")


def test_only_what_is_alike():
    convs = [nn.Conv2d(2, 3, 3), nn.Conv2d(2, 3, 3), nn.Conv2d(2, 3, 3, stride=2)]
    convs += [nn.Conv2d(2, 3, 3, bias=False), nn.Conv2d(2, 3, 3, bias=False), nn.Conv2d(2, 3, 1)]
    rules = [Rule(f"c.{i}", "c.0", weight=torch.square) for i in (1, 2, 3, 4)]
    tied = check(Bank(convs), rules, torch.randn(2, 2, 6, 6), merge_convs=True)
    assert fxtie.report(tied).merged == 4
    assert calls(tied, F.conv2d) == 3
    assert calls(tied, "c.5") == 1


def test_grouped_ones_are_left_alone():
    convs = [nn.Conv2d(2, 4, 3, groups=2) for _ in range(3)]
    tied = check(Bank(convs), flips(3), torch.randn(2, 2, 6, 6), exact=True, merge_convs=True)
    assert fxtie.report(tied).merged == 0


CHANGES = {
    "function": F.relu_,
    "method": lambda y: y.mul_(2),
    "operator": lambda y: operator.iadd(y, 1),
    "layer": nn.ReLU(inplace=True),
    "module": Doubled(),
}


class Changed(Bank):
    def __init__(self, convs, change):
        super().__init__(convs)
        self.change = change
        if isinstance(CHANGES[change], nn.Module):
            self.layer = CHANGES[change]

    def forward(self, x):
        change = getattr(self, "layer", CHANGES[self.change])
        return [change(conv(x)) for conv in self.c]


@pytest.mark.parametrize("change", CHANGES)
def test_results_that_are_changed(change):
    """Autograd would take the change of one slice for a change of all."""
    model = Changed([nn.Conv2d(2, 3, 3) for _ in range(3)], change)
    tied = check(model, flips(3), torch.randn(2, 2, 6, 6), exact=True, merge_convs=True)
    assert fxtie.report(tied).merged == 0


class Viewed(Bank):
    def forward(self, x):
        return [y.view(y.shape[0], -1) for y in super().forward(x)]


def test_views_want_contiguous_results():
    model = Viewed([nn.Conv2d(2, 3, 3) for _ in range(3)])
    tied = check(model, flips(3), torch.randn(2, 2, 6, 6), exact=True, merge_convs=True)
    assert fxtie.report(tied).merged == 0


class Writing(nn.Conv2d):
    """A layer of torch's by its base class only."""

    def forward(self, x):
        return super().forward(x.mul_(2))


def hooked():
    layer = nn.Conv2d(2, 3, 3).double()
    layer.register_forward_pre_hook(lambda module, args: (args[0].mul_(2),))
    return layer


LAYERS = {"layer": nn.ReLU(inplace=True), "subclass": Writing(2, 3, 3).double(), "hook": hooked()}
WRITES = {
    "method": lambda x, y: x.mul_(2),
    "operator": lambda x, y: operator.imul(x, 2),
    "flag": lambda x, y: F.relu(x, inplace=True),
    "positional flag": lambda x, y: F.relu(x, True),
    "out": lambda x, y: torch.exp(x, out=x),
    "aten": lambda x, y: torch.ops.aten.mul_.Tensor(x, x),
    "list": lambda x, y: torch._foreach_mul_([x], 2),
    "layer": lambda x, y: LAYERS["layer"](input=x),
    "subclass": lambda x, y: LAYERS["subclass"](x),
    "hook": lambda x, y: LAYERS["hook"](x),
    "view": lambda x, y: x.view(-1).mul_(2),
}


class Interrupted(Bank):
    """Something is done to the input between two convolutions."""

    def __init__(self, write, is_made):
        super().__init__([nn.Conv2d(2, 3, 3) for _ in range(2)])
        self.write, self.is_made = write, is_made
        if write in LAYERS:
            self.layer = LAYERS[write]

    def forward(self, x):
        x = x * 2 if self.is_made else x
        first = self.c[0](x)
        written = WRITES[self.write](x, first)
        return first, self.c[1](x), written


@pytest.mark.parametrize("write", WRITES)
@pytest.mark.parametrize("is_made", [True, False])
def test_writes_to_the_input_come_between(write, is_made):
    model = Interrupted(write, is_made).double().eval()
    x = torch.randn(2, 2, 6, 6, dtype=torch.double)
    tied = fxtie.transform(model, flips(2), merge_convs=True)
    with torch.no_grad():
        expected, found = (m(x.clone()) for m in (fxtie.transform(model, flips(2)), tied))
    torch.testing.assert_close(found, expected, rtol=0, atol=0)
    assert fxtie.report(tied).merged == 0


class Halving(nn.Module):
    def forward(self, x, y):
        return x.div_(2)


def test_modules_of_others_come_between():
    model = Bank([nn.Conv2d(2, 3, 3) for _ in range(2)], Halving()).double().eval()
    x = torch.randn(2, 2, 6, 6, dtype=torch.double)
    tied = fxtie.transform(model, flips(2), merge_convs=True)
    with torch.no_grad():
        expected, found = (m(x.clone()) for m in (fxtie.transform(model, flips(2)), tied))
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


class Branches(nn.Module):
    """As in Inception: what follows a convolution works in place, on memory of its own."""

    def __init__(self, stem=True):
        super().__init__()
        self.stem = nn.Conv2d(4, 4, 1) if stem else None
        self.c = nn.ModuleList(nn.Conv2d(4, 4, 3, bias=False) for _ in range(3))
        self.norms = nn.ModuleList(nn.BatchNorm2d(4) for _ in range(3))

    def forward(self, x):
        x = x if self.stem is None else self.stem(x)
        branches = zip(self.c, self.norms, strict=True)
        return torch.cat([F.relu(norm(conv(x)), inplace=True) for conv, norm in branches], 1)


@pytest.mark.parametrize("stem", [True, False])
@pytest.mark.parametrize("norms", [[], [Rule("norms.2", "norms.1")]])
def test_branches_that_work_in_place(stem, norms):
    tied = check(Branches(stem), [*flips(3), *norms], torch.randn(2, 4, 6, 6), merge_convs=True)
    assert fxtie.report(tied).merged == 3


def test_sources_that_are_written_stay_in_place():
    class Clamped(Bank):
        def forward(self, x):
            first = self.c[0](x)
            self.c[0].weight.data.mul_(2)
            return first, self.c[1](x)

    model = Clamped([nn.Conv2d(2, 3, 3) for _ in range(2)]).double()
    x = torch.randn(2, 2, 6, 6, dtype=torch.double)
    results = [
        fxtie.transform(copy.deepcopy(model), flips(2), **options)(x)
        for options in ({}, {"merge_convs": True})
    ]
    torch.testing.assert_close(*results, rtol=0, atol=0)


def test_merged_compiled():
    torch.compiler.reset()
    model = Bank([nn.Conv2d(2, 3, 3) for _ in range(3)])
    tied = fxtie.transform(model, flips(3), merge_convs=True)
    x = torch.randn(2, 2, 6, 6)
    torch.testing.assert_close(torch.compile(tied, fullgraph=True)(x), tied(x))


def test_not_with_recompute():
    with pytest.raises(fxtie.FxtieError, match="Choose one"):
        fxtie.transform(
            Bank([nn.Conv2d(2, 3, 3) for _ in range(2)]), flips(2), merge_convs=True, recompute=True
        )


def test_programs_take_no_options():
    program = torch.export.export(nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3)), (torch.ones(3),))
    with pytest.raises(fxtie.FxtieError, match="neither compiled nor run"):
        fxtie.transform(program, Rule("1", "0"), merge_convs=True)


def doubled(module, args, output):
    return output * 2


def test_sources_of_other_kinds_are_not_opened():
    convs = [nn.Conv2d(2, 3, 3) for _ in range(2)]
    convs[0].register_forward_hook(doubled)
    tied = check(Bank(convs), flips(2), torch.randn(2, 2, 6, 6), exact=True, merge_convs=True)
    assert fxtie.report(tied).merged == 0
    assert not fxtie.report(tied).kept
