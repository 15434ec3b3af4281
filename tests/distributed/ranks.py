"""Processes that run a function of a test together, as the ranks of one group.

Where there is a GPU for each, they compute on these and send by NCCL, else on the CPU and by gloo.
To import torch takes seconds, so one process does it, and the ranks are its forks. They stay for
all tests of a session. A failure or a timeout ends them: what a collective has left behind is
nobody's to use.

Now and then gloo aborts a process: the thread that has received an `allgather` frees the buffer
(`gloo::transport::tcp::UnboundBuffer`), and the C library finds its memory spoiled, whatever the
rank does then. So a function is run again, once, if a signal has ended a rank.
"""

from __future__ import annotations

import faulthandler
import importlib.util
import inspect
import os
import sys
import tempfile
import traceback
import warnings
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed
import torch.multiprocessing

LIMIT = 120.0
"""Seconds that one function may take on a loaded machine; a hang takes as long."""

NOT_BEFORE_2_10 = pytest.mark.xfail(
    torch.__version__ < "2.10",
    raises=AssertionError,
    reason="torch 2.9's compiler can't make a frozen dataclass anew, as after a graph break",
)

OTHER_ORDER_IN_2_9 = pytest.mark.xfail(
    torch.__version__ < "2.10",
    raises=AssertionError,
    reason="torch 2.9 adds up gradients that are sharded in two dimensions in another order",
)

NO_PIPELINES_IN_2_9 = pytest.mark.skipif(
    torch.__version__ < "2.10",
    reason="torch 2.9's pipelines send an int64 where gloo is to receive a float32, and abort",
)

USED = ("checkpoint", "fsdp", "pipelining", "tensor.parallel")
"""What the tests use of torch.distributed, and what takes longest to import."""


def _nothing() -> None:
    """What is done first where nothing is needed."""


class _Aborted(AssertionError):
    """A signal has ended a rank."""


class Ranks:
    """A group of processes.

    Args:
        count: how many.
        prepare: what each of them does first.
    """

    def __init__(self, count: int, prepare: Callable[[], Any] = _nothing) -> None:
        self.count = count
        self.prepare = prepare
        self._processes: list[Any] = []
        self._ends: list[Connection] = []

    def run(self, function: Callable[..., Any], *args: Any) -> list[Any]:
        """Call a function of a test file on each rank. Returns what each gave.

        Args:
            function: one at the top of its file; it is looked up there by its name.
            *args: what it gets; they are pickled.

        Raises:
            AssertionError: with the traceback of each rank on which it failed, or that took too
                long.
        """
        try:
            return self._run(function, args)
        except _Aborted as error:
            print(f"{function.__name__} runs again: {error}", file=sys.stderr)
            return self._run(function, args)

    def _run(self, function: Callable[..., Any], args: tuple[Any, ...]) -> list[Any]:
        if not self._processes:
            self._start()
        where = inspect.getfile(function), function.__name__
        for end in self._ends:
            end.send((where, args))
        answers = [*map(self._answer, self._processes, self._ends)]
        faults = [f"rank {rank}: {fault}" for rank, (_, fault) in enumerate(answers) if fault]
        if faults:
            is_aborted = any((process.exitcode or 0) < 0 for process in self._processes)
            self.stop()
            raise (_Aborted if is_aborted else AssertionError)("\n".join(faults))
        return [value for value, _ in answers]

    def stop(self) -> None:
        for process in self._processes:
            process.kill()
            process.join()
        self._processes, self._ends = [], []

    @staticmethod
    def _answer(process: Any, end: Connection) -> tuple[Any, str]:
        try:
            return end.recv() if end.poll(LIMIT) else (None, f"no answer in {LIMIT} s")
        except EOFError:
            process.join()
            return None, f"the process has died with exit code {process.exitcode}"

    def _start(self) -> None:
        context = torch.multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["fxtie", *(f"torch.distributed.{name}" for name in USED)])
        store = os.path.join(tempfile.mkdtemp(), "store")
        for rank in range(self.count):
            mine, theirs = context.Pipe()
            process = context.Process(
                target=_serve, args=(rank, self.count, store, theirs, self.prepare), daemon=True
            )
            process.start()
            theirs.close()  # so that the death of the process is seen
            self._processes.append(process)
            self._ends.append(mine)


def _serve(rank: int, count: int, store: str, end: Connection, prepare: Callable[[], Any]) -> None:
    """What each process does: answer until the other end is closed."""
    prepare()
    faulthandler.enable()
    warnings.simplefilter("error")
    # torch says so of each Linear that is a unit of its own and gets several dimensions.
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view tensor")
    # Of a function that runs again.
    warnings.filterwarnings("ignore", message="Detected an existing checkpoint")
    warnings.filterwarnings("ignore", message="Guards may run slower on Python 3.13.0")
    for start in (  # what torch 2.9 says of its own code
        "TypedStorage is deprecated",
        "Please specify CheckpointImpl.NO_REENTRANT",
        "The .grad attribute of a Tensor that is not a leaf",
    ):
        warnings.filterwarnings("ignore", message=start)
    torch.set_num_threads(1)
    backend = "gloo"
    if torch.cuda.device_count() >= count:
        torch.cuda.set_device(rank)
        torch.set_default_device(torch.device("cuda", rank))
        backend = "cpu:gloo,cuda:nccl"
    torch.distributed.init_process_group(
        backend, init_method=f"file://{store}", rank=rank, world_size=count
    )
    while True:
        try:
            (file, name), args = end.recv()
        except EOFError:
            return
        try:
            torch.manual_seed(0)
            answer = getattr(_module(file), name)(rank, *args), ""
        except BaseException:
            answer = None, traceback.format_exc()
        end.send(answer)


def _module(file: str) -> Any:
    """A test file as a module, imported once."""
    name = f"on_ranks_{Path(file).stem}"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, file)
        assert spec is not None
        assert spec.loader is not None
        module = sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    return sys.modules[name]
