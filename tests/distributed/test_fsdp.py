"""FSDP2: `fully_shard` of tied models, in any mixture of units."""

from __future__ import annotations

import warnings
from datetime import timedelta
from functools import partial

import pytest
import torch
from counting import Sent
from decoders import (
    KINDS,
    UNITS,
    Block,
    Net,
    Reference,
    batch,
    close,
    loss,
    made,
    mesh_of,
    rules,
    shard,
    train,
    whole,
)
from ranks import NOT_BEFORE_2_10
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import (
    CheckpointImpl,
    apply_activation_checkpointing,
    checkpoint_wrapper,
)
from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import (
    CPUOffloadPolicy,
    FSDPModule,
    FullyShardedDataParallel,
    MixedPrecisionPolicy,
)
from torch.distributed.fsdp.wrap import ModuleWrapPolicy
from torch.distributed.tensor.parallel import ColwiseParallel, parallelize_module

import fxtie
from fxtie import Rule


def trains(rank, kind, units, options, transform):
    net = shard(made(kind, **transform), units, **options)
    train(net, Reference(kind), rank, torch.distributed.get_world_size())


@pytest.mark.setting("FSDP2, units: {units}")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("units", UNITS)
def test_equals_one_process(two_ranks, kind, units):
    two_ranks.run(trains, kind, units, {}, {})


def test_without_graphs(two_ranks):
    two_ranks.run(trains, "across", "blocks", {}, {"trace": False})


OPTIONS = {
    "reshard": {"reshard_after_forward": True},
    "keep": {"reshard_after_forward": False},
    "offload": {"offload_policy": CPUOffloadPolicy(pin_memory=False)},
}


@pytest.mark.setting("FSDP2, {options}")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("options", OPTIONS)
def test_options(two_ranks, kind, options):
    two_ranks.run(trains, kind, "blocks", OPTIONS[options], {})


@pytest.mark.setting("FSDP2, bf16")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("reduced", [None, torch.float32])
def test_mixed_precision(two_ranks, kind, reduced):
    two_ranks.run(trains_in_bf16, kind, MixedPrecisionPolicy(torch.bfloat16, reduced))


def trains_in_bf16(rank, kind, policy):
    net = shard(made(kind), "blocks", mp_policy=policy)
    seen = set()
    for block in net.blocks:
        block.register_forward_pre_hook(lambda b, _: seen.add(b.up.weight.dtype))
    # One step, since FSDP2 adds it to parameters in single precision.
    train(net, Reference(kind, torch.bfloat16), rank, 2, steps=1, tolerance=2e-2)
    assert seen == {torch.bfloat16}


@pytest.mark.setting("FSDP2, micro-batches without gradient sync")
@pytest.mark.parametrize("kind", KINDS)
def test_micro_batches(two_ranks, kind):
    two_ranks.run(trains_in_micro_batches, kind)


def trains_in_micro_batches(rank, kind):
    def before(net, is_last):
        net.set_requires_gradient_sync(is_last)
        net.set_reshard_after_backward(is_last)

    net = shard(made(kind), "blocks")
    train(net, Reference(kind), rank, 2, micro_batches=2, before=before)


@pytest.mark.setting("FSDP2, divide factor, clipped norm")
@pytest.mark.parametrize("kind", KINDS)
def test_divide_factor_and_clipping(two_ranks, kind):
    two_ranks.run(trains_with_factor, kind)


def trains_with_factor(rank, kind):
    def after(net, expected):
        for parameter in expected.values():
            parameter.grad *= 2 / 3  # the sum of two means, by 3
        norms = [
            nn.utils.clip_grad_norm_(parameters, 0.1)
            for parameters in (net.parameters(), expected.values())
        ]
        close(whole(norms[0]), norms[1], 1e-5, "norm of the gradients")

    net = shard(made(kind), "blocks")
    for unit in net.modules():
        if isinstance(unit, FSDPModule):
            unit.set_gradient_divide_factor(3)
            unit.set_force_sum_reduction_for_comms(True)  # all that gloo has
    train(net, Reference(kind), rank, 2, after=after)


@pytest.mark.setting("FSDP2, hybrid (HSDP), 4 ranks")
@pytest.mark.parametrize("kind", KINDS)
def test_hybrid(four_ranks, kind):
    """Sharded over two ranks, and replicated over two."""
    four_ranks.run(trains_on_mesh, kind, (2, 2), {})


@pytest.mark.setting("FSDP2, reshard_after_forward=2, 4 ranks")
@pytest.mark.parametrize("kind", KINDS)
def test_reshard_to_a_part_of_the_ranks(four_ranks, kind):
    four_ranks.run(trains_on_mesh, kind, (4,), {"reshard_after_forward": 2})


def trains_on_mesh(rank, kind, shape, options):
    mesh = mesh_of(*shape, names=("replicated", "sharded")[-len(shape) :])
    train(shard(made(kind), "blocks", mesh=mesh, **options), Reference(kind), rank, 4)


@pytest.mark.setting("FSDP2, activation checkpoints")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointed_blocks(two_ranks, kind, reentrant):
    two_ranks.run(trains_checkpointed, kind, reentrant)


def trains_checkpointed(rank, kind, reentrant):
    impl = CheckpointImpl.REENTRANT if reentrant else CheckpointImpl.NO_REENTRANT
    net = made(kind)
    apply_activation_checkpointing(
        net,
        checkpoint_wrapper_fn=partial(checkpoint_wrapper, checkpoint_impl=impl),
        check_fn=lambda module: isinstance(module, Block),
    )
    train(shard(net, "blocks"), Reference(kind), rank, 2)


@NOT_BEFORE_2_10
@pytest.mark.setting("FSDP2, blocks compiled")
@pytest.mark.parametrize("kind", ["across", "self", "bank"])
def test_compiled_blocks(two_ranks, kind):
    two_ranks.run(trains_compiled, kind, "blocks")


@NOT_BEFORE_2_10
def test_compiled(two_ranks):
    two_ranks.run(trains_compiled, "across", "root")


def trains_compiled(rank, kind, what):
    torch.compiler.reset()
    net = made(kind)
    for module in net.blocks if what == "blocks" else [net]:
        module.compile(backend="aot_eager")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Dynamo asks each tensor for its gradient, and torch warns
        train(shard(net, "blocks"), Reference(kind), rank, 2)


READERS = {
    "untied": ("", False),
    "1 block read by another": ("3", False),
    "1 block read by 2 others": ("23", False),
    "1 block read by 2 others, recompute=True": ("23", True),
}


@pytest.mark.parametrize("ranks", ["two_ranks", "four_ranks"])
def test_what_is_sent(request, record_property, ranks):
    """What is read elsewhere is gathered once in a step, however many read it, and reduced once."""
    group = request.getfixturevalue(ranks)
    counts = {what: group.run(step_of, *READERS[what])[0] for what in READERS}
    rows = [(what, group.count, n, b / 1e6) for what, (n, b) in counts.items()]
    record_property("sent", rows)
    tensors = len(list(Block().parameters()))
    untied, one, two, again = (count for count, _ in counts.values())
    # A block that has nothing left is no unit: no gather in forward and backward, no reduction.
    assert one - (untied - 3) == 2 * tensors
    assert two - (untied - 6) == 2 * tensors
    # Each reader gathers and reduces for itself. In the backward pass, it gathers what its layers
    # take, and what the sine was of: three weights each, and the bias of the norm.
    assert again - (untied - 6) == 2 * (2 * tensors + 7)


def step_of(rank, readers, recompute):
    torch.manual_seed(0)
    net = Net()
    if readers:
        rule = fxtie.Rule(f"re:blocks[.][{readers}]", "blocks.0", weight=torch.sin)
        net = fxtie.transform(net, rule, recompute=recompute)
    shard(net, "blocks")
    for _ in range(2):  # the first call sets things up
        with Sent() as sent:
            loss(net(batch(2, 0))).backward()
    return len(sent.calls), sent.bytes


def test_made_without_data(two_ranks):
    """Sharded, then given memory, then loaded: as large models are made."""
    two_ranks.run(loads_into_meta)


def loads_into_meta(rank):
    with torch.device("meta"):
        model = Net()
    net = shard(fxtie.transform(model, rules("across")), "blocks")
    assert all(parameter.is_meta for parameter in net.parameters())
    net.to_empty(device=torch.get_default_device())
    values = made("across").state_dict()
    set_model_state_dict(net, values, options=StateDictOptions(full_state_dict=True))
    train(net, Reference("across"), rank, 2)


@pytest.mark.parametrize("keeps_shapes", [False, True])
def test_its_predecessor_is_refused(two_ranks, keeps_shapes):
    two_ranks.run(flattens, keeps_shapes)


def flattens(rank, keeps_shapes):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it is deprecated
        net = FullyShardedDataParallel(
            made("across"),
            auto_wrap_policy=ModuleWrapPolicy({Block}),
            use_orig_params=keeps_shapes,
            device_id=torch.get_default_device(),
        )
        with pytest.raises(fxtie.FxtieError, match=r"' is a source.*fully_shard"):
            net(batch(2, 0))


@pytest.mark.setting("FSDP2, blocks that do not run")
@pytest.mark.parametrize("kind", KINDS)
def test_blocks_that_do_not_run(two_ranks, kind):
    two_ranks.run(skips, kind)


def skips(rank, kind):
    """All ranks skip a reader, then the owner of sources, and then none."""
    net, reference = shard(made(kind), "blocks"), Reference(kind)

    def before(net, _):
        number = len(steps)
        net.skipped = reference.model.skipped = {0: {2, 3}, 1: {0, 1}}.get(number, set())
        steps.append(number)

    steps = []
    train(net, reference, rank, 2, steps=3, before=before)


def test_a_rank_that_skips_a_block(four_ranks):
    """Another rank waits for it as long as the group allows, and raises."""
    answers = four_ranks.run(leaves_another_alone)
    assert answers == ["", "", "Timed out", ""]


def leaves_another_alone(rank):
    # DTensor takes equal meshes for one, of whatever groups: no other test has this one.
    group = torch.distributed.new_group([0, 2], timeout=timedelta(seconds=3))
    if rank not in (0, 2):
        return ""
    mesh = DeviceMesh.from_group(group, torch.get_default_device().type)
    net = shard(made("across"), "blocks", mesh=mesh)
    net.skipped = {3} if rank == 0 else set()
    try:
        net(batch(1, 0))
    except RuntimeError as error:
        return "Timed out" if "imed out" in str(error) else str(error)
    return ""


def test_what_is_tied_too_late(two_ranks):
    two_ranks.run(ties_too_late)


def ties_too_late(rank):
    late = r"blocks[.]2[.]up[.]weight' is a DTensor: sharded already. Tie the model first"
    with pytest.raises(fxtie.PlanError, match=late):
        fxtie.transform(shard(Net(), "blocks"), rules("across"))
    styles = {"blocks.2.up": ColwiseParallel()}
    with pytest.raises(fxtie.PlanError, match=late):
        fxtie.transform(parallelize_module(Net(), mesh_of(2), styles), rules("across"))
    with pytest.raises(
        fxtie.PlanError, match=r"wrapped by Dist.*Tie what it wraps .`model.module`"
    ):
        fxtie.plan(nn.parallel.DistributedDataParallel(Net()), Rule("module.head", "module.embed"))
