"""An encoder with the shapes of BERT and RoBERTa, and with ALBERT's factors of the embedding.

In: sizes. Out: a model. For counts and small runs.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Attention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))
        self.dense, self.norm = nn.Linear(width, width), nn.LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (
            f(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for f in (self.query, self.key, self.value)
        )
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        return self.norm(x + self.dense(mixed))


class Ffn(nn.Module):
    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(width, hidden), nn.Linear(hidden, width)
        self.norm = nn.LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x + self.down(F.gelu(self.up(x))))


class Layer(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.attention, self.ffn = Attention(width, heads), Ffn(width, 4 * width)

    def forward(self, x: Tensor) -> Tensor:
        return self.ffn(self.attention(x))


class Embeddings(nn.Module):
    def __init__(self, vocabulary: int, positions: int, types: int, width: int) -> None:
        super().__init__()
        self.word, self.position = nn.Embedding(vocabulary, width), nn.Embedding(positions, width)
        self.kind, self.norm = nn.Embedding(types, width), nn.LayerNorm(width)

    def forward(self, ids: Tensor) -> Tensor:
        place = torch.arange(ids.shape[1], device=ids.device)
        return self.norm(self.word(ids) + self.position(place) + self.kind.weight[0])


class Bert(nn.Module):
    def __init__(
        self, layers: int, width: int, heads: int, sizes: tuple[int, int, int], inner: int = 0
    ) -> None:
        super().__init__()
        self.embeddings = Embeddings(*sizes, inner or width)
        self.projection = nn.Linear(inner, width) if inner else nn.Identity()
        self.layers = nn.ModuleList(Layer(width, heads) for _ in range(layers))
        self.pooler = nn.Linear(width, width)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.projection(self.embeddings(ids))
        for layer in self.layers:
            x = layer(x)
        return self.pooler(x[:, 0]).tanh()
