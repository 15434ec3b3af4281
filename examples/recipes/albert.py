"""ALBERT: all layers of an encoder are one, or share their attention or their feed-forward part."""

import torch
from bert import Bert
from tabulate import tabulate

import fxtie
from fxtie import Rule

# A vocabulary of 30,000, 512 positions, 2 types, in 128 dimensions; 12 layers of 768.
with torch.device("meta"):  # counts need no values
    albert = Bert(12, 768, 12, (30_000, 512, 2), inner=128)

WAYS = {
    "all shared": (Rule("layers.*", "layers.0"), 11_683_584, "12M"),
    "attention shared": (Rule("layers.*.attention", "layers.0.attention"), 63_647_232, "64M"),
    "feed-forward shared": (Rule("layers.*.ffn", "layers.0.ffn"), 37_686_528, "38M"),
    "none shared": (None, 89_650_176, "89M"),
}
rows = []
for name, (rule, expected, told) in WAYS.items():
    tied = albert if rule is None else fxtie.transform(albert, rule)
    count = sum(p.numel() for p in tied.parameters())
    assert count == expected
    rows.append((name, f"{count:,}", told))
print(tabulate(rows, ("ALBERT-base", "parameters", "in the paper"), stralign="right"))
fxtie.picture(fxtie.plan(albert, Rule("layers.*", "layers.0"))).svg("albert.svg")
