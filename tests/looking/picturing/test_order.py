"""The order of layers."""

import torch
from torch import nn

import fxtie
from fxtie import Rule


class Backwards(nn.Module):
    """Its layers are not made in the order in which they are called."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(4))
        self.unused, self.head = nn.Linear(4, 4), nn.Linear(4, 4)
        self.body = nn.ModuleDict({"last": nn.Linear(4, 4), "first": nn.Linear(4, 4)})
        self.stem = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))

    def forward(self, x):
        x = self.body["first"](self.stem(x * self.scale))
        return self.head(self.body["last"](x))


class Kept(nn.Module):
    def __init__(self):
        super().__init__()
        self.before, self.inner, self.after = nn.Linear(4, 4), Backwards(), nn.Linear(4, 4)

    def forward(self, x):
        return self.after(self.inner(self.before(x)) if x.sum() > 0 else x)


def order(of):
    return [layer.name for layer in fxtie.picture(of).scene.layers]


def test_layers_stand_in_the_order_of_the_forward():
    called = ["", "stem.0", "stem.1", "body.first", "body.last", "head", "unused"]
    tied = fxtie.transform(Backwards(), Rule("body.last", "head"))
    assert order(tied) == called
    assert sorted(order(fxtie.report(tied))) == sorted(called), "of which no graph is at hand"
    kept = fxtie.transform(Kept(), Rule("inner.body.last", "inner.head"))
    inner = ["inner", *(f"inner.{name}" for name in called[1:])]
    assert order(kept) == ["before", *inner, "after"]


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc, self.norm = nn.Linear(4, 4), nn.LayerNorm(4)

    def forward(self, x):
        return self.fc(self.norm(x))


class Blocks(nn.Module):
    """Of the first block there is no graph: it is called as one."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(4, 4)
        self.blocks = nn.ModuleList(Block() for _ in range(3))

    def forward(self, x):
        for block in self.blocks:
            x = block(x)
        return self.head(x)


def test_blocks_are_sorted_alike():
    tied = fxtie.transform(Blocks(), fxtie.Tie("blocks.1.fc.weight", "blocks.2.fc.weight"))
    inside = [f"blocks.{i}.{part}" for i in range(3) for part in ("norm", "fc")]
    assert order(tied) == [*inside, "head"]
