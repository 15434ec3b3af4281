"""LoRA as a tie of a weight with itself: frozen, plus a learned product of low rank."""

import torch
from llama import Llama, Sizes

import fxtie
from fxtie import transforms as T

# Qwen2.5-3B, frozen.
with torch.device("meta"):  # counts need no values
    base = Llama(Sizes(36, 2048, 16, 2, 128, 11_008, 151_936, qkv_bias=True))
base.requires_grad_(False)

rule = fxtie.Rule("re:(.*[qv]_proj)", "{0}", weight=T.LowRank(16, alpha=32), bias=None)
tuned = fxtie.transform(base, rule)
trained = sum(p.numel() for p in tuned.parameters() if p.requires_grad)
everything = sum(p.numel() for p in tuned.parameters())
assert (trained, everything) == (3_686_400, 3_089_625_088)
print(f"trained: {trained:,} of {everything:,} parameters ({trained / everything:.4%})")
fxtie.picture(tuned).svg("lora.svg")

# It starts as the model that it adapts, and can be merged into it.
torch.manual_seed(0)
small = Llama(Sizes(2, 32, 4, 2, 8, 64, 100, qkv_bias=True)).requires_grad_(False)
tuned, ids = fxtie.transform(small, rule), torch.arange(8)[None]
assert torch.equal(tuned(ids), small(ids))
merged = fxtie.materialize(tuned)
assert torch.equal(merged(ids), tuned(ids)) and type(merged) is Llama
