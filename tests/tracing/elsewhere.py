"""Helpers of forwards that live in a file of their own."""

import functools

import torch
from torch import is_grad_enabled, manual_seed, nn


def doubled_with_gradients(x):
    return x * 2 if is_grad_enabled() else x


def seeded(x):
    manual_seed(3)
    return x + torch.rand(4)


def with_scale(forward):
    """A decorator that fills an argument by keyword only."""

    @functools.wraps(forward)
    def wrapped(self, *args, **kwargs):
        kwargs.setdefault("scale", 2.0)
        return forward(self, *args, **kwargs)

    return wrapped


STATE = {"n": 1}


class Cache:
    """As the caches of keys and values in decoders."""

    def __init__(self):
        self.entries = []

    def update(self, x):
        self.entries.append(x.detach())
        return torch.stack(self.entries).sum(0)


@torch.fx.wrap
def square(x):  # there is an op of torch's that is called so
    return x * 3


@torch.jit.script
def scripted(x: torch.Tensor) -> torch.Tensor:
    return torch.relu(x) + 1


class Two(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)


class Outer(nn.Module):
    """Code of the user's around another module."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        return self.inner(x) + 1
