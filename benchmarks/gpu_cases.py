"""What is measured on a GPU, case by case, in the order of its worth.

In: a `Setting`. Out: `Figure`s, as they are measured. Times are milliseconds of CUDA events; what
is compared runs in turn, and its ratios are told beside them.
"""

from __future__ import annotations

import contextlib
import functools
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from figures import Figure, Ratio
from gpu_derivations import TOGETHER, pairs, together
from gpu_device import Device
from measure import Times, interleave, stored_bytes
from speed_figures import compare_outputs
from speed_models import Workload, chain, decoder, resnet50, vit_b_16
from speed_peers import Contender, TrainStep, contenders, tied

from fxtie.words import human_count

Figures = Iterator[Figure]
Make = Callable[[], Workload]


@dataclass(frozen=True)
class Setting:
    """Where to measure, and how much.

    Attributes:
        seconds: for one comparison.
    """

    device: Device
    seconds: float

    def workload(self, make: Make) -> Workload:
        """A workload on the device, named by its size."""
        with torch.device(self.device.type):
            workload = make()
        size = human_count(sum(p.numel() for p in workload.model.parameters()))
        return replace(workload, name=f"{workload.name} ({size})")

    def inputs(self, workload: Workload, batch: int) -> torch.Tensor:
        return workload.inputs(batch).to(next(workload.model.parameters()))  # its device and dtype


@dataclass(frozen=True)
class Goal:
    """What figures are to reach; `batch_1` for those of batch 1 alone."""

    what: str
    subject: str
    against: str
    value: float
    batch_1: bool = False
    at_least: bool = False
    within_spread: bool = False

    def is_of(self, figure: Figure) -> bool:
        compared = (figure.what, figure.subject, figure.against)
        return compared == (self.what, self.subject, self.against) and (
            not self.batch_1 or figure.workload.endswith("batch 1")
        )


EAGER, GRAPHS, COMPILED = "eager", "CUDA graphs", "compiled"
TRAIN, INFERENCE, KERNELS = "train step", "inference", "kernels of a train step"
SAVED, PEAK, LONGEST = "peak memory saved", "peak memory", "longest sequence"
RECOMPUTED = "train step, recompute=True"
MANY, MANY_KERNELS, ONE_BY_ONE = "train step, many ties", f"{KERNELS}, many ties", "one by one"

GOALS = (
    *(
        Goal(f"{TRAIN}, {mode}", "fxtie", "hand-linked", 1.0, within_spread=True)
        for mode in (GRAPHS, COMPILED)
    ),
    *(
        Goal(f"{TRAIN}, {mode}", "fxtie", "untied", 0.85, batch_1=True)
        for mode in (GRAPHS, COMPILED)
    ),
    Goal(f"{INFERENCE}, {EAGER}", "fxtie", "untied", 1.0),
    *(
        Goal(f"{KERNELS}, {mode}", "fxtie", "hand-linked", 1.0)
        for mode in (EAGER, GRAPHS, COMPILED)
    ),
    *(Goal(SAVED, way, "untied", 3.0, at_least=True) for way in ("fxtie", "recompute")),
)


def figure(
    what: str, workload: str, subject: str, against: str, ratio: Ratio, unit: str = ""
) -> Figure:
    """A figure with its goal, if there is one."""
    found = Figure(what, workload, subject, against, ratio, unit=unit)
    for goal in GOALS:
        if goal.is_of(found):
            return replace(
                found, goal=goal.value, at_least=goal.at_least, within_spread=goal.within_spread
            )
    return found


# -- speed ----------------------------------------------------------------------------------------


@contextlib.contextmanager
def new_step() -> Iterator[None]:
    """Tells CUDA graphs that what an earlier call has returned is not needed any more."""
    torch.compiler.cudagraph_mark_step_begin()
    yield


MODES: dict[str, Callable[[Contender], Contender]] = {
    EAGER: lambda way: way,
    GRAPHS: lambda way: replace(way.compiled(mode="reduce-overhead"), block=new_step),
    COMPILED: lambda way: way.compiled(),
}


def speed(make: Make, mode: str, names: Sequence[str], setting: Setting) -> Figures:
    """A train step and a call for inference, of several ways to tie.

    Args:
        names: of the ways. Without `hand-linked`, the untied model is there to compare with alone.
    """
    workload = setting.workload(make)
    subjects = [name for name in names if name != "untied" or "hand-linked" in names]
    batches = workload.batches if mode == EAGER else workload.batches[:1]  # to compile takes long
    for batch in batches:
        x, label = setting.inputs(workload, batch), f"{workload.name}, batch {batch}"
        compare_outputs(contenders(workload, *names, "fxtie"), x, tolerance=0.02)  # bfloat16

        def made() -> dict[str, Contender]:
            torch.compiler.reset()
            return {name: MODES[mode](way) for name, way in contenders(workload, *names).items()}

        steps = {name: TrainStep(way, x, lr=0.0) for name, way in made().items()}
        yield from _timed(f"{TRAIN}, {mode}", label, steps, setting, subjects)
        counts = {name: setting.device.kernels(steps[name]) for name in subjects}
        yield from _counted(f"{KERNELS}, {mode}", label, counts)
        del steps
        calls = {name: way.inference(x) for name, way in made().items()}
        yield from _timed(f"{INFERENCE}, {mode}", label, calls, setting, subjects)
        del calls


def _timed(
    what: str,
    label: str,
    calls: Mapping[str, Callable[[], object]],
    setting: Setting,
    subjects: Sequence[str],
) -> Figures:
    times = _times(calls, setting)
    for name in subjects:
        yield figure(what, label, name, "", times.milliseconds(name), "ms")
        if name != "untied":
            yield figure(what, label, name, "untied", times.ratio(name, "untied"))
    if "hand-linked" in subjects:
        yield figure(what, label, "fxtie", "hand-linked", times.ratio("fxtie", "hand-linked"))


def _times(calls: Mapping[str, Callable[[], object]], setting: Setting) -> Times:
    for call in calls.values():
        for _ in range(3):  # the first compiles, the second records a CUDA graph
            call()
    return interleave(calls, setting.seconds, batch=0.05, clock=setting.device.clock())


def _counted(what: str, label: str, counts: Mapping[str, int]) -> Figures:
    for name, count in counts.items():
        yield figure(what, label, name, "", Ratio.of([count]), "kernels")
    if "hand-linked" in counts:
        ratio = Ratio.of([counts["fxtie"] / counts["hand-linked"]])
        yield figure(what, label, "fxtie", "hand-linked", ratio)


# -- memory ---------------------------------------------------------------------------------------


MEMORY_WAYS = ("untied", "hand-linked", "fxtie", "recompute")


def memory(make: Make, setting: Setting) -> Figures:
    """The peak of a train step, and what `recompute=True` takes of time for what it saves."""
    workload, device = setting.workload(make), setting.device
    batch = workload.batches[0]
    x, label = setting.inputs(workload, batch), f"{workload.name}, batch {batch}"
    _step(workload, "fxtie", x)()  # makes what libraries keep for themselves, as cuBLAS does
    peaks, sizes = {}, {}
    for name in MEMORY_WAYS:
        device.free()
        before = device.allocated()
        step = _step(workload, name, x)
        step()  # makes the optimizer's states
        peaks[name] = device.peak(step, before)
        sizes[name] = stored_bytes(*step.model.parameters())
        del step
    dropped = sizes["untied"] - sizes["fxtie"]
    for name in MEMORY_WAYS:
        yield figure(PEAK, label, name, "", Ratio.of([peaks[name] / 2**20]), "MiB")
        if name != "untied":
            saved = Ratio.of([(peaks["untied"] - peaks[name]) / dropped])
            yield figure(SAVED, label, name, "untied", saved, "x dropped bytes")
    steps = {name: _step(workload, name, x) for name in ("fxtie", "recompute")}
    ratio = _times(steps, setting).ratio("recompute", "fxtie")
    yield figure(RECOMPUTED, label, "recompute", "fxtie", ratio)


def _step(workload: Workload, name: str, x: torch.Tensor) -> TrainStep:
    return TrainStep(contenders(workload, name)[name], x, lr=0.0)


# -- many derivations as one ----------------------------------------------------------------------


def derivations(make: Make, setting: Setting) -> Figures:
    """Whether one call for all derivations beats one for each, and by how much of a train step."""
    workload = setting.workload(make)
    batch = workload.batches[0]
    x, label = setting.inputs(workload, batch), f"{workload.name}, batch {batch}"
    one_by_one = TrainStep(Contender(tied(workload)), x, lr=0.0)
    alone = _times({ONE_BY_ONE: one_by_one}, setting)
    yield figure(MANY, label, ONE_BY_ONE, "", alone.milliseconds(ONE_BY_ONE), "ms")
    yield from _counted(MANY_KERNELS, label, {ONE_BY_ONE: setting.device.kernels(one_by_one)})
    for name, derive in TOGETHER.items():
        way = Contender(together(tied(workload), derive()))
        compare_outputs({"fxtie": Contender(tied(workload)), name: way}, x)
        step = TrainStep(way, x, lr=0.0)
        times = _times({ONE_BY_ONE: one_by_one, name: step}, setting)
        yield figure(MANY, label, name, ONE_BY_ONE, times.ratio(name, ONE_BY_ONE))
        yield figure(MANY, label, name, "", times.milliseconds(name), "ms")
        yield from _counted(MANY_KERNELS, label, {name: setting.device.kernels(step)})


# -- what fits into the memory that tying frees ---------------------------------------------------


def longest(make: Make, limit: int, grain: int, setting: Setting) -> Figures:
    """The longest sequence whose train step stays under `limit` bytes, to `grain` tokens."""
    workload, device = setting.workload(make), setting.device
    limit = min(limit, device.capacity())
    label = f"{workload.name}, batch 1, {limit / 2**30:.2g} GiB"
    found = {}
    for name in ("untied", "fxtie", "recompute"):
        device.free()
        before = device.allocated()
        step = _step(workload, name, setting.inputs(workload, 1))

        def fits(grains: int, step: TrainStep = step, before: int = before) -> bool:
            long = replace(workload, shape=(grains * grain, *workload.shape[1:]))
            step.x = setting.inputs(long, 1)
            try:
                peak = device.peak(step, before)
            except torch.OutOfMemoryError:
                peak = sys.maxsize
            step.optimizer.zero_grad()  # where the step did not come to it
            device.free()
            return peak <= limit

        found[name] = largest(fits) * grain
        yield figure(LONGEST, label, name, "", Ratio.of([found[name]]), "tokens")
        if name != "untied" and found["untied"]:
            ratio = Ratio.of([found[name] / found["untied"]])
            yield figure(LONGEST, label, name, "untied", ratio)
        del step, fits


def largest(fits: Callable[[int], bool]) -> int:
    """The largest number that fits, by doubling and halving; 0 if not even 1 does."""
    low, high = 0, 1
    while fits(high):
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


# -- the cases ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Case:
    """One thing to measure.

    Attributes:
        measure: None for the tests, which pytest runs.
        ahead: it is run beside the tests too, for nothing but to fill the compiler's caches.
    """

    section: str
    name: str
    measure: Callable[[Setting], Figures] | None
    ahead: bool = False


# The sections in the order of their worth, each with the part of the time that it may take.
SECTIONS = {"tests": 0.3, "speed": 0.42, "memory": 0.1, "derivations": 0.1, "longest": 0.08}


DEPTH, WIDTH, TOKENS, PIXELS = 20, 2048, 512, 224
TIES = 300
MEMORY = 24 * 2**30  # what a train step of the longest sequence may take


def large_decoder() -> Workload:
    """A billion parameters: all layers derive from the first. In bfloat16."""
    found = decoder(DEPTH, WIDTH, heads=16, tokens=TOKENS, batches=(1, 8))
    found.model.to(torch.bfloat16)
    return found


LARGE: dict[str, Make] = {
    "decoder": large_decoder,
    "ResNet-50": functools.partial(resnet50, PIXELS, batches=(1, 64)),
    "ViT-B/16": functools.partial(vit_b_16, PIXELS, batches=(1, 64)),
}
SMALL: dict[str, Make] = {"chain": functools.partial(chain, length=2, width=8)}


FEW = ("untied", "hand-linked", "fxtie")
# What compiles takes its time, and what has no goal comes last.
SPEEDS: tuple[tuple[str, tuple[str, ...], str], ...] = (
    (EAGER, (*FEW, "parametrize"), ""),
    (GRAPHS, FEW, ""),
    (COMPILED, FEW, ""),
    (GRAPHS, ("untied", "parametrize"), ", parametrize"),
    (COMPILED, ("untied", "parametrize"), ", parametrize"),
)


def cases(small: bool) -> list[Case]:
    """All of them, what is worth most first."""
    models = SMALL if small else LARGE
    speeds = [
        Case(
            "speed",
            f"{name}, {mode}{remark}",
            functools.partial(speed, make, mode, ways),
            ahead=mode == GRAPHS and not remark,
        )
        for mode, ways, remark in SPEEDS[: 2 if small else None]
        for name, make in models.items()
    ]
    memories = [
        Case("memory", f"{name}, memory", functools.partial(memory, make))
        for name, make in models.items()
    ]
    many = functools.partial(pairs, 5, 8) if small else functools.partial(pairs, TIES, 256)
    small_decoder = functools.partial(decoder, depth=3, width=32, heads=2)
    fitting: Any = (small_decoder, 2**20, 8) if small else (large_decoder, MEMORY, 256)
    return [
        Case("tests", "tests", None),
        *speeds,
        *memories,
        Case("derivations", "derivations", functools.partial(derivations, many), ahead=True),
        Case("longest", "longest", functools.partial(longest, *fitting)),
    ]
