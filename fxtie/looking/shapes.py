"""Graphs and example inputs -> what each node's value looks like, without computing anything.

A copy of the module, made of fake tensors, is called once. Where the call gets to a module of which
there is a graph, that graph is run on the arguments that arrived there.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import fx, nn

from fxtie._torch import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeCopyMode,
    pytree,
)
from fxtie.errors import FxtieError
from fxtie.planning.spec import fake_mode


def node_values(
    module: nn.Module,
    graphs: Mapping[str, fx.Graph],
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    fits: Callable[[str, tuple[Any, ...], Mapping[str, Any]], bool],
) -> dict[fx.Node, Any]:
    """What each node of the graphs, by names of modules, gives on fake tensors.

    `fits` tells by name and arguments whether a graph is for a call of the module that it is of.

    Returns:
        The values of all nodes that were reached: a forward that depends on the values of tensors
        can't go on without them, and a graph may be for other calls than this.

    Raises:
        FxtieError: if the forward doesn't take these arguments.
    """
    mode = fake_mode()
    values: dict[fx.Node, Any] = {}
    try:
        with torch.no_grad(), mode:
            with FakeCopyMode(mode):
                module = copy.deepcopy(module)
            given = pytree.tree_map_only(torch.Tensor, mode.from_tensor, (args, dict(kwargs)))
            for name, graph in graphs.items():
                is_for = functools.partial(fits, name)
                recorder = _Recorder(module.get_submodule(name), graph, values, is_for)
                recorder.module.register_forward_pre_hook(recorder, prepend=True, with_kwargs=True)
            module(*given[0], **given[1])
    except (DataDependentOutputException, DynamicOutputShapeException):
        pass
    # The user's forward and inputs: whatever is wrong with them is told, with its traceback.
    except Exception as error:
        raise FxtieError(
            f"{type(module).__name__} can't be run on fake tensors like the given inputs, to find "
            f"the shapes: {type(error).__name__}: {error}. Without inputs, diff shows no shapes."
        ) from error
    return values


class _Recorder(fx.Interpreter):
    """Runs a module's graph each time that the module is called, as a hook of it."""

    def __init__(
        self,
        module: nn.Module,
        graph: fx.Graph,
        values: dict[fx.Node, Any],
        is_for: Callable[[tuple[Any, ...], Mapping[str, Any]], bool],
    ) -> None:
        super().__init__(module, graph=graph)
        self.values, self.is_for = values, is_for
        self.kwargs: Mapping[str, Any] = {}
        self.extra_traceback = False  # torch.fx writes it into the error's own text

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if self.is_for(args, kwargs):
            self.kwargs = kwargs
            self.run(*args)

    def placeholder(self, target: Any, args: Any, kwargs: Any) -> Any:
        if target in self.kwargs:
            return self.kwargs[target]
        return super().placeholder(target, args, kwargs)

    def run_node(self, n: fx.Node) -> Any:
        self.values[n] = result = super().run_node(n)
        return result
