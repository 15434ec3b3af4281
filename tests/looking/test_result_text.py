"""What print shows of a report, a fit and a proof."""

import torch
from torch import nn

import fxtie
from fxtie import Rule


def layers(n: int = 3, size: int = 6, **options) -> nn.Sequential:
    return nn.Sequential(*(nn.Linear(size, size, **options) for _ in range(n)))


def test_the_verdict():
    net = layers(3)
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
