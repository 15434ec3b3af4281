"""DistributedDataParallel: a tied model is replicated as any other."""

from __future__ import annotations

import pytest
import torch
from decoders import KINDS, Reference, batch, close, loss, made, train
from ranks import NOT_BEFORE_2_10
from torch.nn.parallel import DistributedDataParallel

import fxtie


class _Unwrapped(DistributedDataParallel):
    """With the parameter names of the model that it wraps."""

    def named_parameters(self, *args, **kwargs):
        return self.module.named_parameters(*args, **kwargs)


@pytest.mark.setting("DDP")
@pytest.mark.parametrize("kind", KINDS)
def test_equals_one_process(two_ranks, kind):
    two_ranks.run(trains, kind)


def trains(rank, kind):
    net = made(kind)
    train(_Unwrapped(net), Reference(kind), rank, 2)
    assert fxtie.report(net).missed == {}  # its graph ran


@NOT_BEFORE_2_10
@pytest.mark.setting("DDP, compiled")
@pytest.mark.parametrize("kind", KINDS)
def test_compiled(two_ranks, kind):
    two_ranks.run(trains_compiled, kind)


def trains_compiled(rank, kind):
    torch.compiler.reset()
    net = _Unwrapped(made(kind))
    compiled = torch.compile(net, backend="aot_eager")
    compiled.named_parameters = net.named_parameters
    train(compiled, Reference(kind), rank, 2)


@pytest.mark.setting("DDP, no_sync and derive_once")
@pytest.mark.parametrize("kind", KINDS)
def test_derive_once_for_all_micro_batches_but_the_last(two_ranks, kind):
    two_ranks.run(derives_once, kind)


def derives_once(rank, kind):
    """The block ends inside of no_sync; the last backward sums what all have gathered."""
    net, reference = made(kind), Reference(kind)
    ddp = DistributedDataParallel(net)
    mine = slice(2 * rank, 2 * rank + 2)
    with ddp.no_sync(), fxtie.derive_once(net):
        for number in range(3):
            loss(ddp(batch(2, number)[mine])).backward()
    loss(ddp(batch(2, 3)[mine])).backward()
    for number in range(4):
        loss(reference(batch(2, number))).backward()
    named = dict(net.named_parameters())
    for name, parameter in reference.parameters.items():
        close(named[name].grad, parameter.grad, 1e-5, f"gradient of {name}")
