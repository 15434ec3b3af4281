"""A tied model that was pickled still has its graph, whatever the ready-made transform."""

from __future__ import annotations

import pickle

import torch
from torch import nn
from transform_cases import Case

import fxtie


class Holder(nn.Module):
    """Tensors, and a forward that reads the last of them."""

    def __init__(self, sources: list[torch.Tensor], target: torch.Tensor) -> None:
        super().__init__()
        self.sources = nn.ParameterList(sources)
        self.target = nn.Parameter(torch.zeros_like(target))

    def forward(self) -> torch.Tensor:
        return self.target + 1


def test_the_graph_is_there_after_pickling(case: Case) -> None:
    sources = case.sources()
    model = Holder(sources, case.transform(*sources))
    names = [f"sources.{i}" for i in range(len(sources))]
    tied = fxtie.transform(model, fxtie.Tie("target", names, case.transform))
    assert fxtie.report(tied).region_names == ("",)
    again = pickle.loads(pickle.dumps(tied))
    assert torch.equal(again(), tied())
    assert not fxtie.report(again).missed
