"""Ready-made transforms: named, composable callables on tensors.

Every transform is written as a call, with the arguments of torch's function of that name:
`T.square()`, `T.rot90(1, (2, 3))`, `T.LowRank(4)`.

A transform is any differentiable callable `f(*sources) -> tensor`. Those without arguments are
plain functions, which called without a source return themselves: `same()` is `same`, and
`torch.square` is a transform like any other. Those with arguments are frozen dataclasses, so that
equal ones compare equal and the same derivation is computed once; learnable ones are `nn.Module`s.
One that has to know its target has a method `for_target` besides (see `FitsTarget`).

`abs`, `slice` and `sum` have the names of Python's own functions, so `import *` leaves them out:
write `T.abs()`, `T.slice(0, 1, 3)`, `T.sum()` with `from fxtie import transforms as T`.

Sources may be `torch.fx` proxies: no transform here looks at a value, and those that look at the
shape of a source need proxies whose `.shape` is known, as fxtie's are.
"""

from fxtie.transforms.chaining import chain
from fxtie.transforms.elementwise import abs as abs
from fxtie.transforms.elementwise import neg, same, scale, square, standardize, stop_gradient
from fxtie.transforms.factors import kronecker
from fxtie.transforms.fitting import crop, pad, resize, tile
from fxtie.transforms.groups import orbit
from fxtie.transforms.learned import ChannelScale, LowRank, weight_norm
from fxtie.transforms.merging import interpolate, learn, task_vector
from fxtie.transforms.mixing import Mix, basis
from fxtie.transforms.moving import flip, mean, repeat_interleave, rot90, transpose
from fxtie.transforms.moving import slice as slice
from fxtie.transforms.moving import sum as sum
from fxtie.transforms.protocol import ComparesLayers, FitsTarget, Transform
from fxtie.transforms.quantizing import fake_quant, ternary

__all__ = [
    "ChannelScale",
    "ComparesLayers",
    "FitsTarget",
    "LowRank",
    "Mix",
    "Transform",
    "basis",
    "chain",
    "crop",
    "fake_quant",
    "flip",
    "interpolate",
    "kronecker",
    "learn",
    "mean",
    "neg",
    "orbit",
    "pad",
    "repeat_interleave",
    "resize",
    "rot90",
    "same",
    "scale",
    "square",
    "standardize",
    "stop_gradient",
    "task_vector",
    "ternary",
    "tile",
    "transpose",
    "weight_norm",
]
