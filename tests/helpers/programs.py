"""A model and its program of `torch.export`, and what several test files do with programs."""

import functools
import io

import torch
from torch import nn
from torch.export import export


def reloaded(program):
    """The program, saved and loaded again."""
    file = io.BytesIO()
    torch.export.save(program, file)
    file.seek(0)
    return torch.export.load(file)


class Net(nn.Module):
    """Linear layers and a batch norm; the last layer's weight is an output too."""

    def __init__(self):
        super().__init__()
        self.fc_1, self.fc_2, self.fc_3 = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 6)
        self.norm = nn.BatchNorm1d(6)
        self.head = nn.Linear(6, 6)

    def forward(self, x):
        x = torch.tanh(self.fc_2(torch.tanh(self.fc_1(x))))
        return self.head(self.norm(self.fc_3(x))), self.head.weight


class Shared(nn.Module):
    """One tensor of two names, one layer of two names, and a layer called twice."""

    def __init__(self):
        super().__init__()
        self.fc_1, self.fc_2, self.fc_3 = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 6)
        self.again = self.fc_3
        self.fc_2.weight = self.fc_1.weight

    def forward(self, x):
        return self.fc_3(self.again(self.fc_2(self.fc_1(x))))


@functools.cache
def made(device):
    """A model, its input, and its program: exported once, since nothing may change a program."""
    net, x = Net().to(device).eval(), torch.randn(3, 6, device=device)
    net.norm.running_mean.uniform_(-1, 1)
    return net, x, export(net, (x,))


@functools.cache
def decomposition(device):
    return made(device)[2].run_decompositions()


def targets(program):
    return [node.target for node in program.graph.nodes]


def assert_same(found, expected):
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)
