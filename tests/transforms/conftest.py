"""Each case of the ready-made and of the learnable transforms."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from transform_cases import CASES, LEARNED, Case


@pytest.fixture(params=CASES.values(), ids=CASES.keys())
def case(request: pytest.FixtureRequest) -> Case:
    found = request.param
    assert isinstance(found, Case)
    return found


@pytest.fixture(params=LEARNED.values(), ids=LEARNED.keys())
def learned(request: pytest.FixtureRequest) -> tuple[nn.Module, list[Tensor]]:
    """A fitted module in float64, away from its start, and its sources."""
    torch.manual_seed(0)
    make, count = request.param
    module = make().double()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn_like(parameter))
    return module, [torch.randn(4, 3, 2, 2, dtype=torch.float64) for _ in range(count)]
