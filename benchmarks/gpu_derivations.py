"""Many derivations as one: what it could gain, tried out by hand.

In: a tied model that derives many tensors by `torch.square`. Out: the same, with one call at the
top of its graph that derives all of them. fxtie does not do this: figures say whether it should.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any

import torch
from speed_models import Link, Workload
from torch import Tensor, fx, nn

Derive = Callable[[Sequence[Tensor]], Sequence[Tensor]]


def pairs(ties: int, width: int) -> Workload:
    """Pairs of Linears: the second of each derives from the first, and all do so alike."""
    model = nn.Sequential(*(nn.Linear(width, width) for _ in range(2 * ties)))
    links = (Link(str(2 * i + 1), str(2 * i)) for i in range(ties))
    return Workload(f"{ties} equal ties", model, tuple(links), (width,), (32,))


def together(model: nn.Module, derive: Derive) -> nn.Module:
    """The model, whose derived tensors one call computes."""
    assert isinstance(model, fx.GraphModule)
    graph = model.graph
    derived = [node for node in graph.nodes if "derived" in node.meta]
    assert {node.target for node in derived} == {torch.square}
    first = next(node for node in graph.nodes if node.op != "placeholder")
    with graph.inserting_before(first):
        sources = [graph.get_attr(node.args[0].target) for node in derived]
        values = graph.call_function(derive, (sources,))
        for i, node in enumerate(derived):
            node.replace_all_uses_with(graph.call_function(operator.getitem, (values, i)))
            graph.erase_node(node)
    model.recompile()
    return model


class Squares(torch.autograd.Function):
    """The squares of tensors: one call forward, two backward, however many there are."""

    @staticmethod
    def forward(ctx: Any, *sources: Tensor) -> tuple[Tensor, ...]:
        ctx.save_for_backward(*sources)
        return tuple(torch._foreach_mul(sources, sources))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, ...]:
        return tuple(torch._foreach_mul(torch._foreach_mul(gradients, ctx.saved_tensors), 2.0))


def foreach(sources: Sequence[Tensor]) -> Sequence[Tensor]:
    return Squares.apply(*sources)  # type: ignore[no-any-return, no-untyped-call]


def squares(sources: Sequence[Tensor]) -> Sequence[Tensor]:
    return [torch.square(source) for source in sources]


# Each way, and how the function that it calls is made.
TOGETHER: dict[str, Callable[[], Derive]] = {
    "_foreach": lambda: foreach,
    "_foreach, compiled": lambda: torch.compile(foreach, dynamic=False),
    "compiled": lambda: torch.compile(squares, dynamic=False, options={"combo_kernels": True}),
}
