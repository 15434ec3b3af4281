"""Pipelines: ties that cross their stages."""

from __future__ import annotations

import warnings

import pytest
import torch
from decoders import KINDS, Reference, batch, close, cut, made
from ranks import NO_PIPELINES_IN_2_9
from torch import nn
from torch.distributed.pipelining import (
    PipelineStage,
    Schedule1F1B,
    ScheduleGPipe,
    ScheduleInterleaved1F1B,
    SplitPoint,
    pipeline,
)

import fxtie
from fxtie.distributed import share_across_stages

SCHEDULES = {
    "GPipe": (ScheduleGPipe, 2),
    "1F1B": (Schedule1F1B, 2),
    "interleaved 1F1B": (ScheduleInterleaved1F1B, 4),
}


def mean_square(output, target):
    return output.square().mean() + 0 * target.sum()


@NO_PIPELINES_IN_2_9
@pytest.mark.setting("pipeline, {schedule}")
@pytest.mark.parametrize("kind", ["across", "before", "self", "learned", "bank", "head"])
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_equals_one_process(two_ranks, kind, schedule):
    two_ranks.run(trains, kind, schedule)


def trains(rank, kind, schedule):
    make, count = SCHEDULES[schedule]
    numbers = range(rank, count, 2)
    nets = [cut(made(kind), number, count) for number in numbers]
    shared = share_across_stages(nets)
    stages = [
        PipelineStage(net, number, count, torch.get_default_device())
        for net, number in zip(nets, numbers, strict=True)
    ]
    running = make(stages if count > 2 else stages[0], 4, loss_fn=mean_square)
    train(rank, nets, shared, running, Reference(kind))


@NO_PIPELINES_IN_2_9
@pytest.mark.setting("pipeline, cut by torch")
@pytest.mark.parametrize("kind", KINDS)
def test_cut_by_torch(two_ranks, kind):
    two_ranks.run(trains_what_torch_cuts, kind)


def trains_what_torch_cuts(rank, kind):
    """Each stage has the sources that it reads, under their names."""
    split = {"blocks.2": SplitPoint.BEGINNING}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # torch uses what it has deprecated
        pipe = pipeline(made(kind), (batch(2, 0)[:1],), split_spec=split)
    net = pipe.get_stage_module(rank)
    shared = share_across_stages(net)
    stage = pipe.build_stage(rank, torch.get_default_device())
    running = ScheduleGPipe(stage, 4, loss_fn=mean_square)
    train(rank, [net], shared, running, Reference(kind))


def train(rank, nets, shared, running, reference):
    """Train both, and compare at each step."""
    ours = torch.optim.SGD({p: None for net in nets for p in net.parameters()}, lr=0.05)
    theirs = torch.optim.SGD(reference.parameters.values(), lr=0.05)
    for step in range(2):
        ids, target = batch(2, step), torch.zeros(4)
        running.step(*[ids] if rank == 0 else [], **({"target": target} if rank == 1 else {}))
        reference(ids).square().mean().backward()
        shared.reduce_gradients()
        norm = shared.clip_grad_norm_(0.1)
        expected = nn.utils.clip_grad_norm_(reference.parameters.values(), 0.1)
        close(norm, expected, 1e-4, "norm of the gradients")
        for net in nets:
            compare(net, reference)
        for optimizer in (ours, theirs):
            optimizer.step()
            optimizer.zero_grad()


def compare(net, reference):
    """Compare the gradients of a stage, of copied sources too."""
    for name, parameter in net.named_parameters():
        whole_name = name.removeprefix("ties.shared.").replace("/", ".")
        expected = reference.parameters[whole_name].grad
        close(parameter.grad, expected, 1e-4, f"gradient of {name}")


def test_without_it_the_tie_is_named(two_ranks):
    two_ranks.run(does_without)


def does_without(rank):
    net = cut(made("across"), 1, 2)
    with pytest.raises(fxtie.FxtieError, match=r"blocks.0.up.weight.*share_across_stages"):
        _ = net.blocks._modules["2"].up.weight


@pytest.mark.parametrize(("kind", "source"), [("across", "0.down.bias"), ("chain", "1.up.bias")])
def test_a_source_that_no_stage_stores(two_ranks, kind, source):
    two_ranks.run(lacks_the_source, kind, source)


def lacks_the_source(rank, kind, source):
    """Both ranks run the last stage, or one derives from what another derives."""
    net = cut(made(kind), 1 if kind == "across" else rank, 2)
    with pytest.raises(fxtie.FxtieError, match=f"blocks.{source}', which no stage stores"):
        share_across_stages(net)
