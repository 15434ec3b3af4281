"""The models of the zoo: which there are, how to build them, what they take.

In: a name such as `torchvision/resnet18`. Out: a `Specimen`: the model with random
weights, and inputs for it, as small as it takes them. Called by `zoo.py`.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from vision import import_torchvision

PRELOADED = ["zoo_models"]
"""What is imported once for the processes of all models."""


def names() -> list[str]:
    """Every model of torchvision but the quantized ones; the smallest of every timm module."""
    torchvision = import_torchvision()
    found = [
        f"torchvision/{name}"
        for name in torchvision.models.list_models()
        if not name.startswith("quantized_")
    ]
    import timm

    for module in timm.list_modules():
        models = timm.list_models(module=module)
        if models:
            found.append(f"timm/{min(models, key=_size_guess)}")
    return found


_SIZES = ["zepto", "atto", "femto", "pico", "nano", "pixie", "micro", "tiny", "mini", "small"]


def _size_guess(name: str) -> tuple[int, int, str]:
    """A key by which small variants come first, without building any."""
    words = name.split("_")
    rank = next((i for i, size in enumerate(_SIZES) if any(size in w for w in words)), len(_SIZES))
    numbers = [int(n) for n in re.findall(r"\d+", name)]
    return rank, sum(numbers), name


class NotTried(Exception):
    """There is no small model of this name, or nothing that it would take."""


Inputs = tuple[tuple[Any, ...], dict[str, Any]]


@dataclass
class Specimen:
    """A model, and how to make inputs for it.

    Attributes:
        model: with random weights.
        sizes: heights (and widths) of an image to try; the last one is known to work.
        inputs: makes arguments from a size and the mode.
    """

    model: nn.Module
    sizes: tuple[int, ...]
    inputs: Callable[[int, bool], Inputs]


def images(size: int, train: bool) -> Inputs:
    return (torch.randn(2, 3, size, size),), {}


def videos(size: int, train: bool) -> Inputs:
    return (torch.randn(2, 3, 16, size, size),), {}


def image_pairs(size: int, train: bool) -> Inputs:
    return tuple(torch.rand(1, 3, size, size) * 2 - 1 for _ in range(2)), {"num_flow_updates": 3}


def scenes(size: int, train: bool) -> Inputs:
    """Images of two shapes and, for training, two objects in each."""
    shapes = [(size, size), (size, size + 32)]
    pictures = [torch.rand(3, *shape) for shape in shapes]
    targets = [
        {
            "boxes": torch.tensor([[4.0, 6.0, 50.0, 60.0], [20.0, 10.0, 90.0, 80.0]]),
            "labels": torch.tensor([1, 1]),  # keypoint models know no other class
            "masks": (torch.rand(2, *shape) > 0.5).to(torch.uint8),
            "keypoints": torch.cat([torch.rand(2, 17, 2) * 50 + 10, torch.ones(2, 17, 1)], 2),
        }
        for shape in shapes
    ]
    return ((pictures, targets) if train else (pictures,)), {}


def make(name: str) -> Specimen:
    suite, name = name.split("/")
    return make_torchvision(name) if suite == "torchvision" else make_timm(name)


def make_torchvision(name: str) -> Specimen:
    models = import_torchvision().models
    kind = models.get_model_builder(name).__module__
    options: dict[str, Any] = {}
    sizes, inputs = (64, 96, 128, 160, 224, 299), images
    if ".detection." in kind:
        # Untrained scores stay below the usual threshold: nothing would be detected.
        sizes, inputs, options = (96,), scenes, {"weights_backbone": None, "score_thresh": 0.0}
        if "rcnn" in name:
            options |= {"box_score_thresh": 0.0, "box_detections_per_img": 8}
            options |= {"rpn_post_nms_top_n_train": 32, "rpn_post_nms_top_n_test": 16}
            options |= {"rpn_pre_nms_top_n_train": 64, "rpn_pre_nms_top_n_test": 64}
            del options["score_thresh"]
        else:
            options |= {"detections_per_img": 8, "topk_candidates": 32}
        if "ssd" not in name:  # those have one size
            options |= {"min_size": 96, "max_size": 128}
    elif ".video." in kind:
        sizes, inputs = (64, 112, 224), videos
        if name.startswith("mvit"):  # one size
            sizes = (224,)
    elif ".optical_flow." in kind:
        sizes, inputs = (128,), image_pairs
    elif ".segmentation." in kind:
        options = {"weights_backbone": None} | ({} if "lraspp" in name else {"aux_loss": True})
    elif name.startswith("vit_"):
        size = 4 * int(name.rpartition("_")[2])
        sizes, options = (size,), {"image_size": size}
    elif name in ("googlenet", "inception_v3"):
        options = {"init_weights": True}
    return Specimen(models.get_model(name, weights=None, **options), sizes, inputs)


def make_timm(name: str) -> Specimen:
    import_torchvision()
    import timm

    # Its attention over 1024 x 1024 pixels takes more memory than most machines have.
    options = {"img_size": 256} if name.startswith("samvit") else {}
    model = timm.create_model(name, **options)
    about = model.pretrained_cfg
    native = options.get("img_size", about["input_size"][-1])
    smaller = [s for s in (64, 96, 128, 160, 192, 224, 256) if s < native]
    if about.get("fixed_input_size"):
        smaller = []
    elif least := about.get("min_input_size"):
        smaller = sorted({least[-1], *(s for s in smaller if s > least[-1])})
    return Specimen(model, (*smaller, native), images)


def smallest_size(specimen: Specimen) -> int:
    """The first size that the model takes, tried on a copy."""
    *smaller, last = specimen.sizes
    for size in smaller:
        args, kwargs = specimen.inputs(size, True)
        try:
            with torch.no_grad():
                copy.deepcopy(specimen.model).train()(*args, **kwargs)
        except Exception:  # whatever a model says to a size that it can't take
            continue
        return size
    return last


def calibrate(specimen: Specimen, size: int, ties: list[Any]) -> None:
    """Give batch norms the statistics of one batch, in place: in eval nothing then explodes."""
    from oracle import oracle_run

    model = specimen.model.train()
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 1.0
    with torch.no_grad():
        oracle_run(model, ties, *specimen.inputs(size, True))
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
