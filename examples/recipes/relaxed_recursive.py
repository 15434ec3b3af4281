"""Relaxed Recursive Transformers: half of the layers, run twice, the second time relaxed."""

import torch
from llama import Llama, Sizes
from tabulate import tabulate

import fxtie
from fxtie import transforms as T

MODELS = {
    "TinyLlama": (Sizes(22, 2048, 32, 4, 64, 5632, 32_000), 968_976_384, 484_489_216),
    "Gemma-2B": (Sizes(18, 2048, 8, 1, 256, 16_384, 256_000), 1_981_884_416, 990_943_232),
}


def without_embedding(model):
    return sum(p.numel() for p in model.parameters()) - model.embed_tokens.weight.numel()


rows = []
for name, (sizes, before, after) in MODELS.items():
    with torch.device("meta"):  # counts need no values
        model = Llama(sizes)
    half = sizes.layers // 2
    recursive = fxtie.transform(model, fxtie.Rule("layers.*", f"layers.{{0 % {half}}}"))
    relaxed = fxtie.transform(
        model,
        [
            fxtie.Rule(
                "layers.*.*.*_proj", f"layers.{{0 % {half}}}.{{1}}.{{2}}_proj", T.LowRank(8)
            ),
            fxtie.Rule("layers.*.*norm", f"layers.{{0 % {half}}}.{{1}}norm"),
        ],
    )
    counts = [without_embedding(m) for m in (model, recursive, relaxed)]
    assert counts[:2] == [before, after]
    rows.append((name, *(f"{count:,}" for count in counts)))
print(tabulate(rows, ("not counting the embedding", "as it is", "recursive", "relaxed, rank 8")))
fxtie.picture(relaxed).svg("relaxed_recursive.svg")

# A trained model comes first: `fit` chooses the shared layers, and the residuals that are left.
torch.manual_seed(0)
small = Llama(Sizes(6, 32, 4, 2, 8, 64, 100))
rule = fxtie.Rule("layers.*.*.*_proj", "layers.{0 % 3}.{1}.{2}_proj", weight=T.LowRank(4))
found = fxtie.fit(small, rule, how="average")
closer = sum(found.after.values()) < sum(found.before.values())
print(f"{len(found.after)} weights are closer to the trained ones: {closer}")
