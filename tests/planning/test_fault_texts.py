"""The texts of what goes wrong, as a reader sees them. docs/errors.md shows them.

`FXTIE_RENEW=1 pytest tests/planning/test_fault_texts.py` writes them anew.
"""

import os
import re
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn.utils import prune

import fxtie
from fxtie import Bank, Rule, Tensors, Tie
from fxtie import transforms as T

SNAPSHOT = Path(__file__).with_name("fault_texts.txt")


def linears(n=3):
    return nn.Sequential(*(nn.Linear(4, 4) for _ in range(n)))


def blocks():
    return nn.ModuleDict(
        {
            "a": nn.Sequential(nn.Linear(3, 4), nn.ReLU()),
            "b": nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)),
            "conv": nn.Conv2d(4, 4, 3),
            "deconv": nn.ConvTranspose2d(4, 4, 3),
            "attention": nn.MultiheadAttention(4, 2),
            "act": nn.ReLU(),
        }
    )


def tied():
    return fxtie.transform(linears(), Rule("2", "0"))


def learning():
    return fxtie.transform(linears(), Rule("2", "0", weight=T.LowRank(1)))


def complain(w):
    raise ValueError(f"{w!r} is not wanted")


PLANS = {
    "a module whose structure does not fit": (blocks, Rule("b", "a")),
    "a bias that the source has not": (
        lambda: nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 2)),
        Rule("1", "0"),
    ),
    "a module without tensors": (blocks, Rule("act", "conv")),
    "a tensor that no target has": (blocks, Rule("attention", "attention", in_proj=T.square())),
    "everything left out": (linears, Rule("1", "0", weight=None, bias=None)),
    "a source before the first": (linears, Rule("*", "{0 - 1}")),
    "arithmetic on a word": (blocks, Rule("*", "{0 + 1}")),
    "division by zero": (linears, Rule("*", "{0 // 0}")),
    "a group that is not there": (linears, Rule("*", "{1}")),
    "two rules for one tensor": (linears, [Rule("*", "0"), Rule("2", "1")]),
    "two rules, one inside of the other": (blocks, [Rule("b.0", "a.0"), Rule("b", "a")]),
    "several targets, no tuple": (linears, Tie(("1.weight", "2.weight"), "0.weight", torch.neg)),
    "several targets, too few results": (
        linears,
        Tie(("0.weight", "1.weight"), "2.weight", lambda w: (w,)),
    ),
    "several targets that match apart": (blocks, Rule(("*.0", "*.2"), "{0}", weight=torch.neg)),
    "each, which raises": (linears, Rule("*", "0", weight=fxtie.each(lambda i: 1 / 0))),
    "each, which makes nothing": (linears, Rule("*", "0", weight=fxtie.each(lambda i: None))),
    "same of several sources": (linears, Rule("2", ("0", "1"))),
    "transpose to a transposed convolution": (
        blocks,
        Rule("deconv", "conv", weight=T.transpose(), bias=None),
    ),
    "a basis of other shapes": (linears, Rule("*", Bank(2, (4, 4)), weight=T.basis(2))),
    "a regular expression that is not marked as one": (linears, Rule("[12]", "0")),
    "a pattern all of whose matches are excluded": (linears, Rule("*", "0", exclude="*")),
    "a pattern for modules without tensors": (blocks, Rule("ac*", "conv")),
    "a name without the modules around it": (
        lambda: nn.ModuleDict({"model": nn.ModuleDict({"layers": linears()})}),
        Rule("layers.*", "layers.0"),
    ),
    "a transform that raises, for many targets": (
        lambda: linears(6),
        Rule("*", Bank(2, (4, 4)), weight=lambda w: w),
    ),
    "a transform that complains of its source": (linears, Rule("2", "0", weight=complain)),
    "a transform that returns a list": (linears, Rule("2", "0", weight=lambda w: [w])),
    "a module whose tensors are derived, as a source": (tied, Rule("0", "2")),
    "a module whose tensors are derived, as a target": (tied, Rule("2", "0")),
    "a tensor that is derived, as a source": (tied, Rule("0.weight", "2.weight")),
    "a mixture of another number": (linears, Rule("*", Bank(2, (4, 4)), weight=T.Mix(3))),
}
MADE = {
    "braces that hold code": lambda: Rule("*", "{__import__('os')}"),
    "a power": lambda: Rule("*", "{0 ** 2}"),
    "a source that is a number": lambda: Rule("a", 3),
    "no target": lambda: Rule((), "a"),
    "one target twice": lambda: Tie(("a", "a"), "b"),
    "an uncalled class": lambda: Rule("a", "b", weight=T.LowRank),
    "an uncalled maker": lambda: Tie("a", "b", T.rot90),
    "a transform that is a number": lambda: Rule("a", "b", weight=2),
    "a transform by its name": lambda: Rule("a", "b", weight="square"),
    "tensors without a shape": lambda: Tensors(A=3),
    "tensors of integers": lambda: Tensors(A=torch.ones(2, dtype=torch.int64)),
    "a name of a module's own": lambda: Tensors(forward=(2,)),
    "what is frozen and not there": lambda: Tensors(A=(2,), frozen="B"),
    "a template that is not there": lambda: Bank(2, (2,))[2],
    "a bank without a shape": lambda: Bank(2, 4),
    "no function": lambda: fxtie.each(3),
    "a tuple instead of a rule": lambda: fxtie.plan(linears(), ("2", "0")),
    "a dict instead of rules": lambda: fxtie.plan(linears(), {"2": "0"}),
    "a transform without its argument": lambda: T.rot90(),
    "a transform with another argument": lambda: T.LowRank(2, beta=3),
    "a transform with too many arguments": lambda: T.scale(1, 2),
    "a file of another kind": lambda: fxtie.save(tied(), "model.pt"),
    "what is not tied": lambda: fxtie.report(linears()),
    "a derived tensor that is set": lambda: setattr(
        tied()[2], "weight", nn.Parameter(torch.ones(4, 4))
    ),
    "a tied model in TorchScript": lambda: torch.jit.script(tied()),
    "a derived tensor that is pruned": lambda: prune.l1_unstructured(tied()[2], "weight", 0.5),
    "a checkpoint of the untied model, where transforms learn": lambda: learning().load_state_dict(
        linears().state_dict()
    ),
    "a checkpoint of a model that other rules tie": lambda: tied().load_state_dict(
        learning().state_dict()
    ),
    "a transform without a name in a file": lambda: fxtie.save(
        fxtie.transform(linears(), Rule("2", "0", weight=lambda w: w * 2)), "model.safetensors"
    ),
}


def texts():
    for name, (model, rules) in PLANS.items():
        with pytest.raises(fxtie.PlanError) as told:
            fxtie.plan(model(), rules)
        yield name, str(told.value)
    for name, make in MADE.items():
        with pytest.raises((fxtie.FxtieError, RuntimeError, TypeError)) as told:
            make()
        yield name, str(told.value)


def test_torch_logs_nothing_of_a_transform_that_raises(caplog):
    with pytest.raises(fxtie.PlanError, match="raises on"):
        fxtie.plan(linears(), Rule("2", "0", weight=lambda w: w @ torch.ones(3, 3)))
    assert not caplog.records


def test_texts():
    found = "\n\n".join(f"# {name}\n{text}" for name, text in texts()) + "\n"
    found = re.sub(r" at 0x[0-9a-f]+", "", found)
    if os.environ.get("FXTIE_RENEW"):
        SNAPSHOT.write_text(found, encoding="utf-8")
    assert found == SNAPSHOT.read_text(encoding="utf-8")
