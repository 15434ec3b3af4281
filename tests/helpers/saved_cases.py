"""Tied models to be saved and loaded, and what must be the same afterwards."""

from __future__ import annotations

import copy
import os

import pytest
import torch
from torch import nn

import fxtie
from fxtie.errors import FileError
from fxtie.life.saving import load, save
from fxtie.transforms import (
    ChannelScale,
    LowRank,
    Mix,
    chain,
    flip,
    mean,
    neg,
    rot90,
    scale,
    square,
    standardize,
    tile,
)
from fxtie.transforms.registry import register


class Kept(nn.Module):
    """Its root can't be traced; it has buffers, one of them not persistent."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)
        self.norm = nn.BatchNorm1d(4)
        self.register_buffer("offset", torch.arange(4))
        self.register_buffer("hidden", torch.ones(4), persistent=False)

    def forward(self, x):
        x = self.norm(self.a(x)) + self.offset * self.hidden
        return self.b(x) if x.sum() > 0 else self.b(-x)


class Shared(nn.Module):
    """One Parameter under two names, one module under two names."""

    def __init__(self):
        super().__init__()
        self.embed, self.head = nn.Linear(4, 4), nn.Linear(4, 4, bias=False)
        self.head.weight = self.embed.weight
        self.one = self.two = nn.Linear(4, 4)
        self.last = nn.Linear(4, 4)

    def forward(self, x):
        return self.last(self.two(self.one(self.head(self.embed(x)))))


class Odd(nn.Module):
    """Names that mean something else as patterns."""

    def __init__(self):
        super().__init__()
        for name in ("re:a", "a", "b*[é", "bb*[é", "c"):
            self.add_module(name, nn.Linear(4, 4))

    def forward(self, x):
        for layer in self._modules.values():
            x = layer(x)
        return x


@register("tests.files.Gain")
class Gain(nn.Module):
    """A learnable transform without `for_target`, in float32 until it is moved."""

    def __init__(self, start: float = 1.0) -> None:
        super().__init__()
        self.start = start
        self.gain = nn.Parameter(torch.tensor(start))
        self.register_buffer("calls", torch.zeros(2, 1, dtype=torch.int64))

    def forward(self, source):
        return source * self.gain


@register("tests.files.Growing")
class Growing(nn.Module):
    """Has tensors that its arguments don't tell of."""

    def __init__(self) -> None:
        super().__init__()

    def forward(self, source):
        return source * self.late


def linears(n=4, features=4):
    return nn.Sequential(*(nn.Linear(features, features) for _ in range(n)))


def convs(n=3):
    return nn.Sequential(*(nn.Conv2d(4, 4, 3, padding=1) for _ in range(n)))


def bank_rules(n=2):
    bank = fxtie.Bank(n, (4, 4))
    return [fxtie.Rule(f"{i}", bank, Mix(n), bias=None) for i in range(3)]


def two_bank_rules():
    """Two banks used in turns, and a tie that names one template of one of them."""
    first, second = fxtie.Bank(2, (4, 4)), fxtie.Bank(1, (4, 4))
    return [
        fxtie.Rule("2", second, neg, bias=None),
        fxtie.Rule("0", first, mean(), bias=None),
        fxtie.Rule("1", first, Mix(2), bias=None),
        fxtie.Tie("3.weight", "ties.bank_2.templates.1", square),
    ]


def shared_rules():
    learned = LowRank(2).for_target(torch.empty(4, 4))
    return [
        fxtie.Rule("3", "0", weight=learned, bias=None),
        fxtie.Rule("1", "0", weight=learned, bias=None),
    ]


def partly_shared_rules():
    """The chains fit apart, and share the members that are fitted already, buffers too."""
    learned = chain(ChannelScale().for_target(torch.empty(4, 4)), Gain(2.0), LowRank(1))
    return [
        fxtie.Rule("1", "0", weight=chain(square, learned), bias=None),
        fxtie.Rule("2", "0", weight=chain(neg, learned), bias=None),
    ]


CASES = {
    "plain": (linears, lambda: fxtie.Rule("2", "0", weight=torch.square)),
    "several": (
        linears,
        lambda: [fxtie.Rule("1", ("0", "3"), weight=mean(), bias=mean()), fxtie.Rule("2", "0")],
    ),
    "kept root": (Kept, lambda: fxtie.Rule("b", "a", weight=neg)),
    "learnable": (linears, lambda: fxtie.Rule("*", "0", weight=LowRank(1), bias=ChannelScale())),
    "learnable, shared": (linears, shared_rules),
    "learnable, shared in part": (linears, partly_shared_rules),
    "no for_target": (linears, lambda: fxtie.Rule("1", "0", weight=Gain(2.0))),
    "bank": (linears, bank_rules),
    "one of one": (linears, lambda: bank_rules(1)),
    "two banks": (linears, two_bank_rules),
    "self-derived": (convs, lambda: fxtie.Rule("1", "1", weight=standardize(), bias=None)),
    "chain": (
        convs,
        lambda: [
            fxtie.Rule("1", "0", weight=chain(rot90(1), scale(0.1))),
            fxtie.Rule("2", "1", weight=chain(flip(-1), ChannelScale())),
        ],
    ),
    "fitted": (
        lambda: nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 5)),
        lambda: fxtie.Rule("1", "0", weight=tile(), bias=tile()),
    ),
    "aliases": (Shared, lambda: fxtie.Rule("last", "embed", weight=square)),
    "alias as source": (Shared, lambda: fxtie.Rule("two", "embed", weight=square)),
    "bfloat16": (
        lambda: linears().bfloat16(),
        lambda: [fxtie.Rule("1", "0", weight=LowRank(2)), *bank_rules_in(torch.bfloat16)],
    ),
    "float64": (lambda: linears().double(), lambda: fxtie.Rule("1", "0", weight=ChannelScale())),
    "tied twice": (
        lambda: fxtie.transform(linears(), fxtie.Rule("1", "0", weight=scale(2))),
        lambda: fxtie.Rule("3", "2", weight=LowRank(1)),
    ),
    "odd names": (
        Odd,
        lambda: [
            fxtie.Rule("re:re:a", fxtie.Bank(2, (4, 4)), mean(), bias=None),
            fxtie.Rule(r"re:b\*\[é", fxtie.Bank(2, (4, 4)), Mix(2), bias=None),
            fxtie.Tie("re:a.bias", "b*[é.bias", neg),
        ],
    ),
}


def bank_rules_in(dtype):
    return [fxtie.Rule("2", fxtie.Bank(2, (4, 4), dtype=dtype), mean(), bias=None)]


@torch.no_grad()
def shake(model, seed):
    """Give every tensor new values, in place; a tensor of two names one."""
    generator = torch.Generator().manual_seed(seed)
    for value in model.state_dict().values():
        new = torch.randn(value.shape, generator=generator).abs() + 0.1
        value.copy_(new if value.is_floating_point() else new * 100)


def example(model):
    parameter = next(model.parameters())
    shape = (2, 4, 5, 5) if parameter.dim() == 4 else (2, parameter.shape[-1])
    return torch.randn(shape, generator=torch.Generator().manual_seed(3)).to(parameter.dtype)


def snapshot(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def assert_same_state(found, expected):
    assert list(found) == list(expected)
    for name, value in expected.items():
        assert found[name].dtype == value.dtype, name
        assert torch.equal(found[name], value), name


def assert_same_tied(again, tied):
    """Same tensors, ties and modules; outputs bit for bit, in both modes."""
    assert_same_state(again.state_dict(), tied.state_dict())
    assert [n for n, _ in again.named_parameters()] == [n for n, _ in tied.named_parameters()]
    found, expected = fxtie.report(again).plan, fxtie.report(tied).plan
    as_names = {(t.target, t.sources) for t in expected.ties}
    assert {(t.target, t.sources) for t in found.ties} == as_names
    assert list(found.modules) == list(expected.modules)
    assert type(again).__name__ == type(tied).__name__
    x = example(tied)
    for train in (False, True):
        outputs = [copy.deepcopy(m).train(train)(x) for m in (again, tied)]
        assert torch.equal(*outputs)
        assert outputs[0].isfinite().all()


def tied_case(name):
    build, rules = CASES[name]
    tied = fxtie.transform(build(), rules())
    shake(tied, 1)
    return build, tied


def refused(tied, path):
    """The message of the refusal, after which the old file is whole and alone."""
    path.write_bytes(b"old")
    with pytest.raises(FileError) as caught:
        save(tied, path)
    assert path.read_bytes() == b"old"
    assert os.listdir(path.parent) == [path.name]
    return str(caught.value)


def buffered_linears(value):
    model = linears()
    model.register_buffer("odd", value)
    return model


def buffer_case(value):
    return fxtie.transform(buffered_linears(value), fxtie.Rule("1", "0"))


def assert_refused(path, model, match="can't be loaded"):
    """Loading raises FileError and changes nothing."""
    before = snapshot(model)
    members = [list(module.__dict__) for module in model.modules()]
    with pytest.raises(FileError, match=match) as caught:
        load(path, model)
    assert str(path) in str(caught.value)
    assert_same_state(model.state_dict(), before)
    assert [list(module.__dict__) for module in model.modules()] == members
