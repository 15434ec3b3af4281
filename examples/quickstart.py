"""Tie a small conv net, and train it beside two untied nets: the same one, and one of its size.

    ./run quickstart

The data are scikit-learn's bundled digits: 1,797 images of 8x8 pixels. Takes half a minute on one
core.
"""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Callable

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from tabulate import tabulate
from torch import nn
from tqdm.auto import tqdm

import fxtie
from fxtie import transforms as T

SEEDS = range(5)


class Net(nn.Module):
    """A residual conv net for 8x8 images."""

    def __init__(self, width: int = 24) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, width, 3, padding=1)
        self.convs = nn.ModuleList(nn.Conv2d(width, width, 3, padding=1) for _ in range(4))
        self.head = nn.Linear(width, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.stem(x))
        for i, conv in enumerate(self.convs):
            x = x + F.relu(conv(x))
            if i == 1:
                x = F.max_pool2d(x, 2)
        return self.head(x.mean((2, 3)))


# All convs have the filters of the first, each with a learned factor per channel and its own bias.
RULE = fxtie.Rule("convs.*", "convs.0", weight=T.ChannelScale(), bias=None)


def size(model: nn.Module) -> int:
    """The number of parameters."""
    return sum(p.numel() for p in model.parameters())


def digits() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Images (N, 1, 8, 8) in [0, 1] and labels, the last fifth of each for testing."""
    data = load_digits()
    x = torch.tensor(data.images, dtype=torch.float32)[:, None] / 16
    y = torch.tensor(data.target)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    x, y = x[order], y[order]
    split = len(x) * 4 // 5
    return x[:split], y[:split], x[split:], y[split:]


def train(model: nn.Module, data: tuple[torch.Tensor, ...], epochs: int = 12) -> float:
    """Train with Adam and one cycle of its rate. Returns the accuracy on the test images."""
    x, y, test_x, test_y = data
    batches = [batch for _ in range(epochs) for batch in torch.randperm(len(x)).split(64)]
    optimizer = torch.optim.Adam(model.parameters())
    rate = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-2, total_steps=len(batches))
    for batch in batches:
        optimizer.zero_grad()
        F.cross_entropy(model(x[batch]), y[batch]).backward()
        optimizer.step()
        rate.step()
    with torch.no_grad():
        return (model(test_x).argmax(1) == test_y).float().mean().item()


def main() -> None:
    torch.set_num_threads(1)  # a net this small gains nothing from more
    net = Net()
    print(fxtie.plan(net, RULE), end="\n\n")

    tied_size = size(fxtie.transform(net, RULE))
    narrow = next(width for width in itertools.count(1) if size(Net(width)) >= tied_size)
    nets: dict[str, Callable[[], nn.Module]] = {
        "untied": Net,
        "tied": lambda: fxtie.transform(Net(), RULE),
        f"untied, {narrow} channels": lambda: Net(narrow),
    }
    accuracy: dict[str, list[float]] = {name: [] for name in nets}
    data = digits()
    for seed, name in tqdm(list(itertools.product(SEEDS, nets)), desc="training", unit="net"):
        torch.manual_seed(seed)
        accuracy[name].append(train(nets[name](), data))
    rows = [
        (name, f"{size(nets[name]()):,}", f"{statistics.mean(a):.1%}", f"{statistics.stdev(a):.1%}")
        for name, a in accuracy.items()
    ]
    headers = ("net", "parameters", "test accuracy", "spread")
    print("\n" + tabulate(rows, headers, colalign=("left", "right", "right", "right")))
    print(f"Mean and standard deviation of {len(SEEDS)} seeds.")


if __name__ == "__main__":
    main()
