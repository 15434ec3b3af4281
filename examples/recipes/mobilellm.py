"""MobileLLM-LS: each layer runs twice, so that 60 layers have the parameters of 30."""

import torch
from llama import Llama, Sizes

import fxtie

# MobileLLM-125M with twice its layers.
with torch.device("meta"):  # counts need no values
    deep = Llama(Sizes(60, 576, 9, 3, 64, 1536, 32_000))

shared = fxtie.transform(deep, fxtie.Rule("layers.*", "layers.{0 // 2 * 2}"))
count = sum(p.numel() for p in shared.parameters())
assert count == 124_635_456
print(f"60 layers: {sum(p.numel() for p in deep.parameters()):,} -> {count:,}")
fxtie.picture(shared).svg("mobilellm.svg")
