"""Ready-made transforms: named, composable callables on tensors.

In: source tensors. Out: the derived tensor.

A transform is any differentiable callable `f(*sources) -> tensor`. One that has to know the shape
of its target has a method `for_target` besides (see `FitsTarget`). Those without arguments are
plain functions (`same`, `square`); those with arguments are frozen dataclasses, so that equal ones
compare equal and the same derivation is computed once; learnable ones are `nn.Module`s.

Sources may be `torch.fx` proxies: no transform here looks at a value, and those that look at the
shape of a source need proxies whose `.shape` is known, as fxtie's are.
"""

from fxtie.transforms.chaining import chain
from fxtie.transforms.elementwise import abs, neg, same, scale, square, standardize, stop_gradient
from fxtie.transforms.fitting import crop, pad, resize, tile
from fxtie.transforms.learned import ChannelScale, LowRank, Mix
from fxtie.transforms.moving import flip, mean, repeat_interleave, rot90, slice, sum, transpose
from fxtie.transforms.protocol import FitsTarget, Transform

__all__ = [
    "ChannelScale",
    "FitsTarget",
    "LowRank",
    "Mix",
    "Transform",
    "abs",
    "chain",
    "crop",
    "flip",
    "mean",
    "neg",
    "pad",
    "repeat_interleave",
    "resize",
    "rot90",
    "same",
    "scale",
    "slice",
    "square",
    "standardize",
    "stop_gradient",
    "sum",
    "tile",
    "transpose",
]
