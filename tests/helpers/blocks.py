"""Blocks of two layers, and a tied weight in a row of them."""

from torch import nn


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm, self.fc1, self.fc2 = nn.LayerNorm(8), nn.Linear(8, 32), nn.Linear(32, 8)

    def forward(self, x):
        return x + self.fc2(self.fc1(self.norm(x)).tanh())


class Blocks(nn.Module):
    def __init__(self, n: int = 3):
        super().__init__()
        self.blocks = nn.Sequential(*(Block() for _ in range(n)))

    def forward(self, x):
        return self.blocks(x)
