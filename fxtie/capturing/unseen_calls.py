"""Calls in a trace of code that is not looked into: what they may have changed, and what they give.

In: a call that the graph has. Out: whether what the trace reads afterwards is still what it was.
To find out, the module's forward is traced, and the graph thrown away.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Set
from typing import Any

from torch import fx, nn

from fxtie.capturing.attempt import Attempt
from fxtie.capturing.module_attributes import ModuleAttributes
from fxtie.capturing.reach import ANYTHING, Reach, runs_only_torch
from fxtie.capturing.report import Kept
from fxtie.tracing.stops import Stop
from fxtie.tracing.traced import Traced


class UnseenCalls(ModuleAttributes):
    """What a trace knows of the modules that stay calls.

    Attributes:
        opened: modules to trace through.
        kept: opened modules that were rolled back to a call, by name.
    """

    opened: Set[nn.Module]
    kept: dict[str, Kept]
    _inline: Callable[..., Any]  # run the forward that the user wrote
    _reach: Reach
    # Calls of code that is not looked into, by their numbers in `_reach`.
    _opaque: dict[int, tuple[nn.Module | None, Any, Any]]
    _unseen: dict[fx.Node, tuple[nn.Module, Any, Any]]  # by what they give
    _effects: list[fx.Node]  # nodes that change more than buffers
    _assumed: dict[str, type]

    def runs_unseen(self) -> None:
        self._runs_unseen(self._reach.add(ANYTHING), None, (), {})

    def _runs_unseen(self, number: int, module: nn.Module | None, args: Any, kwargs: Any) -> None:
        self._opaque[number] = module, args, kwargs
        self.reads.forget(self._reach.reached(number, self._reachable), buffers_only=False)

    @functools.cached_property
    def _reachable(self) -> dict[int, nn.Module]:
        """The modules by their ids, and by the keys of their tensors."""
        return {id(module): module for module in self.paths} | self.reads.holders

    def may_be_reached(self, holder: Any) -> None:
        if not self._opaque:
            return
        if (changer := self._changer(self._reach.calls(holder))) is not None:
            raise Stop(f"reads what {changer}, which it calls, may change")

    def _changer(self, numbers: Iterable[int]) -> str | None:
        """What may have changed something among some calls that are not looked into."""
        for number in numbers:
            if number not in self._opaque:
                continue
            module, args, kwargs = self._opaque[number]
            if module is None:
                return "a method of an unknown object"
            if not self._changes_nothing(module, args, kwargs):
                return f"{self.paths[module]} ({type(module).__name__})"
            del self._opaque[number]
        return None

    def _changes_nothing(self, module: nn.Module, args: Any, kwargs: Any) -> bool:
        """Whether the forward of a module that stays a call only does what a trace may do."""
        # What else may change what the module reads may also change what the module can reach.
        return self._look_into(module, args, kwargs, {}, lambda result: True)

    def _gives_tensor(self, node: fx.Node, assume: bool) -> bool:
        """Whether a module that stays a call surely gives one tensor."""
        module, args, kwargs = self._unseen.get(node, (None, (), {}))
        if module is None:
            return False
        others = {n: call for n, call in self._opaque.items() if call[0] is not module}

        def is_one(result: Any) -> bool:
            return type(result) is Traced and self.is_tensor(result, assume=assume)

        return self._look_into(module, args, kwargs, others, is_one)

    def _look_into(
        self, module: nn.Module, args: Any, kwargs: Any, opaque: Any, test: Callable[[Any], bool]
    ) -> bool:
        """Whether a module that stays a call only does what a trace may do, and passes a test.

        The test is of what it gives. `opaque` are the calls that may have changed what it reads.
        """
        if self.paths[module] in self.kept:
            return False
        had_modes = bool(self.switches)
        proved = self._look_once(module, args, kwargs, opaque, test)
        if proved and not had_modes and len(self.switches) == 1:
            # What is true in both modes does not need a graph for each.
            self.training = not self.training
            try:
                if self._look_once(module, args, kwargs, opaque, test):
                    self.switches = {}
            finally:
                self.training = not self.training
        return proved

    def _look_once(
        self, module: nn.Module, args: Any, kwargs: Any, opaque: Any, test: Callable[[Any], bool]
    ) -> bool:
        """The same, in the mode that is traced now."""
        graph, self.graph = self.graph, fx.Graph()  # whose names are its own
        attempt, opened = Attempt(self), self.opened
        self._opaque, before = {**opaque}, self._opaque
        self.opened = {module, *(m for m in module.modules() if not runs_only_torch(m))}
        try:
            proved = test(self._inline(module, args, kwargs))
            proved &= self._opaque.keys() <= opaque.keys()
            proved &= self.kept == attempt.copies["kept"]
        except Stop:
            proved = False
        self.opened, self._opaque = opened, before
        facts = self.facts[attempt.lengths["facts"] :] if proved else []
        effects, assumed = self._effects[attempt.lengths["_effects"] :], self._assumed
        try:
            attempt.undo()
        finally:
            self.graph = graph
        self.facts += facts
        if proved:
            self._effects += effects
            self._assumed = assumed
        return proved

    def may_fail(self) -> None:
        changer = self._changer([*self._opaque]) or ("it" if self._effects else None)
        if changer is not None:
            raise Stop(f"checks a value after {changer} may have changed what outlives the call")
