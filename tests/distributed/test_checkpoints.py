"""torch.distributed.checkpoint: saved and loaded by other numbers of ranks, tied and untied."""

from __future__ import annotations

import pytest
import torch
import torch.distributed.checkpoint as dcp
from decoders import KINDS, Net, Reference, batch, close, cut, loss, made, mesh_of, shard, whole
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    RowwiseParallel,
    parallelize_module,
)

import fxtie
from fxtie import Rule
from fxtie.distributed import TiedLoadPlanner, TiedSavePlanner, share_across_stages

# What torch says to whoever loads in one process.
pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled:UserWarning")


def step(net, optimizer, ids):
    loss(net(ids)).backward()
    optimizer.step()
    optimizer.zero_grad()


def slice_of(rank, count, number):
    """The part of a batch of 4 rows that a rank computes."""
    rows = 4 // count
    return batch(2, number)[rows * rank : rows * (rank + 1)]


def with_adam(net):
    return net, torch.optim.AdamW(net.parameters(), lr=1e-2)


def state(net, optimizer):
    model, optim = get_state_dict(net, optimizer)
    return {"model": model, "optim": optim}


def values(net):
    return {name: whole(p).detach().clone() for name, p in net.named_parameters()}


def trains_and_saves(rank, kind, path, is_async):
    net, optimizer = with_adam(shard(made(kind), "blocks"))
    for number in range(2):
        step(net, optimizer, slice_of(rank, 2, number))
    noting = {"checkpoint_id": path, "planner": TiedSavePlanner(net)}
    if is_async:
        dcp.async_save(state(net, optimizer), **noting).result()
    else:
        dcp.save(state(net, optimizer), **noting)
    step(net, optimizer, slice_of(rank, 2, 2))
    return values(net)


def resumes(rank, kind, path, count, units):
    """Load into a model that is sharded otherwise, and do the next step."""
    net, optimizer = with_adam(shard(made(kind), units))
    loaded = state(net, optimizer)
    dcp.load(loaded, checkpoint_id=path, planner=TiedLoadPlanner(net))
    set_state_dict(
        net, optimizer, model_state_dict=loaded["model"], optim_state_dict=loaded["optim"]
    )
    step(net, optimizer, slice_of(rank, count, 2))
    return values(net)


def same(found, expected):
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        close(found[name], value, 1e-5, name)


@pytest.mark.setting("checkpoints: 2 ranks to 1, 2 and 4")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("is_async", [False, True], ids=["save", "async_save"])
def test_resumes_on_other_numbers_of_ranks(two_ranks, four_ranks, tmp_path, kind, is_async):
    expected, _ = two_ranks.run(trains_and_saves, kind, str(tmp_path), is_async)
    same(two_ranks.run(resumes, kind, str(tmp_path), 2, "leaves")[0], expected)
    same(four_ranks.run(resumes, kind, str(tmp_path), 4, "root")[0], expected)
    net, optimizer = with_adam(made(kind))
    loaded = state(net, optimizer)
    dcp.load(loaded, checkpoint_id=str(tmp_path), no_dist=True)
    set_state_dict(
        net, optimizer, model_state_dict=loaded["model"], optim_state_dict=loaded["optim"]
    )
    step(net, optimizer, batch(2, 2))
    same(values(net), expected)


@pytest.mark.setting("checkpoints of the untied model")
@pytest.mark.parametrize("kind", ["across", "before", "self", "head", "chain"])
def test_tied_and_untied(two_ranks, tmp_path, kind):
    """What an untied model saves loads into the tied one, and the other way round."""
    torch.manual_seed(5)
    untied = Net()
    dcp.save({"model": untied.state_dict()}, checkpoint_id=str(tmp_path / "untied"), no_dist=True)
    two_ranks.run(loads_and_saves_untied, kind, str(tmp_path))


def loads_and_saves_untied(rank, kind, path):
    torch.manual_seed(5)
    untied, reference = Net(), Reference(kind)
    reference.model.load_state_dict(untied.state_dict())
    net = shard(made(kind), "blocks")
    own = {name: v for name, v in net.state_dict().items() if not name.startswith("ties.")}
    planner = TiedLoadPlanner(net)  # there is nothing that it could refuse
    dcp.load({"model": own}, checkpoint_id=f"{path}/untied", planner=planner)
    close(net(batch(2, 0)), reference(batch(2, 0)), 1e-5, "output of the tied model")

    dcp.save({"model": fxtie.untied_state_dict(net)}, checkpoint_id=f"{path}/tied")
    plain = shard(Net(), "leaves")
    dcp.load({"model": plain.state_dict()}, checkpoint_id=f"{path}/tied")
    close(plain(batch(2, 0)), reference(batch(2, 0)), 1e-5, "output of the untied model")
    with pytest.raises(fxtie.FxtieError, match="untied_state_dict"):
        fxtie.materialize(net)


def test_values_of_the_untied_model_in_two_dimensions(four_ranks):
    four_ranks.run(unties_in_two_dimensions)


def unties_in_two_dimensions(rank):
    mesh = mesh_of(2, 2, names=("data", "model"))
    styles = {f"blocks.{i}.up": ColwiseParallel() for i in range(4)}
    styles |= {f"blocks.{i}.down": RowwiseParallel() for i in range(4)}
    net = parallelize_module(made("across"), mesh["model"], styles)
    shard(net, "blocks", mesh=mesh["data"])
    found, expected = fxtie.untied_state_dict(net), fxtie.untied_state_dict(made("across"))
    assert list(found) == list(expected)
    for name, value in expected.items():
        close(whole(found[name]) + 1, value + 1, 1e-6, name)  # some are zeros


def test_another_plan_is_refused(two_ranks, tmp_path):
    first, second = two_ranks.run(loads_into_other_plans, str(tmp_path))
    assert first == second  # all ranks raise
    there, other_transform, other_target = first
    up, down = "'blocks.3.up.weight' is", "'blocks.3.down.weight' is"
    assert there == ""
    differs = f"{up} sin(blocks.1.up.weight) in the checkpoint and"
    assert f":\n{differs} cos(blocks.1.up.weight) in the model.\nTie" in other_transform
    added = f"{down} stored in the checkpoint and sin(blocks.1.down.weight) in the model."
    assert f":\n{added}\n{differs} stored in the model.\nTie" in other_target


def loads_into_other_plans(rank, path):
    """Why a checkpoint can't be loaded; "" if it can."""

    def tied(layer, transform):
        rule = Rule(f"blocks.3.{layer}", f"blocks.1.{layer}", weight=transform, bias=None)
        return shard(fxtie.transform(Net(), rule), "blocks")

    saved = tied("up", torch.sin)
    dcp.save(saved.state_dict(), checkpoint_id=path, planner=TiedSavePlanner(saved))
    told = []
    for net in (tied("up", torch.sin), tied("up", torch.cos), tied("down", torch.sin)):
        before = values(net)
        try:
            dcp.load(net.state_dict(), checkpoint_id=path, planner=TiedLoadPlanner(net))
            told.append("")
        except CheckpointException as error:
            (fault, _), *_ = error.failures.values()
            told.append(str(fault))
        expected = before if told[-1] else values(saved)
        assert all(torch.equal(values(net)[name], value) for name, value in expected.items())
    return told


def test_the_checkpoint_of_a_pipeline(two_ranks, tmp_path):
    """Each stage notes its own ties; a copied source counts as what it is a copy of."""
    two_ranks.run(saves_stages, str(tmp_path))


def saves_stages(rank, path):
    stage = cut(made("across"), rank, 2)
    share_across_stages(stage)
    saved = {name: v for name, v in stage.state_dict().items() if "ties.shared" not in name}
    dcp.save(saved, checkpoint_id=path, planner=TiedSavePlanner([stage]))
    dcp.load(saved, checkpoint_id=path, planner=TiedLoadPlanner([stage]))
    net, other = made("across"), made("before")
    expected = values(net)
    for parameter in net.parameters():
        parameter.data.fill_(7)
    dcp.load(net.state_dict(), checkpoint_id=path, planner=TiedLoadPlanner(net))
    assert all(torch.equal(values(net)[name], value) for name, value in expected.items())
    with pytest.raises(CheckpointException, match="is of another plan"):
        dcp.load(other.state_dict(), checkpoint_id=path, planner=TiedLoadPlanner(other))
