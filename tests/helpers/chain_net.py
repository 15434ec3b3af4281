"""Layers in a row, and what a plan ties of them."""

from torch import nn

import fxtie


def chain_net(n: int = 4, **options) -> nn.Sequential:
    return nn.Sequential(*(nn.Linear(6, 6, **options) for _ in range(n)))


def tied_names(plan: fxtie.Plan) -> dict[str, tuple[str, ...]]:
    return {tie.target: tie.sources for tie in plan.ties}


def raising(w):
    raise ZeroDivisionError("no good")
