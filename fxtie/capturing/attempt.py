"""Undo the part of a trace that has stopped."""

from __future__ import annotations

from typing import Any

from fxtie.tracing.stops import Stop


class Attempt:
    """A state of a trace that `undo` restores."""

    def __init__(self, tracer: Any) -> None:
        self.tracer, self.made, self.writes = tracer, tracer.made, len(tracer.writes)
        self.last = next(iter(reversed(tracer.graph.nodes)), None)
        # Lengths only: copies of what grows with the model would make the trace quadratic.
        self.lengths = {name: len(getattr(tracer, name)) for name in _GROWING}
        self.copies = {name: getattr(tracer, name).copy() for name in _COPIED}

    def undo_nodes(self) -> None:
        """Remove the nodes since. What they needed stays guarded: that is stricter, and right."""
        tracer, erased = self.tracer, set()
        for node in reversed(tracer.graph.nodes):
            if node is self.last:
                break
            tracer.graph.erase_node(node)
            erased.add(node)
        tracer.reads.take_back(erased)
        if any(number < self.made for number in tracer.writes[self.writes :]):
            raise Stop("hands a container to a part that can't be captured and writes to it")

    def undo(self) -> None:
        """Remove all that was recorded since."""
        tracer = self.tracer
        for path in tracer._entered[self.lengths["_entered"] :]:
            tracer._calls[path] -= 1
        for name, length in self.lengths.items():
            grown = getattr(tracer, name)
            while len(grown) > length:
                grown.popitem() if isinstance(grown, dict) else grown.pop()
        for name, value in self.copies.items():
            setattr(tracer, name, value.copy())
        self.undo_nodes()


_GROWING = ("facts", "looked_up", "inlined", "_placed", "_seen", "_entered", "_effects")
_COPIED = ("kept", "_assumed", "_opaque", "_escaped")
