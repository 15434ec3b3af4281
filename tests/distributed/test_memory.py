"""The memory of a rank, and `recompute=True` in models that are sharded."""

from __future__ import annotations

import pytest
import torch
from counting import Memory, Sent
from decoders import KINDS, Block, Net, Reference, batch, loss, made, mesh_of, shard, train
from ranks import OTHER_ORDER_IN_2_9
from test_tensor_parallel import STYLES, train_on_all_ranks
from torch.distributed.fsdp import CPUOffloadPolicy, MixedPrecisionPolicy
from torch.distributed.tensor.parallel import parallelize_module

import fxtie


@pytest.mark.setting("FSDP2, recompute=True")
@pytest.mark.parametrize("kind", KINDS)
def test_recomputed(two_ranks, kind):
    two_ranks.run(trains, kind, {})


OPTIONS = {
    "keep": {"reshard_after_forward": False},
    "offload": {"offload_policy": CPUOffloadPolicy(pin_memory=False)},
    "cast before the gather": {"mp_policy": MixedPrecisionPolicy(torch.float64)},
    "cast after the gather": {"mp_policy": MixedPrecisionPolicy(torch.float64, torch.float32)},
}


@pytest.mark.parametrize("options", OPTIONS)
def test_recomputed_with_options(two_ranks, options):
    two_ranks.run(trains, "across", OPTIONS[options])


def test_recomputed_from_a_source_of_the_same_unit(two_ranks):
    """It is there again in the backward pass: the unit has gathered it."""
    two_ranks.run(trains, "within", {"reshard_after_forward": True})


def trains(rank, kind, options):
    train(shard(made(kind, recompute=True), "blocks", **options), Reference(kind), rank, 2)


@pytest.mark.setting("tensor parallel, recompute=True")
@pytest.mark.parametrize("kind", KINDS)
def test_recomputed_by_tensor_parallelism(two_ranks, kind):
    two_ranks.run(trains_parts, kind)


def trains_parts(rank, kind):
    net = made(kind, recompute=True)
    parallelize_module(net, mesh_of(2), STYLES["columns, rows"]())
    train_on_all_ranks(net, Reference(kind))


@OTHER_ORDER_IN_2_9
@pytest.mark.setting("tensor parallel and FSDP2, recompute=True, 4 ranks")
@pytest.mark.parametrize("kind", KINDS)
def test_recomputed_in_two_dimensions(four_ranks, kind):
    four_ranks.run(trains_in_two_dimensions, kind)


def trains_in_two_dimensions(rank, kind):
    mesh = mesh_of(2, 2, names=("data", "model"))
    net = made(kind, recompute=True)
    parallelize_module(net, mesh["model"], STYLES["columns, rows"]())
    shard(net, "blocks", mesh=mesh["data"])
    train(net, Reference(kind), mesh.get_local_rank("data"), 2)


def test_sources_are_gathered_again(two_ranks):
    """Neither a gathered source nor what is derived of it lives until the backward pass."""
    answers = two_ranks.run(gathers_and_holds)
    assert answers[0] == answers[1]  # all ranks send the same, in the same order


def gathers_and_holds(rank):
    (forward, backward, held), (again, more, less) = (step_of_blocks(r) for r in (False, True))
    sizes = {name: parameter.numel() for name, parameter in Block().named_parameters()}
    weights = {name for name in sizes if name.endswith("weight")}
    # What a layer's backward takes: its weight, and of a norm the bias. That of the sine: what it
    # was of.
    taken = [*weights, "norm.bias", *weights]
    assert again.gathers == forward.gathers == 2 * len(sizes)
    assert more.gathers - backward.gathers == 2 * len(taken)
    assert held - less == 2 * 4 * sum(map(sizes.__getitem__, taken))
    return again.calls, more.calls


def step_of_blocks(recompute):
    """What a step sends in its two passes, and the bytes that live in between."""
    net = shard(made("across", recompute=recompute), "blocks")
    for _ in range(2):  # the first call sets things up
        with Memory() as memory, Sent() as forward:
            result = loss(net(batch(2, 0)))
        with Sent() as backward:
            held = memory.settled
            result.backward()
    return forward, backward, held


def test_derived_parts_are_computed_again(two_ranks):
    two_ranks.run(holds_no_parts)


def holds_no_parts(rank):
    held = []
    for recompute in (False, True):
        net = made("across", recompute=recompute)
        parallelize_module(net, mesh_of(2), STYLES["columns, rows"]())
        with Memory() as memory:
            result = loss(net(batch(2, 0)))
        held.append(memory.settled)
        del result
    parts = [net.blocks[0].up.weight, net.blocks[0].down.weight]
    parts = [part.to_local() for part in parts] + [net.blocks[0].norm.weight]
    assert held[0] - held[1] == 2 * sum(part.nbytes for part in parts)


def test_a_source_that_changes_in_between(two_ranks):
    two_ranks.run(changes)


def changes(rank):
    net = shard(made("across", recompute=True), "blocks")
    result = loss(net(batch(2, 0)))
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.mul_(2)
    # It is told before anything is sent: all ranks raise.
    with pytest.raises(RuntimeError, match=r"source of 'blocks[.]3.*changed in place"):
        result.backward()


MODELS = {
    "untied": (None, {}),
    "derived": ("sin", {}),
    "derived, recompute=True": ("sin", {"recompute": True}),
    "the same": ("same", {}),
    "the same, recompute=True": ("same", {"recompute": True}),
}


@pytest.mark.parametrize("ranks", ["two_ranks", "four_ranks"])
def test_what_a_rank_holds(request, record_property, ranks):
    group = request.getfixturevalue(ranks)
    found = {what: group.run(measures, *MODELS[what])[0] for what in MODELS}
    rows = [(what, group.count, *(b / 1e6 for b in bytes_)) for what, bytes_ in found.items()]
    record_property("memory", rows)
    for what, (stored, peak) in found.items():
        assert what == "untied" or stored < 0.52 * found["untied"][0]
        assert "recompute" not in what or peak < found["untied"][1]
    assert found["derived, recompute=True"][1] < 0.7 * found["derived"][1]


def measures(rank, transform, options):
    """Bytes of the parameters of a rank, and the most that a step takes beside them."""
    torch.manual_seed(0)
    net = Net(width=64, blocks=8)
    if transform is not None:
        weight = {"sin": torch.sin, "same": fxtie.same}[transform]
        rule = fxtie.Rule("re:blocks[.]([4-7])", "blocks.{0 - 4}", weight=weight)
        net = fxtie.transform(net, rule, **options)
    shard(net, "blocks")
    stored = sum(parameter.to_local().nbytes for parameter in net.blocks.parameters())
    for _ in range(2):
        with Memory() as memory:
            loss(net(batch(2, 0)[:1])).backward()
        net.zero_grad()
    return stored, memory.peak
