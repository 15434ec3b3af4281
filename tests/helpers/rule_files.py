"""Rules in files: one of each kind, and what describes them."""

from __future__ import annotations

import json
import re
from importlib import resources

import torch
from torch import nn

import fxtie
from fxtie.errors import RuleError
from fxtie.rules.files import load_rules
from fxtie.rules.free import Entry
from fxtie.rules.rule import Rule, Tie
from fxtie.transforms import (
    LowRank,
    Mix,
    chain,
    mean,
    neg,
    rot90,
    scale,
    square,
    tile,
)
from fxtie.transforms.registry import register

SCHEMA = json.loads(resources.files("fxtie.rules").joinpath("rules.schema.json").read_text())


@register("tests.rule_files.Gain")
class Gain(nn.Module):
    """A learnable transform that doesn't depend on its target."""

    def __init__(self, start: float = 1.0) -> None:
        super().__init__()
        self.start = start
        self.gain = nn.Parameter(torch.tensor(start))

    def forward(self, source):
        return source * self.gain


@register("tests.rule_files.Wide")
class Wide(nn.Module):
    def __init__(self, *, limit: float | None = 1.0) -> None:
        super().__init__()
        self.limit = limit

    def forward(self, source):
        return source


def described(rules):
    """What rules say, as plain values: two lists that mean the same are equal."""
    modules: list[nn.Module] = []

    def index(module):
        if module not in modules:
            modules.append(module)
        return modules.index(module)

    def transform(value):
        if not isinstance(value, nn.Module):
            return value
        members = getattr(value, "transforms", None)
        state = {name: (t.shape, t.dtype) for name, t in value.state_dict().items()}
        # Without tensors each target gets one of its own: then it doesn't matter which it is.
        which = index(value) if state else None
        inner = repr(value) if members is None else tuple(map(transform, members))
        return which, inner, getattr(value, "start", None), state

    def source(value):
        if isinstance(value, str):
            return value
        if isinstance(value, Entry):
            return source(value.owner), value.name
        tensors = [
            value.get_parameter(n) if n not in value._buffers else value.get_buffer(n)
            for n in value.tensor_names()
        ]
        return index(value), [(t.shape, t.dtype, isinstance(t, nn.Parameter)) for t in tensors]

    def sources(rule):
        return [source(value) for value in rule.sources]

    return [
        (rule.targets, *sources(rule), transform(rule.transform))
        if isinstance(rule, Tie)
        else (
            [pattern.pattern for pattern in rule.targets],
            rule.buffers,
            *sources(rule),
            {name: transform(value) for name, value in rule.transforms.items()},
            rule.named_tensors,
            [pattern.pattern for pattern in rule.exclude],
            rule.count,
        )
        for rule in rules
    ]


def toml(tmp_path, text, name="rules.toml"):
    path = tmp_path / name
    path.write_text(text)
    return path


WHOLE = """
[[rule]]
target = "decoder.*"
source = "encoder.{0}"
weight = { transform = "rot90", k = 1 }
bias = false
tensors = { in_proj_weight = "neg", in_proj_bias = false }
exclude = "decoder.3"
count = 3

[[rule]]
target = "head.weight"
source = "embedding.weight"
transform = "square"

[[rule]]
target = "mix"
source = ["a", "b"]
weight = "mean"
[rule.bias]
transform = "chain"
transforms = ["mean", { transform = "scale", s = 0.5 }]

[[rule]]
target = "positions"
source = []
weight = { transform = "chain", transforms = [{ shared = "gain" }, "tile"] }

[[rule]]
target = 're:conv_[1-4]'
source = { bank = "templates" }
weight = { transform = "Mix", n = 8 }
bias = false

[[rule]]
target = "fc_*"
source = "fc"
weight = { shared = "adapter" }
bias = { shared = "gain" }

[[rule]]
target = ["*.q", "*.k"]
source = ["{0 // 2 * 2}.qk", { tensors = "vera" }, { tensors = "vera", entry = "B" }]
weight = "mean"
buffers = true

[[rule]]
target = ["a.weight", "b.weight"]
source = [{ bank = "templates", entry = 3 }]
transform = "mean"

[bank.templates]
n = 8
shape = [4, 4, 3, 3]

[tensors.vera]
A = { shape = [2, 8], frozen = true }
B = { shape = [8, 2], dtype = "float64" }

[shared.adapter]
transform = { transform = "LowRank", rank = 2 }
shape = [4, 4]
dtype = "float64"

[shared.gain]
transform = { transform = "tests.rule_files.Gain", start = 2 }
"""


def whole_rules():
    gain = Gain(2.0)
    bank = fxtie.Bank(8, (4, 4, 3, 3))
    vera = fxtie.Tensors(A=torch.ones(2, 8), B=torch.ones(8, 2).double(), frozen=("A",))
    vera.given = ()  # as if they had been given by their shapes
    return [
        Rule(
            "decoder.*",
            "encoder.{0}",
            rot90(1),
            None,
            exclude="decoder.3",
            count=3,
            in_proj_weight=neg,
            in_proj_bias=None,
        ),
        Tie("head.weight", "embedding.weight", square),
        Rule("mix", ("a", "b"), mean(), chain(mean(), scale(0.5))),
        Rule("positions", None, chain(gain, tile())),
        Rule("re:conv_[1-4]", bank, Mix(8), None),
        Rule(
            "fc_*", "fc", LowRank(2).for_target(torch.empty(4, 4, dtype=torch.float64)), bias=gain
        ),
        Rule(("*.q", "*.k"), ("{0 // 2 * 2}.qk", vera, vera["B"]), mean(), buffers=True),
        Tie(("a.weight", "b.weight"), bank[3], mean()),
    ]


def load_or_fault(path):
    """The rules, or None for a RuleError with a position that is in the file."""
    try:
        return load_rules(path)
    except RuleError as error:
        found = re.match(re.escape(f"{path}:") + r"(\d+): ", str(error))
        assert found, error
        assert 1 <= int(found[1]) <= path.read_bytes().count(b"\n") + 1
        return None
