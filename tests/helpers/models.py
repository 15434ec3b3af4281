"""Models whose source pytest must not rewrite (it rewrites the asserts of test files)."""

import torch
from torch import nn


class Branches(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(6, 6), nn.Linear(6, 6)

    def forward(self, x, other):
        if other is not None:
            x = x + other
        if isinstance(x, torch.Tensor):
            x = x * 2
        assert x.shape[-1] == 6, "six features"
        return self.b(self.a(x))
