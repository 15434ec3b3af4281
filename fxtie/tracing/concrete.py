"""Tensors that a forward makes out of nothing: `torch.arange(n)`, masks, tables of angles.

In: the torch calls that no traced value takes part in. Out: their real results for the code that is
being traced, and nodes that make them again at each call. Called by `module_tracer.py`.

The code gets real tensors, so that it may branch on their values, and so that a cache of its own
(`functools.lru_cache`, a dict in a module) is filled with what belongs there.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Set
from typing import Any

import torch
from torch import fx
from torch.utils import _pytree as pytree

from fxtie.graphs import changed_in_place


class ConcreteTensors:
    """The tensors made during a trace, and the node of each.

    Args:
        tracer: records the calls.
    """

    def __init__(self, tracer: fx.Tracer) -> None:
        self._tracer = tracer
        self._made: dict[int, tuple[torch.Tensor, fx.Node]] = {}  # holds the tensor: an id is its
        self._pure: list[fx.Node] = []
        self._recording = False
        self._outdated: set[int] = set()  # storages, whose values are known at run time only

    def node_of(self, tensor: torch.Tensor) -> fx.Node | None:
        """The node that makes a tensor, if it was made in this trace."""
        return self._made[id(tensor)][1] if id(tensor) in self._made else None

    def can_run(self, args: Any, kwargs: dict[str, Any]) -> bool:
        """Whether a call uses nothing but constants and tensors made in this trace."""
        leaves = pytree.tree_leaves((args, kwargs))
        tensors = [leaf for leaf in leaves if isinstance(leaf, torch.Tensor)]
        return all(map(self._is_known, tensors)) and not any(
            isinstance(leaf, torch.Generator) for leaf in leaves
        )

    def _is_known(self, tensor: torch.Tensor) -> bool:
        return id(tensor) in self._made and _storage(tensor) not in self._outdated

    def note(self, node: fx.Node) -> None:
        """Note that a node was recorded: it may write a traced value into a tensor made here."""
        if self._made and not self._recording:
            changed = changed_in_place(node)
            if changed:
                made = (tensor for tensor, maker in self._made.values() if maker in changed)
                self._outdated.update(map(_storage, made))

    def run(self, func: Callable[..., Any], op: str, target: Any, args: Any, kwargs: Any) -> Any:
        """Run a call and record it, if it gives tensors.

        Returns:
            Its result, or NotImplemented for one that is random, and not the same at each call.
        """
        before = _random_states()
        result = func(*args, **kwargs)
        if before != _random_states():
            _restore(before)
            return NotImplemented
        is_sequence = isinstance(result, tuple | list)
        tensors = [t for t in (result if is_sequence else [result]) if isinstance(t, torch.Tensor)]
        if tensors:
            node = self._record(op, target, args, kwargs)
            if not changed_in_place(node):
                self._pure.append(node)
            if not is_sequence:
                self._made[id(result)] = result, node
            else:
                for i, item in enumerate(result):
                    if isinstance(item, torch.Tensor):
                        part = self._tracer.create_node(
                            "call_function", operator.getitem, (node, i), {}
                        )
                        self._made[id(item)] = item, part
                        self._pure.append(part)
        elif func is torch.Tensor.__setitem__:
            self._record("call_function", operator.setitem, args)
        return result

    def _record(self, op: str, target: Any, args: Any, kwargs: Any = None) -> fx.Node:
        args, kwargs = self._tracer.create_arg(args), self._tracer.create_arg(kwargs or {})
        self._recording = True
        try:
            return self._tracer.create_node(op, target, args, kwargs)
        finally:
            self._recording = False

    def forget(self, erased: Set[fx.Node]) -> None:
        """Take back what was made by nodes that are erased."""
        self._made = {i: made for i, made in self._made.items() if made[1] not in erased}
        self._pure = [node for node in self._pure if node not in erased]

    def erase_unused(self) -> None:
        """Erase nodes whose values the code only looked at."""
        for node in reversed(self._pure):
            if not node.users:
                node.graph.erase_node(node)
        self._pure.clear()


def _storage(tensor: torch.Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


def _random_states() -> list[bytes]:
    states = [torch.get_rng_state()]
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        states += torch.cuda.get_rng_state_all()
    return [state.numpy().tobytes() for state in states]


def _restore(states: list[bytes]) -> None:
    first, *rest = (torch.frombuffer(bytearray(state), dtype=torch.uint8) for state in states)
    torch.set_rng_state(first)
    if rest:
        torch.cuda.set_rng_state_all(rest)
