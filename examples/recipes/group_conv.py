"""p4 group convolution: each filter in four rotations, so that a turned image changes nothing."""

import torch
from digits import accuracy, load, train
from tabulate import tabulate
from torch import Tensor, nn

import fxtie
from fxtie import transforms as T


class Net(nn.Module):
    """Three convs; then of each of 16 features the maximum over space and rotations."""

    def __init__(self) -> None:
        super().__init__()
        self.lift = nn.Conv2d(1, 64, 3, padding=1, bias=False)
        self.conv_1 = nn.Conv2d(64, 64, 3, padding=1, bias=False)
        self.conv_2 = nn.Conv2d(64, 64, 3, padding=1, bias=False)
        self.head = nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.lift(x).relu()
        x = nn.functional.avg_pool2d(self.conv_1(x).relu(), 2)
        x = self.conv_2(x).relu()
        return self.head(x.unflatten(1, (16, 4)).amax((2, 3, 4)))


# The filters that are turned belong to no layer: each bank holds a quarter of one.
RULES = [
    fxtie.Rule("lift", fxtie.Bank(1, (16, 1, 3, 3)), weight=T.orbit("p4", lifting=True)),
    fxtie.Rule("conv_1", fxtie.Bank(1, (16, 64, 3, 3)), weight=T.orbit("p4")),
    fxtie.Rule("conv_2", fxtie.Bank(1, (16, 64, 3, 3)), weight=T.orbit("p4")),
]

x, y, test_x, test_y = load()
turned = test_x.rot90(1, (2, 3))
rows = []
for name in ("untied", "p4"):
    torch.manual_seed(0)
    net = Net()
    net = train(net if name == "untied" else fxtie.transform(net, RULES), x, y, epochs=5)
    count = sum(p.numel() for p in net.parameters()) - sum(p.numel() for p in net.head.parameters())
    upright, after = accuracy(net, test_x, test_y), accuracy(net, turned, test_y)
    rows.append((name, f"{count:,}", f"{upright:.1%}", f"{after:.1%}"))
headers = ("net", "in its convs", "upright images", "turned by 90 degrees")
print(tabulate(rows, headers, stralign="right"))

assert 4 * int(rows[1][1].replace(",", "")) == int(rows[0][1].replace(",", ""))
with torch.no_grad():
    error = (net(turned) - net(test_x)).abs().max() / net(test_x).abs().max()
print(f"equivariance error of p4 below 1e-5: {(error < 1e-5).item()}")
fxtie.picture(net).svg("group_conv.svg")
