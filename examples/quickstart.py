"""Tie the layers of a small conv net, look at what changed, and train it next to the untied net.

    ./run quickstart

The data are scikit-learn's bundled digits: 1,797 images of 8x8 pixels.
"""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from tabulate import tabulate
from torch import nn
from tqdm import tqdm

import fxtie


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 32, 3, padding=1)
        self.conv_1 = nn.Conv2d(32, 32, 3, padding=1)
        self.conv_2 = nn.Conv2d(32, 32, 3, padding=1)
        self.conv_3 = nn.Conv2d(32, 64, 3, padding=1)
        self.head = nn.Linear(64, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.stem(x))
        x = F.relu(self.conv_1(x))
        x = F.max_pool2d(x, 2)
        x = F.relu(self.conv_2(x))
        x = F.relu(self.conv_3(x))
        return self.head(x.mean((2, 3)))


RULES = [
    # The same filters turned by 90 degrees ...
    fxtie.Rule("conv_2", "conv_1", weight=fxtie.transforms.rot90(1)),
    # ... and a layer of twice the size, filled with copies of them.
    fxtie.Rule("conv_3", "conv_1", weight=fxtie.transforms.tile(), bias=None),
]


def digits() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Images (N, 1, 8, 8) in [0, 1] and labels, the last fifth of each for testing."""
    data = load_digits()
    x = torch.tensor(data.images, dtype=torch.float32)[:, None] / 16
    y = torch.tensor(data.target)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    x, y = x[order], y[order]
    split = len(x) * 4 // 5
    return x[:split], y[:split], x[split:], y[split:]


def train(model: nn.Module, name: str, epochs: int = 12) -> float:
    """Train with Adam. Returns the accuracy on the test images."""
    x, y, test_x, test_y = digits()
    torch.manual_seed(0)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for _ in tqdm(range(epochs), desc=f"training {name}", unit="epoch"):
        for batch in torch.randperm(len(x)).split(64):
            optimizer.zero_grad()
            F.cross_entropy(model(x[batch]), y[batch]).backward()
            optimizer.step()
    with torch.no_grad():
        return (model(test_x).argmax(1) == test_y).float().mean().item()


def main() -> None:
    torch.manual_seed(0)
    torch.set_num_threads(1)  # a net this small gains nothing from more
    net = Net()

    print("The plan:\n")
    print(fxtie.plan(net, RULES))

    tied = fxtie.transform(net, RULES)
    print("\nWhat changed:\n")
    print(fxtie.diff(net, tied))
    print()

    rows = []
    for name, model in (("untied", copy.deepcopy(net)), ("tied", tied)):
        accuracy = train(model, name)
        rows.append((name, f"{accuracy:.1%}", f"{sum(p.numel() for p in model.parameters()):,}"))
    print()
    print(
        tabulate(rows, ("net", "test accuracy", "parameters"), colalign=("left", "right", "right"))
    )


if __name__ == "__main__":
    main()
