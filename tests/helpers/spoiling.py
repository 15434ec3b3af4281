"""Models to verify, and hooks that spoil what a tied one computes."""

import pytest
import torch
from torch import nn

import fxtie
from fxtie import Rule
from fxtie.life.verifying.results import Vacuous

RULE = Rule("2", "0", torch.square)


def net(**options) -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 4, **options), nn.Tanh(), nn.Linear(4, 4, **options))


def inputs(**options):
    return torch.randn(3, 4, **options)


def tie(model):
    return fxtie.transform(model, Rule("b", "a", torch.square))


class Spoil:
    """A hook that changes what a model returns, or the model itself, when `when()` is true.

    deepcopy takes it and its count along.
    """

    def __init__(self, change, when=lambda module, calls: True):
        self.change, self.when, self.calls = change, when, 0

    def __call__(self, module, args, output):
        self.calls += 1
        return self.change(module, args, output) if self.when(module, self.calls) else None


def spoiled(tied, change, when=lambda module, calls: True):
    tied.register_forward_hook(Spoil(change, when))
    return tied


def add_gradient(tied, name, factor=1.0):
    """Spoil the gradient of a parameter, and nothing else."""

    def change(module, args, output):
        parameter = module.get_parameter(name)
        return output + factor * (parameter - parameter.detach()).sum()

    return spoiled(tied, change)


def finds(model, tied, message, *args, **options):
    with pytest.raises(fxtie.VerificationError, match=message) as caught:
        fxtie.verify(model, tied, *(args or (inputs(),)), **options)
    assert not isinstance(caught.value, Vacuous)


def add_one(module, args, output):
    return output + 1


def double_gradients(module, args, output):
    return output * 2 - output.detach()


def count_batch(module, args, output):
    module[3].num_batches_tracked += 1


def fail(module, args, output):
    raise LookupError("lost")
