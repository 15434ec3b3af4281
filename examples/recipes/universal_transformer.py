"""The loop of a Universal Transformer: one layer, gone through again and again."""

import torch
from bert import Layer
from digits import accuracy, load, train
from tabulate import tabulate
from torch import Tensor, nn

import fxtie


class Rows(nn.Module):
    """An encoder that reads an image as a sequence of its rows."""

    def __init__(self, layers: int, width: int = 24) -> None:
        super().__init__()
        self.embed, self.place = nn.Linear(8, width), nn.Parameter(torch.zeros(8, width))
        self.layers = nn.ModuleList(Layer(width, 4) for _ in range(layers))
        self.head = nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x.squeeze(1)) + self.place
        for layer in self.layers:
            x = layer(x)
        return self.head(x.mean(1))


x, y, test_x, test_y = load()
rows = []
for name, layers in {"untied": 4, "one layer, four times": 4, "one layer": 1}.items():
    torch.manual_seed(0)
    net = Rows(layers)
    if "times" in name:
        net = tied = fxtie.transform(net, fxtie.Rule("layers.*", "layers.0"))
    count = sum(p.numel() for p in net.layers.parameters())
    rows.append(
        (name, f"{count:,}", f"{accuracy(train(net, x, y, rate=5e-3), test_x, test_y):.1%}")
    )
print(tabulate(rows, ("encoder", "in its layers", "test accuracy"), stralign="right"))
assert rows[1][1] == rows[2][1]
fxtie.picture(tied).svg("universal_transformer.svg")
