"""scikit-learn's digits, 1,797 images of 8x8 pixels, and what trains on them.

In: a model. Out: the same model, trained; its accuracy.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor, nn

torch.set_num_threads(1)  # nets this small gain nothing from more


def load() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Images (N, 1, 8, 8) in [0, 1] and labels, the last fifth of each for testing."""
    data = load_digits()
    x = torch.tensor(data.images, dtype=torch.float32)[:, None] / 16
    y = torch.tensor(data.target)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    x, y = x[order], y[order]
    split = len(x) * 4 // 5
    return x[:split], y[:split], x[split:], y[split:]


def train(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    loss: Callable[[Tensor, Tensor], Tensor] = F.cross_entropy,
    epochs: int = 10,
    rate: float = 1e-2,
) -> nn.Module:
    """Adam with one cycle of its rate, on the parameters that require gradients."""
    torch.manual_seed(0)
    batches = [batch for _ in range(epochs) for batch in torch.randperm(len(x)).split(64)]
    optimizer = torch.optim.Adam(p for p in model.parameters() if p.requires_grad)
    cycle = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=len(batches))
    for batch in batches:
        optimizer.zero_grad()
        loss(model(x[batch]), y[batch]).backward()
        optimizer.step()
        cycle.step()
    return model


@torch.no_grad()
def accuracy(model: nn.Module, x: Tensor, y: Tensor) -> float:
    return (model(x).argmax(1) == y).float().mean().item()
