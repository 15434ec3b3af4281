"""torch.distributed.checkpoint: saved and loaded by other numbers of ranks, tied and untied."""

from __future__ import annotations

import pytest
import torch
import torch.distributed.checkpoint as dcp
from decoders import KINDS, Net, Reference, batch, close, loss, made, shard, whole
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    RowwiseParallel,
    parallelize_module,
)

import fxtie

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
    if is_async:
        dcp.async_save(state(net, optimizer), checkpoint_id=path).result()
    else:
        dcp.save(state(net, optimizer), checkpoint_id=path)
    step(net, optimizer, slice_of(rank, 2, 2))
    return values(net)


def resumes(rank, kind, path, count, units):
    """Load into a model that is sharded otherwise, and do the next step."""
    net, optimizer = with_adam(shard(made(kind), units))
    loaded = state(net, optimizer)
    dcp.load(loaded, checkpoint_id=path)
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
    dcp.load({"model": own}, checkpoint_id=f"{path}/untied")
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
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("data", "model"))
    styles = {f"blocks.{i}.up": ColwiseParallel() for i in range(4)}
    styles |= {f"blocks.{i}.down": RowwiseParallel() for i in range(4)}
    net = parallelize_module(made("across"), mesh["model"], styles)
    shard(net, "blocks", mesh=mesh["data"])
    found, expected = fxtie.untied_state_dict(net), fxtie.untied_state_dict(made("across"))
    assert list(found) == list(expected)
    for name, value in expected.items():
        close(whole(found[name]) + 1, value + 1, 1e-6, name)  # some are zeros
