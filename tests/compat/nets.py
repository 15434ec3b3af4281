"""The compatibility tests' nets, in a file of their own so that their classes can be pickled."""

from __future__ import annotations

import torch
from torch import nn
from vision import import_torchvision

from fxtie import Rule
from fxtie import transforms as T


class Gate(nn.Module):
    """Scales channels by what it makes of their means, which carry no gradient.

    A graph can't hold the `no_grad`, so that fxtie keeps this forward as it is.
    """

    def __init__(self, channels):
        super().__init__()
        self.fc_1, self.fc_2 = nn.Linear(channels, channels), nn.Linear(channels, channels)

    def forward(self, x):
        with torch.no_grad():
            mean = x.mean((2, 3))
        scale = torch.sigmoid(self.fc_2(torch.tanh(self.fc_1(mean))))
        return x * scale[:, :, None, None]


class Net(nn.Module):
    """Convolutions, batch norm, a kept part, dropout and an optional argument."""

    def __init__(self, dropout=0.0):
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.conv_1 = nn.Conv2d(8, 8, 3, padding=1)
        self.conv_2 = nn.Conv2d(8, 8, 3, padding=1)
        self.conv_3 = nn.Conv2d(8, 8, 3, padding=1)
        self.gate = Gate(8)
        self.fc_1, self.fc_2 = nn.Linear(8, 8), nn.Linear(8, 8)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x, shift=None):
        x = torch.tanh(self.norm(self.stem(x)))
        x = torch.tanh(self.conv_2(torch.tanh(self.conv_1(x))))
        x = self.gate(torch.tanh(self.conv_3(x))).mean((2, 3))
        if shift is not None:
            x = x + shift
        return self.fc_2(self.dropout(torch.tanh(self.fc_1(x))))


class Kept(Net):
    """The net with a root that no graph holds: fxtie keeps it, and what is inside are regions."""

    def forward(self, x, shift=None):
        with torch.no_grad():
            scale = x.square().mean().rsqrt()
        return super().forward(x * scale, shift)


def rules():
    """A tie, a chain of two, a learnable transform, and a tie inside of the kept part."""
    return [
        Rule("conv_2", "conv_1", weight=torch.sin),
        Rule("conv_3", "conv_2", weight=T.rot90(1)),
        Rule("gate.fc_2", "gate.fc_1", weight=torch.neg),
        Rule("fc_2", "fc_1", weight=T.LowRank(2)),
    ]


def resnet():
    """torchvision's ResNet-18, without its two widest stages."""
    resnet = import_torchvision().models.resnet
    model = resnet.ResNet(resnet.BasicBlock, [2, 2, 1, 1], num_classes=10)
    model.layer3, model.layer4, model.fc = nn.Identity(), nn.Identity(), nn.Linear(128, 10)
    return model


def resnet_rules():
    """A tie across blocks, one inside of a block, and a learnable transform."""
    return [
        Rule("layer1.1.conv2", "layer1.0.conv1", weight=T.rot90(1)),
        Rule("layer2.1.conv1", "layer2.1.conv2", weight=torch.sin),
        Rule("layer1.1.conv1", "layer1.0.conv2", weight=T.LowRank(2)),
    ]


CASES = {
    "net": (Net, rules, (2, 3, 8, 8)),
    "kept root": (Kept, rules, (2, 3, 8, 8)),
    "resnet": (resnet, resnet_rules, (4, 3, 32, 32)),
}


class ConvNet(nn.Module):
    """What torch.fx can trace and `fuse` can fold: two pairs of convolution and batch norm."""

    def __init__(self):
        super().__init__()
        self.conv_1, self.bn_1 = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.conv_2, self.bn_2 = nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.conv_3 = nn.Conv2d(8, 8, 3, padding=1)
        for bn in (self.bn_1, self.bn_2):
            bn.running_mean.uniform_(-1, 1)
            bn.running_var.uniform_(0.5, 2)

    def forward(self, x):
        x = torch.tanh(self.bn_1(self.conv_1(x)))
        return self.conv_3(torch.tanh(self.bn_2(self.conv_2(x))))
