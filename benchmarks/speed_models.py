"""The models of the speed benchmarks: each with the links between its layers.

In: a name. Out: a `Workload`. Called by `speed_figures.py`.

The links are between whole Conv2d and Linear layers (weight through a transform, bias as it is), so
that every way to tie them, by hand or by a library, can be built from the same list.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn
from vision import import_torchvision

import fxtie

Transform = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class Link:
    """Layer `target` gets `transform(source.weight)` and the bias of `source`."""

    target: str
    source: str
    transform: Transform = torch.square


@dataclass(frozen=True)
class Workload:
    """A model, what is tied in it, and what it is run on.

    Attributes:
        shape: of one sample.
        batches: batch sizes to run.
    """

    name: str
    model: nn.Module
    links: tuple[Link, ...]
    shape: tuple[int, ...]
    batches: tuple[int, ...] = (1,)

    @property
    def rules(self) -> list[fxtie.Rule]:
        return [fxtie.Rule(k.target, k.source, weight=k.transform) for k in self.links]

    def inputs(self, batch: int) -> torch.Tensor:
        return torch.randn(batch, *self.shape)


class ConvBlock(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + F.relu(self.conv(x))


class ConvNet(nn.Module):
    """Residual conv blocks of one shape."""

    def __init__(self, blocks: int, channels: int) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, channels, 3, padding=1)
        self.blocks = nn.Sequential(*(ConvBlock(channels) for _ in range(blocks)))
        self.head = nn.Linear(channels, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.blocks(self.stem(x)).mean((2, 3)))


class DecoderBlock(nn.Module):
    """Pre-norm attention and MLP."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm_1, self.norm_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = self.qkv(self.norm_1(x)).unflatten(-1, (3, self.heads, -1)).unbind(-3)
        q, k, v = q.transpose(-3, -2), k.transpose(-3, -2), v.transpose(-3, -2)
        read = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(read.transpose(-3, -2).flatten(-2))
        return x + self.down(F.gelu(self.up(self.norm_2(x))))


def sixteen_blocks() -> Workload:
    """A 16-block conv net whose blocks derive from the first."""
    links = (Link(f"blocks.{i}.conv", "blocks.0.conv") for i in range(1, 16))
    return Workload("16 blocks", ConvNet(16, 16), tuple(links), (3, 16, 16), (1, 16))


def resnet50(pixels: int = 64, batches: tuple[int, ...] = (1, 8)) -> Workload:
    """Within each stage, the convs of equal shape derive from the first of them."""
    model = import_torchvision().models.resnet50(weights=None)
    links = []
    for stage, blocks in enumerate((3, 4, 6, 3), start=1):
        for conv, first in (("conv1", 1), ("conv2", 0), ("conv3", 0)):
            source = f"layer{stage}.{first}.{conv}"
            links += [Link(f"layer{stage}.{i}.{conv}", source) for i in range(first + 1, blocks)]
    return Workload("ResNet-50", model, tuple(links), (3, pixels, pixels), batches)


def vit_b_16(pixels: int = 64, batches: tuple[int, ...] = (1,)) -> Workload:
    """The Linears of every block derive from those of the first."""
    import_torchvision()
    import timm

    model = timm.create_model("vit_base_patch16_224", img_size=pixels)
    layers = ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")
    links = (Link(f"blocks.{i}.{k}", f"blocks.0.{k}") for i in range(1, 12) for k in layers)
    return Workload("ViT-B/16", model, tuple(links), (3, pixels, pixels), batches)


def decoder(
    depth: int = 24,
    width: int = 384,
    heads: int = 6,
    tokens: int = 8,
    batches: tuple[int, ...] = (1,),
) -> Workload:
    """Layers with tied Linears; the 24 on 8 tokens are bound by the reading of weights."""
    model = nn.Sequential(*(DecoderBlock(width, heads) for _ in range(depth)))
    layers = ("qkv", "out", "up", "down")
    links = (Link(f"{i}.{k}", f"0.{k}") for i in range(1, depth) for k in layers)
    return Workload("decoder", model, tuple(links), (tokens, width), batches)


def one_source() -> Workload:
    """One source and 100 targets, each with a transform of its own."""
    model = nn.Sequential(*(nn.Linear(32, 32) for _ in range(101)))
    rolls = (functools.partial(torch.roll, shifts=i, dims=0) for i in range(1, 101))
    links = (Link(str(i), "0", roll) for i, roll in enumerate(rolls, start=1))
    return Workload("100 targets", model, tuple(links), (32,))


def chain(length: int = 50, width: int = 32) -> Workload:
    """Every layer derives from the one before it."""
    model = nn.Sequential(*(nn.Linear(width, width) for _ in range(length + 1)))
    links = (Link(str(i), str(i - 1), torch.sin) for i in range(1, length + 1))
    return Workload(f"chain of {length}", model, tuple(links), (width,))


WORKLOADS: dict[str, Callable[[], Workload]] = {
    "16 blocks": sixteen_blocks,
    "ResNet-50": resnet50,
    "ViT-B/16": vit_b_16,
    "decoder": decoder,
    "100 targets": one_source,
    "chain of 50": chain,
}


@dataclass(frozen=True)
class Options:
    """How much to measure."""

    seconds: float = 15.0
    quick: bool = False

    def workloads(self, *names: str) -> Iterator[tuple[Workload, int, str]]:
        """Each workload with each of its batch sizes, and a label."""
        for name in names or WORKLOADS:
            workload = WORKLOADS[name]()
            for batch in workload.batches[:1] if self.quick else workload.batches:
                yield workload, batch, f"{name}, batch {batch}"
