"""torchvision beside a torch build that its compiled operators don't fit.

Out: `import_torchvision()`, which gives a torchvision that imports and runs its detection models.
A torchvision built for CUDA cannot load its operators beside a CPU build of torch, and its import
then stops at their missing schemas. Called by tests and benchmarks before anything that imports
torchvision, timm or transformers.
"""

from __future__ import annotations

import functools
import sys
from types import ModuleType

import torch


@functools.cache
def import_torchvision() -> ModuleType:
    """torchvision; with schemas, and a plain `nms`, of ours where its own are missing."""
    try:
        import torchvision
    except RuntimeError:
        library = torch.library.Library("torchvision", "DEF")
        arguments = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
        library.define("nms" + arguments)
        library.define("qnms" + arguments)
        library.impl("nms", _nms, "CompositeExplicitAutograd")
        _libraries.append(library)
        import torchvision

        torchvision.ops.boxes._assert_has_ops = lambda: None
        # Its Python roi_align goes through torch.compile, which wants a C++ compiler and minutes.
        roi_align = sys.modules["torchvision.ops.roi_align"]
        roi_align._roi_align = roi_align._roi_align.__wrapped__
    return torchvision


_libraries: list[torch.library.Library] = []  # a library undoes its definitions when it is freed


def _nms(boxes: torch.Tensor, scores: torch.Tensor, threshold: float) -> torch.Tensor:
    """Greedy non-maximum suppression, box by box."""
    from torchvision.ops import box_iou

    order = scores.argsort(descending=True)
    kept = []
    while order.numel():
        best, rest = order[0], order[1:]
        kept.append(best)
        order = rest[box_iou(boxes[best][None], boxes[rest])[0] <= threshold]
    return torch.stack(kept) if kept else order
