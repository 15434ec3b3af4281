"""Small models of transformers of five kinds, each with two sets of rules and an input."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import (
    BertConfig,
    BertForMaskedLM,
    LlamaConfig,
    LlamaForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
    ViTConfig,
    ViTForImageClassification,
)

import fxtie
from fxtie.transforms import LowRank

TOKENS, WIDTH = 64, 16
SIZES: dict[str, Any] = {
    "vocab_size": TOKENS,
    "hidden_size": WIDTH,
    "intermediate_size": 2 * WIDTH,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
}


@dataclass
class Pretrained:
    """A class of models.

    Attributes:
        cls: the class.
        config: the configuration of a small one.
        layers: a pattern for its layers.
        linears: a pattern for some of their linear maps.
    """

    cls: Any
    config: Any
    layers: str
    linears: str

    def build(self, **flags: Any) -> Any:
        """A model in `eval()`; the same one each time."""
        torch.manual_seed(0)
        config = type(self.config)(**{**self.config.to_dict(), **flags})
        return self.cls(config).eval()

    @property
    def rules(self) -> dict[str, Any]:
        """Rules without tensors of their own, and such with them."""
        halves = "{0 // 2 * 2}"
        maps = self.linears.replace("*", halves)
        return {
            "repeated": fxtie.Rule(self.layers, self.layers.replace("*", halves)),
            "squared": fxtie.Rule(self.linears, maps, weight=torch.square),
            "learned": fxtie.Rule(self.linears, maps, weight=LowRank(2)),
        }

    def examples(self, count: int) -> list[dict[str, torch.Tensor]]:
        """What it can be trained on, as data sets give it; the same each time."""
        random = torch.Generator().manual_seed(1)
        if self.cls is ViTForImageClassification:
            pixels = torch.randn(count, 3, 16, 16, generator=random)
            return [{"pixel_values": one, "labels": torch.tensor(0)} for one in pixels]
        tokens = torch.randint(1, TOKENS, (count, 8), generator=random)
        return [{"input_ids": row, "labels": row} for row in tokens]

    def inputs(self) -> dict[str, torch.Tensor]:
        tokens = torch.arange(1, 17).reshape(2, 8)
        if self.cls is ViTForImageClassification:
            return {"pixel_values": torch.linspace(-1, 1, 2 * 3 * 16 * 16).reshape(2, 3, 16, 16)}
        if self.cls is T5ForConditionalGeneration:
            return {"input_ids": tokens, "decoder_input_ids": tokens}
        return {"input_ids": tokens}


LLAMA = Pretrained(
    LlamaForCausalLM,
    LlamaConfig(**SIZES, num_key_value_heads=1),
    "model.layers.*",
    "model.layers.*.self_attn",
)
KINDS = {
    "encoder (BERT)": Pretrained(
        BertForMaskedLM,
        BertConfig(**SIZES, max_position_embeddings=32),
        "bert.encoder.layer.*",
        "bert.encoder.layer.*.intermediate.dense",
    ),
    "decoder (Llama)": LLAMA,
    "encoder-decoder (T5)": Pretrained(
        T5ForConditionalGeneration,
        T5Config(
            vocab_size=TOKENS,
            d_model=WIDTH,
            d_kv=8,
            d_ff=2 * WIDTH,
            num_layers=4,
            num_heads=2,
            decoder_start_token_id=0,
        ),
        "decoder.block.*",
        "encoder.block.*.layer.1.DenseReluDense",
    ),
    "vision (ViT)": Pretrained(
        ViTForImageClassification,
        ViTConfig(**{**SIZES, "image_size": 16, "patch_size": 4}),
        "vit.layers.*",
        "vit.layers.*.mlp",
    ),
    "mixture of experts (Mixtral)": Pretrained(
        MixtralForCausalLM,
        MixtralConfig(**SIZES, num_key_value_heads=1, num_local_experts=4),
        "model.layers.*",
        "model.layers.*.self_attn",
    ),
}


def tie(model: Any, rules: Any) -> Any:
    """The tied model; what it learns is not what it starts with."""
    tied = fxtie.transform(model, rules)
    for parameter in tied.ties.parameters() if hasattr(tied, "ties") else ():
        torch.nn.init.normal_(parameter, std=0.3)
    return tied


def logits(model: Any, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    with torch.no_grad():
        return model(**inputs).logits


def assert_same_outputs(one: Any, other: Any, inputs: dict[str, torch.Tensor]) -> None:
    """Up to rounding: kernels add up in another order where memory is aligned in another way."""
    torch.testing.assert_close(logits(one, inputs), logits(other, inputs))


def assert_plain_form(plain: Any, tied: Any, inputs: dict[str, torch.Tensor]) -> None:
    """`plain` is what `tied` is without ties: tensors bit for bit, and outputs."""
    expected, found = fxtie.untied_state_dict(tied), plain.state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], value) for name, value in expected.items())
    assert_same_outputs(plain, tied, inputs)


def same_state(one: nn.Module, other: nn.Module) -> bool:
    """Whether two models have the same names and values, bit for bit."""
    first, second = one.state_dict(), other.state_dict()
    return first.keys() == second.keys() and all(torch.equal(first[n], second[n]) for n in first)


def names_in(folder: str | Path) -> set[str]:
    return {path.name for path in Path(folder).iterdir()}
