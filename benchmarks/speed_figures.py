"""The figures of tied models: their steps, calls and memory, against other ways to tie.

In: how much to measure. Out: `Figure`s, as they are measured. Called by `speed.py`.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import torch
from figures import Figure, Ratio
from measure import Times, interleave, peak_bytes, stored_bytes
from speed_models import WORKLOADS, Options, sixteen_blocks
from speed_peers import Contender, TrainStep, contenders, derivations, hand_linked, tied
from torch.utils._python_dispatch import TorchDispatchMode

import fxtie
from fxtie.life.verifying.values import relative_error

Figures = Iterator[Figure]


# -- steps and calls ----------------------------------------------------------------------------


def train(options: Options) -> Figures:
    for workload, batch, label in options.workloads(*_small(options)):
        x, ways = workload.inputs(batch), contenders(workload)
        compare_outputs(ways, x)
        steps = {name: TrainStep(way, x) for name, way in ways.items()}
        times = interleave(steps, options.seconds)
        yield from _against_untied("train step, eager", label, times)
        goal = 0.9 if label == "16 blocks, batch 1" else 1.0
        ratio = times.ratio("fxtie", "hand-linked")
        yield Figure("train step, eager", label, "fxtie", "hand-linked", ratio, goal)


def inference(options: Options) -> Figures:
    for workload, batch, label in options.workloads(*_small(options)):
        if batch > 1:
            continue
        x, ways = workload.inputs(batch), contenders(workload)
        ways["materialized"] = Contender(fxtie.materialize(ways["fxtie"].model))
        once = tied(workload).eval()
        ways["derive_once"] = Contender(once)
        compare_outputs(ways, x)
        with torch.no_grad(), fxtie.derive_once(once):
            calls = {name: way.inference(x) for name, way in ways.items()}
            calls["derivations alone"] = derivations(workload)
            times = interleave(calls, options.seconds)
        goals = {"fxtie": 0.95, "materialized": 1.0, "derive_once": 1.0}
        yield from _against_untied("inference, eager", label, times, goals)


def compiled(options: Options) -> Figures:
    names = ("16 blocks", "decoder", "100 targets", "chain of 50")
    for workload, batch, label in options.workloads(*names[: 1 if options.quick else None]):
        torch.compiler.reset()
        ways = contenders(workload)
        few = ("untied", "hand-linked", "fxtie")
        x = workload.inputs(batch)
        steps = {name: TrainStep(ways[name].compiled(), x) for name in few}
        times = interleave(steps, options.seconds)
        goals = {"fxtie": 0.75 if label == "16 blocks, batch 1" else 1.0}
        yield from _against_untied("train step, compiled", label, times, goals)


def micro_batches(options: Options) -> Figures:
    """8 micro-batches with a costly transform: derived once, and at every call."""
    workload = sixteen_blocks()
    links = tuple(replace(link, transform=_orthogonal) for link in workload.links)
    workload = replace(workload, links=links)
    batches = [workload.inputs(1) for _ in range(8)]

    def step(way: Contender) -> Callable[[], None]:
        model = way.model
        optimizer = torch.optim.Adam(model.parameters())

        def run() -> None:
            with way.block():
                for x in batches:
                    model(x).sum().backward()
            optimizer.step()
            optimizer.zero_grad()

        return run

    plain, once = Contender(tied(workload)), tied(workload)
    steps = {
        "fxtie": step(plain),
        "derive_once": step(Contender(once, lambda: fxtie.derive_once(once))),
    }
    times, label = interleave(steps, options.seconds), "16 blocks, 8 micro-batches"
    ratio = times.ratio("derive_once", "fxtie")
    yield Figure("step with a costly transform", label, "derive_once", "fxtie", ratio, 0.9)
    for name, goal in (("fxtie", None), ("derive_once", 1)):
        with _OpCounter() as ops:
            steps[name]()
        count = Ratio.of([ops.counts[torch.ops.aten.linalg_vector_norm.default]])
        yield Figure("transforms evaluated in a step", label, name, "", count, goal)


def _orthogonal(w: torch.Tensor) -> torch.Tensor:
    """Nearly orthogonal filters, by Newton-Schulz: a transform that costs more than a layer."""
    flat = w.flatten(1)
    flat = flat / torch.linalg.vector_norm(flat)
    for _ in range(16):
        flat = 1.5 * flat - 0.5 * flat @ flat.T @ flat
    return flat.view_as(w)


class _OpCounter(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[Any] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.counts[func] += 1
        return func(*args, **(kwargs or {}))


def _small(options: Options) -> tuple[str, ...]:
    return ("16 blocks",) if options.quick else ()


def _against_untied(
    what: str, label: str, times: Times, goals: Mapping[str, float] | None = None
) -> Figures:
    for name in times.rounds:
        if name != "untied":
            ratio, goal = times.ratio(name, "untied"), (goals or {}).get(name)
            within = name in ("materialized", "derive_once")
            yield Figure(what, label, name, "untied", ratio, goal, within_spread=within)


def compare_outputs(
    ways: Mapping[str, Contender], x: torch.Tensor, tolerance: float = 1e-3
) -> None:
    """All ways to tie must compute the same, or comparing their times says nothing."""
    expected = ways["fxtie"].inference(x)()
    for name, way in ways.items():
        if name != "untied":
            error = relative_error(way.inference(x)(), expected)
            assert error < tolerance, f"{name} differs from fxtie by {error:.1e}"


# -- memory -------------------------------------------------------------------------------------


def memory(options: Options) -> Figures:
    """Peak of a training step with Adam: how much lower, in bytes of the dropped parameters."""
    cases = [(False, name) for name in ("16 blocks", "ResNet-50", "decoder", "100 targets")]
    cases += [(True, name) for name in ("16 blocks", "100 targets")]
    for is_compiled, name in cases[:1] if options.quick else cases:
        workload = WORKLOADS[name]()
        x, peaks, sizes = workload.inputs(1), {}, {}
        models = {
            "untied": copy.deepcopy(workload.model),
            "hand-linked": hand_linked(workload),
            "fxtie": tied(workload),
        }
        if not is_compiled:  # compiled code decides by itself what to compute again
            models["recompute"] = tied(workload, recompute=True)
        for who, model in models.items():
            torch.compiler.reset()
            way = Contender(model)
            step = TrainStep(way.compiled() if is_compiled else way, x)
            step()  # compiles, and makes the optimizer's states
            peaks[who] = stored_bytes(*step.tensors()) + peak_bytes(step)
            sizes[who] = stored_bytes(*model.parameters())
        dropped = sizes["untied"] - sizes["fxtie"]
        what = f"peak memory saved, {'compiled' if is_compiled else 'eager'}"
        for who in [who for who in models if who != "untied"]:
            goal = None if who == "hand-linked" else 3.0
            saved = Ratio.of([(peaks["untied"] - peaks[who]) / dropped])
            unit = "x dropped bytes"
            label = f"{name}, batch 1"
            yield Figure(what, label, who, "untied", saved, goal, at_least=True, unit=unit)
            share = Ratio.of([peaks[who] / peaks["untied"]])
            yield Figure(what.replace(" saved", ""), label, who, "untied", share)
