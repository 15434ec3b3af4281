"""A hypernetwork: one small net makes the weights of all layers, each out of a code of its own."""

import torch
from digits import accuracy, load, train
from tabulate import tabulate
from torch import Tensor, nn

import fxtie
from fxtie import Tie


class Net(nn.Module):
    """A residual net of four convs."""

    def __init__(self, width: int = 24) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, width, 3, padding=1)
        self.convs = nn.ModuleList(nn.Conv2d(width, width, 3, padding=1) for _ in range(4))
        self.head = nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = nn.functional.avg_pool2d(self.stem(x).relu(), 2)
        for conv in self.convs:
            x = x + conv(x).relu()
        return self.head(x.mean((2, 3)))


class Maker(nn.Module):
    """A code for each output channel to its filter."""

    def __init__(self, code: int, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.shape = shape
        self.out = nn.Linear(code, shape[1] * shape[2] * shape[3])

    def forward(self, codes: Tensor) -> Tensor:
        return self.out(codes).reshape(self.shape)


def tied(net: Net, code: int = 8) -> nn.Module:
    """One maker, as the transform of all ties; its codes, as their sources."""
    shape = tuple(net.convs[0].weight.shape)
    codes = fxtie.Tensors(**{f"layer_{i}": (shape[0], code) for i in range(len(net.convs))})
    maker = Maker(code, shape)
    ties = [Tie(f"convs.{i}.weight", codes[f"layer_{i}"], maker) for i in range(len(net.convs))]
    return fxtie.transform(net, ties)


x, y, test_x, test_y = load()
rows = []
for name in ("untied", "hypernetwork"):
    torch.manual_seed(0)
    net = Net() if name == "untied" else tied(Net())
    count = sum(p.numel() for p in net.parameters())
    rows.append(
        (name, f"{count:,}", f"{accuracy(train(net, x, y, epochs=15), test_x, test_y):.1%}")
    )
print(tabulate(rows, ("net", "parameters", "test accuracy"), stralign="right"))
fxtie.picture(net).svg("hypernetwork.svg")
