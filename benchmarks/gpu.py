"""What fxtie does on a GPU: its tests, and its speed and memory against other ways to tie.

    python benchmarks/gpu.py                     for under 8 minutes; again, for what is left
    python benchmarks/gpu.py --limit 200         what is worth most in 200 seconds
    python benchmarks/gpu.py --docs              write docs/gpu.md, and run nothing
    python benchmarks/gpu.py --device cpu --small    try it out without a GPU

It needs a Python with torch, pytest and numpy, and no network; fxtie is that of this checkout.
torchvision and timm are for the models that they have: what is missing fails its case, and no
other. Tests that print tables want tabulate: its wheel on PYTHONPATH is enough.

Results go to a file of JSON lines as they are found (`gpu_results.py`); what is done already, on
the same device with the same versions, is not run again. Each case runs in a process of its own,
which is stopped when its time is up: a crash or a hang loses no other.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

import gpu_tests  # noqa: E402
import torch  # noqa: E402
from figures import Figure  # noqa: E402
from gpu_cases import SECTIONS, Case, Setting, cases  # noqa: E402
from gpu_device import Device  # noqa: E402
from gpu_results import BAD, CUT_OFF, DONE, FAILED, append, append_figure, read  # noqa: E402

RESULTS = ROOT / "benchmarks" / "gpu.jsonl"  # of GPUs; the page is written from it
TRIED_OUT = ROOT / "out" / "gpu.jsonl"
LEAST = 15.0  # seconds: with less left, a case is not begun


# -- one case, in a process of its own ------------------------------------------------------------


def measure(case: Case, setting: Setting, out: Path) -> None:
    """Run one case; its figures are written, and told, as they come."""
    assert case.measure is not None
    warnings.simplefilter("ignore")
    torch.manual_seed(0)
    torch.set_num_threads(1)
    torch.set_float32_matmul_precision("high")  # TF32, as one trains
    for figure in case.measure(setting):
        append_figure(out, case.name, figure)
        print(f"   {told(figure)}", flush=True)


def told(figure: Figure) -> str:
    ratio, against = figure.ratio, f" / {figure.against}" if figure.against else ""
    spread = f" ({ratio.low:.3f} - {ratio.high:.3f})" if ratio.samples > 1 else ""
    goal = {True: ", met", False: ", not met", None: ""}[figure.met]
    median = ratio.median if isinstance(ratio.median, int) else f"{ratio.median:.3f}"
    value = f"{median} {figure.unit}".rstrip()
    return f"{figure.what}, {figure.workload}: {figure.subject}{against} = {value}{spread}{goal}"


# -- all of them ----------------------------------------------------------------------------------


def turns(
    wanted: Sequence[Case],
    limit: float,
    is_over: Callable[[Case], bool],
    clock: Callable[[], float] = time.monotonic,
) -> Iterator[tuple[Case, float]]:
    """Which case comes next, and the seconds that it may take.

    First each section has its part of the time, and what those before it have left; where these
    parts would be too short for anything, there are none. Then come the cases that were not begun,
    then those that were cut off.
    """
    start, part, ends = clock(), 0.0, {}
    for section, share in SECTIONS.items():
        part += share
        ends[section] = start + part * limit
    whole = dict.fromkeys(SECTIONS, start + limit)
    if limit * min(SECTIONS.values()) < LEAST:
        ends = whole
    begun = set()
    for until, again in ((ends, False), (whole, False), (whole, True)):
        for case in wanted:
            seconds = until[case.section] - clock()
            if seconds >= LEAST and not is_over(case) and (again or case.name not in begun):
                begun.add(case.name)
                yield case, seconds


class Runner:
    """Starts cases, and writes how they end."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options

    def command(self, case: Case, out: Path, seconds: float) -> list[str]:
        options = self.options
        if case.measure is None:
            return gpu_tests.command(options.device, options.small, out)
        found = [sys.executable, __file__, "--case", case.name, "--out", str(out)]
        found += ["--device", options.device, "--seconds", str(seconds)]
        return [*found, "--small"] if options.small else found

    @contextlib.contextmanager
    def started(self, command: Sequence[str], **streams: Any) -> Iterator[subprocess.Popen[bytes]]:
        """A process, which ends with the block at the latest, as do those that it has started."""
        paths = (str(ROOT), str(ROOT / "benchmarks"), os.environ.get("PYTHONPATH", ""))
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}
        process = subprocess.Popen(
            command, cwd=ROOT, env=environment, preexec_fn=os.setpgrp, **streams
        )
        try:
            yield process
        finally:
            with contextlib.suppress(ProcessLookupError):  # none of them is left
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()

    def run(self, case: Case, seconds: float) -> str:
        """Run one case. Returns how it ended."""
        out, begin = self.options.out, time.monotonic()
        print(f"-- {case.name} (at most {seconds:.0f} s)", flush=True)
        append(out, {"case": case.name, "began": _now()})
        with tempfile.TemporaryFile() as log:
            command = self.command(case, out, self.options.seconds)
            with self.started(command, stderr=log) as process:
                try:
                    code = process.wait(seconds)
                except subprocess.TimeoutExpired:
                    ended = CUT_OFF
                else:
                    ended = DONE if code in good_codes(case) else FAILED
            log.seek(0)
            end = log.read().decode(errors="replace").strip()[-2000:]
        took = round(time.monotonic() - begin, 1)
        append(out, {"case": case.name, "ended": ended, "seconds": took, "log": end})
        print(f"-- {case.name}: {ended}, {took} s", flush=True)
        if ended != DONE:
            print(end, flush=True)
        return ended

    @contextlib.contextmanager
    def compiling(self, ahead: Sequence[Case], seconds: float) -> Iterator[None]:
        """Run cases for nothing but to fill the compiler's caches; wait for them at the end."""
        until = time.monotonic() + seconds
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        with contextlib.ExitStack() as stack:
            commands = (self.command(case, Path(os.devnull), 0) for case in ahead)
            running = [stack.enter_context(self.started(command, **quiet)) for command in commands]
            yield
            for process in running:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(max(0.0, until - time.monotonic()))

    def run_all(self, wanted: Sequence[Case], over: set[str]) -> None:
        """Run what is not over, within the limit of time, and add it to what is."""
        ahead = [case for case in wanted if case.ahead and case.name not in over]
        until = time.monotonic() + self.options.limit
        if ahead and all(case.measure or case.name in over for case in wanted):
            with self.compiling(ahead, SECTIONS["tests"] * self.options.limit):
                pass  # there are no tests to do meanwhile
        for case, seconds in turns(wanted, until - time.monotonic(), lambda c: c.name in over):
            # The tests measure no time, so that the compiler may run beside them.
            with self.compiling([] if case.measure else ahead, seconds):
                if self.run(case, seconds) != CUT_OFF:
                    over.add(case.name)


def good_codes(case: Case) -> tuple[int, ...]:
    """Exit codes of a case that came to its end; pytest's 1: tests failed, 5: none was left."""
    return (0,) if case.measure else (0, 1, 5)


def _now() -> str:
    return datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")


def _commit() -> str:
    command = ["git", "describe", "--always", "--dirty"]
    with contextlib.suppress(FileNotFoundError):  # git
        found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        if found.returncode == 0:
            return found.stdout.strip()
    return "unknown"


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--limit", type=float, default=450, help="seconds for everything")
    parser.add_argument("--only", metavar="REGEX", default="", help="cases whose name matches")
    parser.add_argument("--list", action="store_true", help="tell the cases' names")
    parser.add_argument("--out", type=Path, help="where results are")
    parser.add_argument("--docs", action="store_true", help="write docs/gpu.md from the results")
    parser.add_argument("--seconds", type=float, default=2, help="time for one comparison")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--small", action="store_true", help="small models, to try everything out")
    parser.add_argument("--case", help=argparse.SUPPRESS)
    options = parser.parse_args()
    is_real = options.device == "cuda" and not options.small
    options.out = (options.out or (RESULTS if is_real else TRIED_OUT)).absolute()
    every = cases(options.small)
    device = Device(options.device)
    if options.docs:
        from gpu_report import write_docs

        write_docs(read(options.out), ROOT / "docs")
        return 0
    if options.list:
        print(*(case.name for case in every), sep="\n")
        return 0
    if device.is_gpu and not torch.cuda.is_available():
        print("No CUDA device. --device cpu --small tries it out.", file=sys.stderr)
        return 2
    if options.case:
        (case,) = (case for case in every if case.name == options.case)
        measure(case, Setting(device, options.seconds), options.out)
        return 0
    return run(options, device, [case for case in every if re.search(options.only, case.name)])


def run(options: argparse.Namespace, device: Device, wanted: Sequence[Case]) -> int:
    """Run cases. Returns the exit code: 0 if all are done and no test has failed."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that what was started ends too
    environment = {**device.describe(), "small": options.small}
    options.out.parent.mkdir(parents=True, exist_ok=True)
    append(options.out, {"run": environment, "commit": _commit(), "began": _now()})
    print(*(f"{key}: {value}" for key, value in environment.items()), sep="\n")
    before = read(options.out)[-1]
    Runner(options).run_all(wanted, {case.name for case in wanted if before.is_done(case.name)})
    found = read(options.out)[-1]
    attempts = {case.name: found.case(case.name) for case in wanted}
    for name, attempt in attempts.items():
        print(f"{name}: {attempt.ended if attempt else 'not begun'}")
    tests = [outcome for a in attempts.values() if a for outcome in a.tests.values()]
    failed = sum(outcome.word in BAD for outcome in tests)
    print(f"{len(tests)} tests, {failed} of them failed or not collected")
    return 0 if not failed and all(a and a.ended == DONE for a in attempts.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
