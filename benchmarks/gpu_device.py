"""The device that is measured: what it is, its clock, its memory, its kernels.

In: `cuda` or `cpu`. Out: a `Device`. What it measures on a GPU has its nearest counterpart on the
CPU, so that all that runs on a GPU is tried out without one.
"""

from __future__ import annotations

import gc
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from measure import Clock, peak_bytes, stored_bytes
from speed_peers import TrainStep
from torch.profiler import ProfilerActivity, profile


class EventClock:
    """Seconds of the GPU. To ask for the time is to wait until all that was launched has ended."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self.last = self._event()

    def __call__(self) -> float:
        event = self._event()
        event.synchronize()
        # Summed from event to event: the time between two is a float32, and a large one is coarse.
        self.seconds += self.last.elapsed_time(event) / 1000
        self.last = event
        return self.seconds

    def _event(self) -> torch.cuda.Event:
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event


@dataclass(frozen=True)
class Device:
    """Where models run.

    Attributes:
        type: as `torch.device.type`: `cuda` or `cpu`.
    """

    type: str

    @property
    def is_gpu(self) -> bool:
        return self.type == "cuda"

    def clock(self) -> Clock:
        return EventClock() if self.is_gpu else time.process_time

    def capacity(self) -> int:
        """The bytes that there are; of the CPU nobody asks."""
        return torch.cuda.mem_get_info()[1] if self.is_gpu else sys.maxsize

    def allocated(self) -> int:
        """The bytes that tensors take by now; of the CPU, where nobody counts them, 0."""
        return torch.cuda.memory_allocated() if self.is_gpu else 0

    def peak(self, step: TrainStep, before: int) -> int:
        """The most bytes that tensors take in a step.

        Args:
            before: what was `allocated()` before the step's model was made, and is no part of it.
        """
        if not self.is_gpu:
            return stored_bytes(*step.tensors()) + peak_bytes(step)
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        step()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before

    def free(self) -> None:
        """Give back the memory of tensors that nobody holds any more."""
        gc.collect()
        if self.is_gpu:
            torch.cuda.empty_cache()

    def kernels(self, call: Callable[[], object]) -> int:
        """How many kernels a call runs, those of CUDA graphs included; of the CPU, how many ops."""
        # torch does so by itself only where CUDA graphs are on for the whole process.
        os.environ |= {"DISABLE_CUPTI_LAZY_REINIT": "1", "TEARDOWN_CUPTI": "0"}
        activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * self.is_gpu
        with profile(activities=activities) as profiler:
            call()
            if self.is_gpu:
                torch.cuda.synchronize()
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "trace.json")
            profiler.export_chrome_trace(str(path))
            events = json.loads(path.read_text(encoding="utf-8"))["traceEvents"]
        return sum(event.get("cat") == ("kernel" if self.is_gpu else "cpu_op") for event in events)

    def describe(self) -> dict[str, Any]:
        """What figures depend on: the device and the versions of all that drives it."""
        found: dict[str, Any] = {
            "type": self.type,
            "device": platform.machine(),
            "torch": torch.__version__,
            "Python": platform.python_version(),
            "CPU cores": os.cpu_count(),
        }
        if self.is_gpu:
            properties = torch.cuda.get_device_properties(0)
            found |= {
                "device": properties.name,
                "memory": f"{properties.total_memory / 2**30:.0f} GiB",
                "compute capability": f"{properties.major}.{properties.minor}",
                "CUDA": torch.version.cuda,
                "cuDNN": torch.backends.cudnn.version(),
                "driver": _driver(),
            }
        return found


def _driver() -> str:
    if shutil.which("nvidia-smi") is None:
        return "not told"
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    return subprocess.run(query, capture_output=True, text=True).stdout.partition("\n")[0]
