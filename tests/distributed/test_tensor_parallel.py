"""Tensor parallelism: `parallelize_module` on sources and targets alike."""

from __future__ import annotations

import warnings

import pytest
import torch
from decoders import KINDS, Net, Reference, batch, close, loss, made, mesh_of, shard, train, whole
from torch import nn
from torch.distributed.tensor import Replicate, Shard, distribute_module, distribute_tensor
from torch.distributed.tensor.debug import CommDebugMode
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    RowwiseParallel,
    SequenceParallel,
    parallelize_module,
)

UP, DOWN = ColwiseParallel, RowwiseParallel


def styles(of_block, blocks=range(4), **others):
    names = {f"blocks.{i}.{name}": make() for i in blocks for name, make in of_block.items()}
    return {**names, **others}


STYLES = {
    "columns, rows": lambda: styles({"up": UP, "down": DOWN}),
    "rows alone": lambda: styles({"up": lambda: DOWN(input_layouts=Replicate())}),
    "the first blocks": lambda: styles({"up": UP, "down": DOWN}, range(2)),
    "the last blocks": lambda: styles({"up": UP, "down": DOWN}, range(2, 4)),
    "other styles for the last": lambda: {
        **styles({"up": UP, "down": DOWN}, range(2)),
        **styles({"up": lambda: DOWN(input_layouts=Replicate())}, range(2, 4)),
    },
    "embedding and head": lambda: {
        "embed": RowwiseParallel(input_layouts=Replicate()),
        "head": ColwiseParallel(output_layouts=Replicate()),
    },
    "sequence": lambda: {
        "embed": DOWN(input_layouts=Replicate(), output_layouts=Shard(1)),
        **styles(
            {
                "norm": SequenceParallel,
                "up": lambda: UP(input_layouts=Shard(1)),
                "down": lambda: DOWN(output_layouts=Shard(1)),
            }
        ),
        "head": UP(input_layouts=Shard(1), output_layouts=Replicate()),
    },
}


@pytest.mark.setting("tensor parallel: {of}")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("of", STYLES)
def test_equals_one_process(two_ranks, kind, of):
    two_ranks.run(trains, kind, of)


def trains(rank, kind, of):
    net = parallelize_module(made(kind), mesh_of(2), STYLES[of]())
    train_on_all_ranks(net, Reference(kind))


def train_on_all_ranks(net, reference):
    """As `decoders.train`, but each rank gets the whole batch."""
    ours = torch.optim.SGD(net.parameters(), lr=0.05)
    theirs = torch.optim.SGD(reference.parameters.values(), lr=0.05)
    for step in range(2):
        output, expected = net(batch(2, step)), reference(batch(2, step))
        close(whole(output), expected, 1e-5, "output")
        loss(whole(output)).backward()
        loss(expected).backward()
        named = dict(net.named_parameters())
        assert named.keys() == reference.parameters.keys()
        for name, parameter in reference.parameters.items():
            close(whole(named[name].grad), parameter.grad, 1e-5, f"gradient of {name}")
        for optimizer in (ours, theirs):
            optimizer.step()
            optimizer.zero_grad()


@pytest.mark.setting("tensor parallel and FSDP2, 4 ranks")
@pytest.mark.parametrize("kind", KINDS)
def test_with_fsdp(four_ranks, kind):
    """Two ranks split the batch, two the layers."""
    four_ranks.run(trains_in_two_dimensions, kind)


def trains_in_two_dimensions(rank, kind):
    mesh = mesh_of(2, 2, names=("data", "model"))
    net = parallelize_module(made(kind), mesh["model"], STYLES["columns, rows"]())
    shard(net, "blocks", mesh=mesh["data"])
    train(net, Reference(kind), mesh.get_local_rank("data"), 2)


@pytest.mark.setting("distribute_module, replicated")
@pytest.mark.parametrize("kind", KINDS)
def test_a_whole_model(two_ranks, kind):
    two_ranks.run(distributes, kind)


def distributes(rank, kind):
    """All parameters become DTensors, and so does the input."""
    mesh = mesh_of(2)
    net = distribute_module(
        made(kind),
        mesh,
        input_fn=lambda _, inputs, mesh: distribute_tensor(inputs[0], mesh, [Replicate()]),
    )
    train_on_all_ranks(net, Reference(kind))


@pytest.mark.setting("distribute_module, with a function")
@pytest.mark.parametrize("kind", KINDS)
def test_a_function_that_partitions(two_ranks, kind):
    two_ranks.run(partitions, kind)


def partitions(rank, kind):
    def columns(name, module, mesh):
        if isinstance(module, nn.Linear):
            for attr, parameter in list(module.named_parameters(recurse=False)):
                placed = distribute_tensor(parameter, mesh, [Shard(0)])
                module.register_parameter(attr, nn.Parameter(placed))

    net = distribute_module(
        made(kind),
        mesh_of(2),
        columns,
        lambda _, inputs, mesh: distribute_tensor(inputs[0], mesh, [Replicate()]),
    )
    for name in ("up", "down"):
        for block in net.blocks:
            assert block.get_submodule(name).weight.placements == (Shard(0),)
    train_on_all_ranks(net, Reference(kind))


def test_elementwise_transforms_send_nothing(two_ranks):
    two_ranks.run(sends_nothing)


def sends_nothing(rank):
    counts = []
    for net in (made("across"), Net()):
        parallelize_module(net, mesh_of(2), STYLES["columns, rows"]())
        with CommDebugMode() as sent, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # CommDebugMode hooks all modules, and torch warns
            loss(net(batch(2, 0))).backward()
        counts.append(sent.get_total_counts())
    assert counts[0] == counts[1] > 0
    with CommDebugMode() as sent:
        assert net.blocks[2].up.weight.placements == (Shard(0),)
    assert sent.get_total_counts() == 0


def test_a_style_that_fails_leaves_the_model_as_it_was(two_ranks):
    two_ranks.run(fails)


def fails(rank):
    class Fails(UP):
        def _partition_linear_fn(self, name, module, mesh):
            raise LookupError

    net, reference = made("across"), Reference("across")
    with pytest.raises(LookupError):
        parallelize_module(net, mesh_of(2), {"blocks.2.up": Fails()})
    close(net(batch(2, 0)), reference(batch(2, 0)), 1e-6, "output")
    assert dict(net.named_parameters()).keys() == reference.parameters.keys()
