"""A decoder with the shapes of Llama, Gemma, Qwen and MobileLLM, for counts and small runs."""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class Sizes:
    """What a config file of these models says. `qkv_bias` is Qwen's."""

    layers: int
    width: int
    heads: int
    kv_heads: int
    head_dim: int
    hidden: int
    vocabulary: int
    qkv_bias: bool = False


class Attention(nn.Module):
    def __init__(self, s: Sizes) -> None:
        super().__init__()
        self.head_dim = s.head_dim
        self.q_proj = nn.Linear(s.width, s.heads * s.head_dim, s.qkv_bias)
        self.k_proj = nn.Linear(s.width, s.kv_heads * s.head_dim, s.qkv_bias)
        self.v_proj = nn.Linear(s.width, s.kv_heads * s.head_dim, s.qkv_bias)
        self.o_proj = nn.Linear(s.heads * s.head_dim, s.width, False)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (
            f(x).unflatten(-1, (-1, self.head_dim)).transpose(1, 2)
            for f in (self.q_proj, self.k_proj, self.v_proj)
        )
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        return self.o_proj(mixed.transpose(1, 2).flatten(2))


class Mlp(nn.Module):
    def __init__(self, s: Sizes) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(s.width, s.hidden, False)
        self.up_proj = nn.Linear(s.width, s.hidden, False)
        self.down_proj = nn.Linear(s.hidden, s.width, False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Layer(nn.Module):
    def __init__(self, s: Sizes) -> None:
        super().__init__()
        self.input_layernorm = nn.RMSNorm(s.width)
        self.post_attention_layernorm = nn.RMSNorm(s.width)
        self.self_attn, self.mlp = Attention(s), Mlp(s)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x))
        return x + self.mlp(self.post_attention_layernorm(x))


class Llama(nn.Module):
    def __init__(self, s: Sizes) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(s.vocabulary, s.width)
        self.layers = nn.ModuleList(Layer(s) for _ in range(s.layers))
        self.norm = nn.RMSNorm(s.width)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embed_tokens(ids)
        for layer in self.layers:
            x = layer(x)
        return F.linear(self.norm(x), self.embed_tokens.weight)
