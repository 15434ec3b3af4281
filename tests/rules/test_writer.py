"""Rules as they are written, and what can't be written."""

from __future__ import annotations

import pytest
import torch
from rule_files import Gain, Wide, toml
from torch import nn

import fxtie
from fxtie.errors import RuleError
from fxtie.rules.files import dump_rules
from fxtie.rules.rule import Rule, Tie
from fxtie.transforms import (
    Mix,
    chain,
    rot90,
    same,
    scale,
)


def test_how_it_is_written(tmp_path):
    path = tmp_path / "rules.toml"
    gain = Gain()
    dump_rules(
        [
            Rule("decoder", "encoder", chain(rot90(1), scale(1e-7)), None),
            Rule("a", ("b", "c"), gain, in_proj_weight=same),
            Tie("x.weight", (), gain),
            Rule("*", fxtie.Bank(2, (3,)), Mix(2), exclude=["a.*", 're:"\\d'], count=2),
        ],
        path,
    )
    assert (
        path.read_text()
        == """\
[bank.bank]
n = 2
shape = [3]
dtype = "float32"

[shared.shared]
transform = { transform = "tests.rule_files.Gain", start = 1.0 }
dtype = "float32"

[[rule]]
target = "decoder"
source = "encoder"
weight = { transform = "chain", transforms = [{ transform = "rot90", k = 1 }, { transform = \
"scale", s = 1e-07 }] }
bias = false

[[rule]]
target = "a"
source = ["b", "c"]
weight = { shared = "shared" }
tensors = { in_proj_weight = "same" }

[[rule]]
target = "x.weight"
source = []
transform = { shared = "shared" }

[[rule]]
target = "*"
source = { bank = "bank" }
weight = { transform = "Mix", n = 2 }
exclude = ["a.*", "re:\\"\\\\d"]
count = 2
"""
    )


class MyBank(fxtie.Bank):
    pass


def sharing_a_parameter():
    one, two = Gain(), Gain()
    two.gain = one.gain
    return [Rule("a", "b", one, one), Rule("c", "d", two, two)]


def grown():
    gain = Gain()
    gain.more = nn.Parameter(torch.ones(2))
    return Rule("a", "b", gain, gain)


@pytest.mark.parametrize(
    ("rules", "says"),
    [
        (lambda: Rule("a", "b", lambda w: w), "'a, weight': The transform <lambda>"),
        (lambda: Rule("a", "b", in_proj_weight=torch.sigmoid), "'a, in_proj_weight': The transf"),
        (lambda: Tie("a.weight", "b.weight", torch.sigmoid), "'a.weight': The transform"),
        (lambda: Rule(lambda name, module: True, "b"), "code, not data. Use a name pattern"),
        (lambda: Rule("a", "b", exclude=lambda name, module: True), "code, not data"),
        (lambda: Rule("a", MyBank(1, (2,))), "no plain fxtie.Bank"),
        (grown, "can't be told from its registered name"),
        (sharing_a_parameter, "can't be told from its registered name"),
        (lambda: [], "list is empty"),
        (lambda: Rule("a", "b", Wide(limit=None)), "TOML can't say None"),
    ],
)
def test_what_is_no_data_is_refused(rules, says, tmp_path):
    path = toml(tmp_path, "old")
    with pytest.raises(RuleError) as caught:
        dump_rules(rules(), path)
    assert says in str(caught.value)
    assert path.read_text() == "old"
