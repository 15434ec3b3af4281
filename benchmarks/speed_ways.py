"""What makes tied models fast, each measured alone: the same model with it and without.

In: how much to measure. Out: `Figure`s, as they are measured. Called by `speed.py`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import torch
from figures import Figure, Ratio
from measure import interleave, peak_bytes
from speed_models import Options, Workload, resnet50, sixteen_blocks
from speed_peers import Contender, Functional, TrainStep, tied
from torch import fx, nn

from fxtie.tied.casts import cast_once

Call = Callable[[], object]
WAY = "way: "


def ways(options: Options) -> Iterator[Figure]:
    def timed(way: str, label: str, with_it: Call, without: Call) -> Figure:
        times = interleave({"with": with_it, "without": without}, options.seconds / 2)
        return Figure(WAY + way, label, "with", "without", times.ratio("with", "without"))

    blocks, step = sixteen_blocks(), "16 blocks, batch 1, train step"
    x = blocks.inputs(1)
    with_it, without = (TrainStep(Contender(tied(w)), x) for w in (blocks, _unshared(blocks)))
    yield timed("equal derivations are one", step, with_it, without)

    cast, recast = tied(blocks), _without_casts(tied(blocks))
    with_it, without = (TrainStep(Contender(m, _autocast), x) for m in (cast, recast))
    yield timed("cast once under autocast", f"{step}, bfloat16", with_it, without)
    if options.quick:
        return

    resnet = resnet50()
    calls = [Contender(m).inference(resnet.inputs(1)) for m in (tied(resnet), Functional(resnet))]
    peaks = Ratio.of([peak_bytes(calls[0]) / peak_bytes(calls[1])])
    label = "ResNet-50, batch 1, peak of inference"
    yield Figure(WAY + "derived just before use, freed after", label, "with", "without", peaks)

    x = resnet.inputs(8)
    models = tied(resnet, recompute=True), tied(resnet)
    with_it, without = (TrainStep(Contender(model), x) for model in models)
    yield timed("recompute=True", "ResNet-50, batch 8, train step", with_it, without)


def _unshared(workload: Workload) -> Workload:
    """The same, with transforms of which nothing tells that they are equal."""
    links = (replace(k, transform=functools.partial(k.transform)) for k in workload.links)
    return replace(workload, links=tuple(links))


def _without_casts(model: nn.Module) -> nn.Module:
    assert isinstance(model, fx.GraphModule)
    for node in model.graph.find_nodes(op="call_function", target=cast_once):
        node.replace_all_uses_with(node.args[0])
        model.graph.erase_node(node)
    model.recompile()
    return model


def _autocast() -> Any:
    return torch.autocast("cpu", torch.bfloat16)
