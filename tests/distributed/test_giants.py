"""Models that no process could hold: made without data, tied, sharded, then loaded."""

from __future__ import annotations

import time
import tracemalloc

import pytest
import torch
import torch.distributed.checkpoint as dcp
from decoders import batch, close
from torch import nn
from torch.distributed.fsdp import fully_shard

import fxtie
from fxtie import Rule
from fxtie.distributed import TiedLoadPlanner

LARGE = {"width": 8192, "narrow": 1024, "inner": 28672, "vocabulary": 32000}
SMALL = {"width": 16, "narrow": 8, "inner": 32, "vocabulary": 12}
RULE = Rule("re:layers[.]([4-7][0-9])", "layers.{0 - 40}", weight=torch.sin)


class Layer(nn.Module):
    """The weights of a decoder's layer."""

    def __init__(self, width, narrow, inner):
        super().__init__()
        self.q, self.o = (nn.Linear(width, width, bias=False) for _ in range(2))
        self.k, self.v = (nn.Linear(width, narrow, bias=False) for _ in range(2))
        self.gate, self.up = (nn.Linear(width, inner, bias=False) for _ in range(2))
        self.down = nn.Linear(inner, width, bias=False)

    def forward(self, x):
        y = self.q(x).unflatten(-1, (-1, self.k.out_features))
        y = y * (self.k(x) * self.v(x)).unsqueeze(-2)
        x = x + self.o(y.flatten(-2).tanh())
        return x + self.down(self.gate(x).sigmoid() * self.up(x).tanh())


class Decoder(nn.Module):
    def __init__(self, width, narrow, inner, vocabulary):
        super().__init__()
        self.embed = nn.Embedding(vocabulary, width)
        self.layers = nn.ModuleList(Layer(width, narrow, inner) for _ in range(80))
        self.head = nn.Linear(width, vocabulary, bias=False)

    def forward(self, x):
        x = self.embed(x)
        for layer in self.layers:
            x = layer(x)
        return self.head(x)


def without_data(sizes):
    with torch.device("meta"):
        return Decoder(**sizes)


def shard(net):
    for layer in net.layers:
        fully_shard(layer)
    return fully_shard(net)


def test_70_billion_parameters():
    model = without_data(LARGE)
    assert sum(p.numel() for p in model.parameters()) > 68e9
    times = []
    for _ in range(3):
        begin = time.process_time()
        tied = fxtie.transform(model, RULE)
        times.append(time.process_time() - begin)
    assert len(fxtie.report(tied).targets) == 280
    tracemalloc.start()
    fxtie.transform(model, RULE)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert min(times) < 0.5
    assert peak < 50e6


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled:UserWarning")
def test_loaded_after_it_is_sharded(two_ranks, tmp_path):
    torch.manual_seed(0)
    untied = Decoder(**SMALL)
    dcp.save(untied.state_dict(), checkpoint_id=tmp_path, no_dist=True)
    with torch.no_grad():
        expected = fxtie.transform(untied, RULE)(batch(1, 0))
    for found in two_ranks.run(loads, tmp_path):
        close(found, expected, 1e-5, "output")


def loads(rank, path):
    large = shard(fxtie.transform(without_data(LARGE), RULE))
    assert all(parameter.is_meta for parameter in large.parameters())
    net = shard(fxtie.transform(without_data(SMALL), RULE))
    net.to_empty(device=torch.get_default_device())
    dcp.load(net.state_dict(), checkpoint_id=path, planner=TiedLoadPlanner(net))
    with torch.no_grad():
        return net(batch(1, 0))
