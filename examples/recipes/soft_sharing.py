"""Soft parameter sharing: the convs of each stage of WRN-28-10 are mixtures of a few templates."""

import torch
import torch.nn.functional as F
from tabulate import tabulate
from torch import Tensor, nn

import fxtie
from fxtie import transforms as T


class Block(nn.Module):
    """Batch norm, ReLU, conv, twice; a 1x1 conv on the way around where the width changes."""

    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.norm_1, self.norm_2 = nn.BatchNorm2d(before), nn.BatchNorm2d(after)
        self.conv_1 = nn.Conv2d(before, after, 3, stride, 1, bias=False)
        self.conv_2 = nn.Conv2d(after, after, 3, 1, 1, bias=False)
        self.short = nn.Conv2d(before, after, 1, stride, bias=False) if before != after else None

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.norm_1(x))
        around = x if self.short is None else self.short(y)
        return around + self.conv_2(F.relu(self.norm_2(self.conv_1(y))))


class WideResNet(nn.Module):
    """WRN-28-10 for 32x32 images: three stages of four blocks."""

    def __init__(self, widths: tuple[int, ...] = (160, 320, 640)) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        before, self.stages = 16, nn.ModuleList()
        for i, width in enumerate(widths):
            first = Block(before, width, 2 if i else 1)
            self.stages.append(nn.Sequential(first, *(Block(width, width, 1) for _ in range(3))))
            before = width
        self.norm, self.head = nn.BatchNorm2d(before), nn.Linear(before, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        for stage in self.stages:
            x = stage(x)
        return self.head(F.relu(self.norm(x)).mean((2, 3)))


def rules(net: WideResNet, templates: int) -> list[fxtie.Rule]:
    """A bank for each stage; the first block of a stage keeps its own weights."""
    shapes = [tuple(stage[1].conv_1.weight.shape) for stage in net.stages]
    return [
        fxtie.Rule(
            rf"re:stages\.{i}\.[1-3]\.conv_.", fxtie.Bank(templates, shape), T.Mix(templates)
        )
        for i, shape in enumerate(shapes)
    ]


COUNTS = {1: 12_287_212, 2: 17_125_630, 6: 36_479_302}
with torch.device("meta"):  # counts need no values
    net = WideResNet()
    rows = [("WRN-28-10", f"{sum(p.numel() for p in net.parameters()):,}")]
    for templates, expected in COUNTS.items():
        tied = fxtie.transform(net, rules(net, templates))
        count = sum(p.numel() for p in tied.parameters())
        assert count == expected
        rows.append((f"SWRN-28-10-{templates}", f"{count:,}"))
    fxtie.picture(fxtie.plan(net, rules(net, 2))).svg("soft_sharing.svg")
assert rows[0][1] == "36,479,194"
print(tabulate(rows, ("net", "parameters"), stralign="right"))
