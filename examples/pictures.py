"""Draw the tie pictures of four well-known models, on the meta device: no weights are needed.

    python examples/pictures.py [FOLDER]

Needs torchvision and transformers. In: nothing. Out: `resnet18.svg` and so on.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from torch import nn

import fxtie
from fxtie import transforms as T
from fxtie.rules.rule import Rules


def resnet18() -> tuple[nn.Module, Rules]:
    """The README's: fifteen convolutions, filled with copies of the filters of one."""
    from torchvision.models import resnet18

    rule = fxtie.Rule("layer*.*.conv*", "layer1.0.conv1", weight=T.tile())
    return resnet18(num_classes=10), rule


def resnet50() -> tuple[nn.Module, Rules]:
    """Whatever fits: each block as the first of its stage, each stage as the one before, tiled."""
    from torchvision.models import resnet50

    model = resnet50()
    return model, fxtie.suggest(model)


def vit_b_16() -> tuple[nn.Module, Rules]:
    """All blocks as the first, as in ALBERT (Lan et al., arXiv:1909.11942)."""
    from torchvision.models import vit_b_16

    blocks = "encoder.layers.encoder_layer_"
    return vit_b_16(), fxtie.Rule(f"{blocks}*", f"{blocks}0")


def llama() -> tuple[nn.Module, Rules]:
    """Every second layer as the one before, as in MobileLLM (Liu et al., arXiv:2402.14905)."""
    from transformers import LlamaConfig, LlamaForCausalLM

    model = LlamaForCausalLM(LlamaConfig())  # 32 layers, of the sizes of Llama 7B
    return model, fxtie.Rule("model.layers.*", "model.layers.{0 // 2 * 2}")


def main(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for make in (resnet18, resnet50, vit_b_16, llama):
        with torch.device("meta"):
            model, rules = make()
        picture = fxtie.picture(fxtie.transform(model, rules))
        picture.svg(folder / f"{make.__name__}.svg")
        print(f"{make.__name__}: {picture}")


if __name__ == "__main__":
    main(Path(*sys.argv[1:2]))
