"""The figures of the pass itself: its time and growth, compiling what it makes, importing it.

In: how much to measure. Out: `Figure`s, as they are measured. Called by `speed.py`.
"""

from __future__ import annotations

import math
import os
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import torch
from figures import Figure, Ratio
from grouping import tie_groups
from measure import cpu_seconds, interleave
from speed_models import WORKLOADS, Options
from speed_peers import tied
from torch import fx, nn
from zoo import CI
from zoo_models import make

import fxtie

Figures = Iterator[Figure]


def passes(options: Options) -> Figures:
    """`transform`, against `torch.fx.symbolic_trace` of those of the same models that it can trace.

    These are of the zoo (`zoo.py`), of which they are the part that CI ties.
    """
    goals = {"one tie": 0.5, "all tied": 2.0}
    samples: dict[str, list[float]] = {which: [] for which in goals}
    for name in CI["torchvision"][: 1 if options.quick else None]:
        model = make(name).model
        if not _is_traceable(model):
            continue
        ties = {which: tie_groups(model, only_pair=which == "one tie") for which in goals}
        calls: dict[str, Callable[[], object]] = {"stock": lambda m=model: fx.symbolic_trace(m)}
        for which, group in ties.items():
            calls[which] = lambda m=model, g=group: fxtie.transform(m, g)
        times = interleave(calls, options.seconds / 3)
        for which in goals:
            ratio = times.ratio(which, "stock")
            samples[which].append(ratio.median)
            yield Figure("time of transform", f"{name}, {which}", "fxtie", "symbolic_trace", ratio)
    for which, goal in goals.items():
        ratio = Ratio.of(samples[which])
        label = f"median of {ratio.samples} models of the zoo, {which}"
        yield Figure("time of transform", label, "fxtie", "symbolic_trace", ratio, goal)


def _is_traceable(model: nn.Module) -> bool:
    try:
        fx.symbolic_trace(model)
    # Any failure of the stock tracer means that there is nothing to compare with.
    except Exception:
        return False
    return True


BY_SIZE = "time of transform, by size"


class Scales(nn.Module):
    """A forward that reads many parameters itself, which stock tracing looks up one by one."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.scales = nn.ParameterList(torch.ones(2) for _ in range(count))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for scale in self.scales:
            x = x * scale
        return x


def growth(options: Options) -> Figures:
    """`transform` of ever more layers tied to the first, and `plan` of rules with arithmetic."""
    least = 100 if options.quick else 1000
    sizes = [least, 2 * least, 5 * least, 10 * least]

    def layers(n: int) -> nn.Module:
        return nn.Sequential(*(nn.Linear(2, 2) for _ in range(n)))

    square = torch.square
    cases: dict[str, tuple[Callable[..., object], Callable[[int], nn.Module], fxtie.Rule]] = {
        "layers": (fxtie.transform, layers, fxtie.Rule("*", "0", weight=square)),
        "parameters read by the root": (
            fxtie.transform,
            Scales,
            fxtie.Rule("scales.*", "scales.0", weight=square),
        ),
        "layers by arithmetic": (fxtie.plan, layers, fxtie.Rule("*", "{0 // 2 * 2}", square)),
    }
    for case, (use, build, rule) in cases.items():
        models = {str(n): build(n) for n in sizes}
        calls = {n: lambda u=use, m=m, r=rule: u(m, r) for n, m in models.items()}
        times = interleave(calls, options.seconds)
        label = f"{sizes[0]:,} to {sizes[-1]:,} {case}"
        ratio = times.ratio(str(sizes[-1]), str(sizes[0]))
        yield Figure(f"growth of {use.__name__}", label, "fxtie", "", ratio, 11.0)
        longest = Ratio.of(times.rounds[str(sizes[-1])])
        yield Figure(f"longest {use.__name__}", label, "fxtie", "", longest, 60.0, unit="s")
        for n in sizes:
            took = Ratio.of(times.rounds[str(n)])
            yield Figure(BY_SIZE, f"{n:,} {case}", "fxtie", "", took, unit="s")
        slope = _slope({n: times.seconds(str(n)) for n in sizes})
        yield Figure("exponent of growth", label, "fxtie", "", Ratio.of([slope]))


class Projections(nn.Module):
    """Three projections, whose weights a network makes of one vector."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(width, width, bias=False) for _ in range(3))
        self.vector = nn.Parameter(torch.randn(16))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return sum(layer(x) for layer in self.layers)


def several_targets(options: Options) -> Figures:
    """One transform of three targets, against one for each of them that throws two results away."""
    width = 64
    make = nn.Sequential(nn.Linear(16, 64), nn.Tanh(), nn.Linear(64, 3 * width * width))

    def whole(vector: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return make(vector).view(3, width, width).unbind()

    names = tuple(f"layers.{i}.weight" for i in range(3))
    rules = {
        "several targets": [fxtie.Tie(names, "vector", whole)],
        "one by one": [
            fxtie.Tie(n, "vector", lambda v, i=i: whole(v)[i]) for i, n in enumerate(names)
        ],
    }
    x = torch.randn(8, width)
    models = {name: fxtie.transform(Projections(width), one) for name, one in rules.items()}
    calls = {name: lambda m=m: m(x).sum().backward() for name, m in models.items()}
    ratio = interleave(calls, options.seconds).ratio("several targets", "one by one")
    label = "a network of 3 weights, batch 8"
    yield Figure("train step", label, "one transform of 3 targets", "3 transforms", ratio, 0.5)


def _slope(seconds: Mapping[int, float]) -> float:
    """The exponent of growth: the slope of a straight line on log-log axes."""
    return statistics.linear_regression(
        [math.log(size) for size in seconds], [math.log(value) for value in seconds.values()]
    ).slope


def compile_time(options: Options) -> Figures:
    """From nothing compiled and nothing cached to the first training step."""
    from torch._inductor.utils import fresh_cache

    torch._inductor.config.compile_threads = 1  # their time would not be counted
    names = ("16 blocks",) if options.quick else ("16 blocks", "decoder", "chain of 50")
    for name in names:
        workload = WORKLOADS[name]()
        x = workload.inputs(1)
        models = {"untied": workload.model, "fxtie": tied(workload)}

        def compile_(model: nn.Module, x: torch.Tensor = x) -> None:
            torch.compiler.reset()
            with fresh_cache():
                torch.compile(model)(x).sum().backward()

        calls = {who: lambda m=model: compile_(m) for who, model in models.items()}
        times = interleave(calls, 0, least_rounds=5, batch=0, clock=cpu_seconds)
        ratio = times.ratio("fxtie", "untied")
        yield Figure("compile time", f"{name}, train step", "fxtie", "untied", ratio, 1.0)


def imports(options: Options) -> Figures:
    code = (
        "import time, torch; start = time.process_time(); import fxtie; "
        "print(time.process_time() - start)"
    )
    command, folder = [sys.executable, "-c", code], Path(fxtie.__file__).parents[1]

    # With compiled files, as it is for users from the second time on.
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}

    def run() -> float:
        done = subprocess.run(
            command, cwd=folder, env=environment, capture_output=True, text=True, check=True
        )
        return 1e3 * float(done.stdout)

    run()
    samples = [run() for _ in range(3 if options.quick else 11)]
    yield Figure("import", "after torch's own", "fxtie", "", Ratio.of(samples), 50.0, unit="ms")
