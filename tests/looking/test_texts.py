"""Plans and suggestions as text."""

import torch
from blocks import Blocks
from chain_net import chain_net
from torch import nn

import fxtie
from fxtie import Rule, transforms
from fxtie.looking.suggest import suggest


def test_a_plan_is_a_table_with_a_total():
    text = str(fxtie.plan(chain_net(2), Rule("1", "0", transforms.scale(0.5))))
    assert text.splitlines() == [
        "target    sources    transform    shape      saved",
        "--------  ---------  -----------  -------  -------",
        "1.weight  0.weight   scale(0.5)   6x6           36",
        "1.bias    0.bias     same         6              6",
        "2 ties, parameters 84 -> 42 (50.0%)",
    ]


def test_suggestions_are_a_table_by_block():
    model = Blocks()
    with torch.no_grad():
        for i, block in enumerate(model.blocks):
            for attr in ("fc1", "fc2"):
                for name, own in getattr(block, attr).named_parameters():
                    first = getattr(getattr(model.blocks[0], attr), name)
                    own.copy_(first if i == 0 else 2.0 * first)
    lines = str(suggest(model)).splitlines()
    assert lines[2] == "blocks.*"
    assert lines[3].startswith(".fc1")
    assert lines[4].split() == [
        ".fc2",
        "2",
        "blocks.0",
        "repeated",
        "528",
        "50.0%",
        "2.00",
        "(0.0%)",
    ]
    assert lines[-1] == "2 rules together: parameters 1.7k -> 600 (35.2%)"


def test_long_tables_of_suggestions_are_cut():
    model = nn.ModuleDict(
        {i * "a": nn.Sequential(*(nn.Linear(i, i) for _ in "ab")) for i in range(9, 60)}
    )
    lines = str(suggest(model)).splitlines()
    assert len(lines) < 60
    assert any(line.startswith("… ") and "more, which save" in line for line in lines)
