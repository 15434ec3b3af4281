"""Basis sharing: a trained net's layers become combinations of one basis, found at once."""

import copy

import torch
from digits import accuracy, load, train
from tabulate import tabulate
from torch import Tensor, nn

import fxtie
from fxtie import transforms as T


class Net(nn.Module):
    """A residual net of six layers of width 64."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(64, 64) for _ in range(6))
        self.head = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(1)
        for layer in self.layers:
            x = x + layer(x).relu()
        return self.head(x)


torch.manual_seed(0)
x, y, test_x, test_y = load()
net = train(Net(), x, y)


def row(name: str, model: nn.Module, error: str = "") -> tuple[str, str, str, str]:
    count = sum(p.numel() for p in model.layers.parameters())
    ties = getattr(model, "ties", None)
    count += 0 if ties is None else sum(p.numel() for p in ties.parameters())
    return name, f"{count:,}", error, f"{accuracy(model, test_x, test_y):.1%}"


rows = [row("trained", net)]
for k in (32, 16, 8):
    model = copy.deepcopy(net)
    rule = fxtie.Rule("layers.*", fxtie.Bank(k, (1, 64)), weight=T.basis(k), bias=None)
    found = fxtie.fit(model, rule, inputs=[x])  # what the layers are given counts, too
    tied = fxtie.transform(model, found.plan)
    error = sum(found.after.values()) / len(found.after)
    rows.append(row(f"basis of {k}", tied, f"{error:.1%}"))
print(
    tabulate(
        rows, ("net", "in its layers", "lost of the weights", "test accuracy"), stralign="right"
    )
)
fxtie.picture(tied).svg("basis_sharing.svg")
