"""Suggestions as a table."""

import torch
from blocks import Blocks
from torch import nn

from fxtie.looking.suggest import suggest


def test_table():
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


def test_long_tables_are_cut():
    model = nn.ModuleDict(
        {i * "a": nn.Sequential(*(nn.Linear(i, i) for _ in "ab")) for i in range(9, 60)}
    )
    lines = str(suggest(model)).splitlines()
    assert len(lines) < 60
    assert any(line.startswith("… ") and "more, which save" in line for line in lines)
