"""Three projections that a layer may have stored as one."""

import torch
from torch import nn

X6 = torch.randn(2, 5, 6, generator=torch.Generator().manual_seed(1))


class Attention(nn.Module):
    """One for queries, keys and values each, and one for all of them."""

    def __init__(self, width=6, bias=False):
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(width, width, bias=bias) for _ in range(3))
        self.qkv = nn.Linear(width, 3 * width, bias=bias)
        self.out = nn.Linear(3 * width, width)

    def forward(self, x):
        scores = torch.softmax(self.q(x) @ self.k(x).transpose(-1, -2), -1)
        return scores @ self.v(x) + self.out(self.qkv(x))


def split(w):
    return w.chunk(3)
