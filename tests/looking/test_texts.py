"""Plans, suggestions and fits as text."""

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


def test_the_verdict_of_a_fit():
    net = nn.Sequential(*(nn.Linear(6, 6) for _ in range(3)))
    with torch.no_grad():
        net[1].weight.copy_(net[0].weight)
        net[2].weight.copy_(-net[0].weight)
    found = fxtie.fit(net, Rule("*", "0", bias=None))
    assert str(found).endswith(
        "2 of 2 targets lose more than half of their norm: 1.weight, 2.weight."
    )
    net[1].weight.data.copy_(net[0].weight)
    found = fxtie.fit(net, Rule("*", "0", bias=None), how="lower")
    assert str(found).endswith(
        "1 of 2 targets lose more than half of their norm: 2.weight. No other does."
    )
    found = fxtie.fit(net, Rule("1", "0", bias=None), inputs=[torch.randn(2, 6)])
    assert str(found).splitlines()[-2:] == [
        "No target loses more than half of its norm.",
        "The model's output changes by 0.00%; without the fit by 0.00%.",
    ]
