"""Why a trace stops, and where in the user's code it is.

In: exceptions and frames. Out: `Stop`, with a reason, a file and a line. Called by all that traces.
"""

from __future__ import annotations

import functools
import linecache
import traceback
from types import CodeType, FrameType

from torch import fx


class Stop(Exception):
    """What the code does next cannot be said by a graph.

    Attributes:
        file: the file of the user's innermost statement that led here, if it is known.
        line: its line.
    """

    file: str = ""
    line: int = 0

    @classmethod
    def because_of(cls, error: Exception) -> Stop:
        """What stopped a trace, in a few words, and where. Clears the frames of `error`."""
        stop = error if isinstance(error, Stop) else None
        if stop is None:
            text = str(error).strip().split("\n", 1)[0]
            stop = Stop(f"fails on traced values with {type(error).__name__}: {text}")
        for frame, number in traceback.walk_tb(error.__traceback__):
            if not is_machinery(frame.f_globals.get("__name__", "")):
                stop.file, stop.line = frame.f_code.co_filename, number
        traceback.clear_frames(error.__traceback__)
        return stop.with_traceback(None)


def user_frame(frame: FrameType | None) -> FrameType | None:
    """The innermost frame of the user's own code below the trace, else of torch's own layers."""
    layer = None
    while frame is not None:
        module = frame.f_globals.get("__name__", "")
        if not is_machinery(module):
            if not module.startswith("torch."):
                return frame
            layer = layer or frame
        elif frame.f_code is _TRACE:
            return layer
        frame = frame.f_back
    return layer


_TRACE = fx.Tracer.trace.__code__


@functools.lru_cache(maxsize=4096)
def location(code: CodeType, line: int) -> str:
    """A line of code, as tracebacks show it."""
    source = linecache.getline(code.co_filename, line).strip()
    return f'File "{code.co_filename}", line {line}, in {code.co_name}\n    {source}'


@functools.lru_cache(maxsize=4096)
def is_machinery(module: str) -> bool:
    """Whether a module is machinery: of torch (its layers apart), of fxtie, of contexts."""
    package = module.split(".", 1)[0]
    if package == "torch":
        return not module.startswith("torch.nn.modules")
    return package in ("fxtie", "contextlib", "functools")
