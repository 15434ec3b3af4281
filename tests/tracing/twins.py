"""An independent twin of a tied model, and what a model does in a series of circumstances.

The twin is the same class, its targets computed by `torch.nn.utils.parametrize` at each read. It
has state, so it says what must come out also where `functional_call` can't: after several calls,
with caches, counters and changes in between.
"""

import contextlib
import random

import numpy
import torch
from torch import nn
from torch.nn.utils import parametrize
from torch.utils import _pytree as pytree


class _Derived(nn.Module):
    """Computes a target from the tensor that another module has now."""

    def __init__(self, root, source, transform):
        super().__init__()
        self.held = [root]  # not a child
        self.source, self.transform = source, transform

    def forward(self, stored):
        path, _, attr = self.source.rpartition(".")
        return self.transform(getattr(self.held[0].get_submodule(path), attr))


def twin_of(model, ties):
    """Make a model its own twin, in place."""
    for tie in ties:
        path, _, attr = tie.target.rpartition(".")
        (source,) = tie.sources
        derived = _Derived(model, source, tie.transform)
        parametrize.register_parametrization(model.get_submodule(path), attr, derived, unsafe=True)
    return model


def seed(number):
    """Seed all generators of the CPU. `torch.manual_seed` formats tracebacks for other devices."""
    torch.default_generator.manual_seed(number)
    random.seed(number)
    numpy.random.seed(number)


CIRCUMSTANCES = {
    "eval": (False, contextlib.nullcontext, 3),
    "eval again": (False, contextlib.nullcontext, 3),
    "train": (True, contextlib.nullcontext, 3),
    "train again": (True, contextlib.nullcontext, 3),
    "no_grad": (False, torch.no_grad, 3),
    "inference": (False, torch.inference_mode, 3),
    "autocast": (True, lambda: torch.autocast("cpu", torch.bfloat16), 3),
    "another size": (False, contextlib.nullcontext, 5),
    "once more": (True, contextlib.nullcontext, 3),
}
"""Name: training, context, batch size."""


def run(model, name, **kwargs):
    """One call, with gradients. Returns outputs, and gradients by name; or the exception."""
    training, context, size = CIRCUMSTANCES[name]
    model.train(training)
    seed(3)
    x = torch.randn(size, 4)
    for parameter in model.parameters():
        parameter.grad = None
    seed(5)
    try:
        with context():
            output = model(x, **kwargs)
        tensors = [t for t in pytree.tree_leaves(output) if isinstance(t, torch.Tensor)]
        if any(t.requires_grad for t in tensors):
            sum(t.float().square().mean() for t in tensors if t.requires_grad).backward()
    # Whatever the forward raises, both sides must.
    except Exception as error:
        return error, {}
    gradients = {
        name.replace("parametrizations.", "").replace(".original", ""): p.grad.clone()
        for name, p in model.named_parameters()
        if p.grad is not None
    }
    return pytree.tree_map(_detached, output), gradients


def _detached(value):
    return value.detach().clone() if isinstance(value, torch.Tensor) else value


def assert_same(found, expected, where):
    """Outputs bit for bit; gradients to rounding."""
    (output, gradients), (reference, references) = found, expected
    if isinstance(reference, Exception) or isinstance(output, Exception):
        both = isinstance(output, Exception) and isinstance(reference, Exception)
        assert both, f"{where}: {output!r:.300} instead of {reference!r:.300}"
        return
    assert pytree.tree_structure(output) == pytree.tree_structure(reference), where
    for a, b in zip(pytree.tree_leaves(output), pytree.tree_leaves(reference), strict=True):
        if isinstance(b, torch.Tensor):
            same = a.dtype == b.dtype and torch.equal(a.nan_to_num(), b.nan_to_num())
            assert same, f"{where}: outputs differ by {(a - b).abs().max():.1e}"
        else:
            assert a == b, f"{where}: {a} instead of {b}"
    for name in {*gradients, *references}:
        a, b = gradients.get(name), references.get(name)
        assert (a is None) == (b is None), f"{where}: gradient of {name} is {a}, not {b}"
        error = (a - b).norm() / (b.norm() + 1e-12)
        # Under autocast, gradients of several uses add up in bfloat16, in one order or another.
        limit = 2**-5 if where.startswith("autocast") else 1e-4
        assert not error > limit, f"{where}: gradient of {name} is off by {error:.1e}"
