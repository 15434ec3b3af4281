"""How the benchmarks measure: ratios of interleaved times, exact peaks of memory, exact counts.

In: things to call. Out: `Ratio`s, bytes and counts. Called by the `speed_*.py` files.

Seconds of a shared machine mean little. So what is compared runs in turn (A B, B A, A B, ...) in
one process, every round gives one ratio, and the median of these is what counts. The clock is that
of the process, which stands still while other processes have the processor.
"""

from __future__ import annotations

import gc
import itertools
import os
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from types import FrameType
from typing import Any

import torch
from figures import Ratio
from torch.profiler import ProfilerActivity, profile

Clock = Callable[[], float]


class Times:
    """Seconds per call, for each contender and round."""

    def __init__(self, rounds: Mapping[str, list[float]]) -> None:
        self.rounds = rounds

    def ratio(self, subject: str, against: str) -> Ratio:
        pairs = zip(self.rounds[subject], self.rounds[against], strict=True)
        return Ratio.of(a / b for a, b in pairs)

    def seconds(self, subject: str) -> float:
        return statistics.median(self.rounds[subject])

    def milliseconds(self, subject: str) -> Ratio:
        return Ratio.of(1e3 * seconds for seconds in self.rounds[subject])


def interleave(
    contenders: Mapping[str, Callable[[], object]],
    seconds: float,
    *,
    least_rounds: int = 5,
    batch: float = 0.01,
    clock: Clock = time.process_time,
) -> Times:
    """Time several functions in turn.

    Args:
        contenders: what to call, by name.
        seconds: how long to go on, about; never less than `least_rounds` rounds.
        batch: seconds for which a short call is repeated, to be well above the clock's steps; 0
            for one call a round.
    """
    repeats = dict.fromkeys(contenders, 1)
    for name, call in contenders.items():
        call()  # the first one fills caches and lazy states
        if batch:
            start = clock()
            call()
            repeats[name] = max(1, round(batch / max(clock() - start, 1e-7)))
    rounds: dict[str, list[float]] = {name: [] for name in contenders}
    order = list(contenders)
    end = time.monotonic() + seconds
    gc.collect()
    gc.disable()
    try:
        for i in itertools.count(1):
            for name in order:
                call, times = contenders[name], range(repeats[name])
                start = clock()
                for _ in times:
                    call()
                rounds[name].append((clock() - start) / len(times))
            order.reverse()  # so that none is always the one after the same other
            if i >= least_rounds and time.monotonic() > end:
                return Times(rounds)
    finally:
        gc.enable()
    raise AssertionError("the loop above has no other end")


def cpu_seconds() -> float:
    """Processor time of this process and of its children that have ended: compilers, above all."""
    return sum(os.times()[:4])


def peak_bytes(call: Callable[[], object]) -> int:
    """The most memory that a call has allocated at any moment, beyond what there was before it.

    Exact, not sampled: torch's CPU allocator tells the profiler of every block that it gives or
    takes back, whoever asked for it, eager ops and compiled code alike. What frees memory of
    before the call counts against it.
    """
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        call()
    results = profiler.profiler.kineto_results  # type: ignore[union-attr]
    changes = [event for event in results.events() if event.name() == "[memory]"]
    changes.sort(key=lambda event: event.start_ns())
    return max(itertools.accumulate((event.nbytes() for event in changes), initial=0))


def stored_bytes(*tensors: torch.Tensor) -> int:
    """The bytes of tensors, each storage counted once."""
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}
    return sum(storages.values())


def instructions(call: Callable[[], object]) -> int:
    """The number of Python's bytecode instructions that a call runs when it is made again.

    Repeats exactly, from run to run and from machine to machine, for one version of Python and of
    what is called. What runs inside of C functions is not seen. The first call imports, fills
    caches, and has Python 3.12 and newer prepare code for tracing, which misses some instructions.
    """
    count = 0

    def trace(frame: FrameType, event: str, _: Any) -> Any:
        nonlocal count
        frame.f_trace_opcodes, frame.f_trace_lines = True, False
        count += event == "opcode"
        return trace

    before = sys.gettrace()
    gc.collect()
    gc.disable()  # finalizers would run wherever a collection falls
    sys.settrace(trace)
    try:
        call()
        first = count
        call()
    finally:
        sys.settrace(before)
        gc.enable()
    return count - first
