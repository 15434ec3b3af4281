"""Forwards such as people write, made of statements, and models that run them.

A program is a list of statements out of `STATEMENTS`, the body of a forward that turns `x` into
`x`. Some are pure; some have state, contexts, or control flow on values. Its model has all the
attributes that the statements use. `CHANGES` are things that people do to a model between calls.
"""

import collections
import itertools
import linecache
import types

import torch
from torch import nn

import fxtie

RULES = [fxtie.Rule("b", "a", weight=torch.square), fxtie.Rule("layers.1", "layers.0")]

STATEMENTS = r"""
x = self.a(x)
x = self.b(x)
x = x + self.b.weight.sum()
x = F.linear(x, self.b.weight, self.a.bias)
x = x @ self.b.weight.T
x = x * self.scale
self.scale = self.scale + 1
self.steps.append(1)
x = x * (1 + len(self.steps))
self.cache["x"] = x.detach()
x = x + self.cache.get("n", 0)
x = x + self.cache["x"] if "x" in self.cache else x
x = x * 2 if self.training else x
x = self.a(x) if self.flag else self.b(x)
for layer in self.layers: x = layer(x)
for i, layer in enumerate(self.layers[:2]): x = layer(x) * (i + 1)
for layer in reversed(list(self.layers)): x = layer(x).tanh()
x = torch.relu_(x.clone())
x += 1
y = x; y += 1
x = x.clone(); x[0] = 0.5
y = [x, x * 2]; y.append(x + 1); x = sum(y)
d = {"a": x}; d["b"] = x * 3; x = d["a"] + d["b"]
x = x + (1 if x.sum() > 0 else 2)
if bool((x > 0).any()): x = x * 2
try: x = x + int(x.sum() > 0)\nexcept TypeError: x = x - 1
with torch.no_grad(): s = x.mean()\nx = x + s
with torch.autocast("cpu", torch.bfloat16): x = self.a(x).float()
if torch.is_grad_enabled(): x = x * 2
if is_grad_enabled(): x = x * 3
x = x * COUNTS["n"]
COUNTS["n"] = COUNTS["n"] + 1
x = x * FACTOR
x = x + random.random()
x = x + numpy.random.rand()
x = x + float(self.generator.random())
x = F.dropout(x, self.drop.p, self.training)
x = self.drop(x)
x = self.norm(x)
x = x / math.sqrt(x.shape[-1])
x = x / sqrt(self.width)
n, w = x.shape; x = x.reshape(w, n).reshape(n, w)
x = x.view(x.size(0), -1)
if x.shape[0] == 3: x = x + 1
x = x + x.shape[0]
x = x + torch.arange(4)
x = x + torch.randn(4)
x = torch.cat([x, x], -1)[:, :4]
x = torch.stack(list(x.unbind(-1)), -1)
q, k = x.chunk(2, dim=-1); x = torch.cat((k, q), -1)
x = (lambda t: t * 2)(x)
def helper(t, by=2): return t * by + self.scale\nx = helper(x)
x = x + self.config.width
self.config.width = self.config.width + 1
x = x * self.table[1]
self.table[1] = self.table[1] + 1
x = x + next(self.counter)
self.seen["calls"] += 1
x = x + self.seen["calls"]
if self.mask is not None: x = x + self.mask
x = self.hidden[0](x)
x = self.doubled(x)
x = self.half(x)
x = self.inner(x)
x = self.inner.inside(x)
x = x + self.inner.count
x = self.blocks["one"](x)
x = x if isinstance(x, torch.Tensor) else x[0]
assert x.dim() == 2, f"{x.shape}"
if x.dim() != 2: raise ValueError("two dimensions")
x = torch.where(x > 0, x, -x)
x = x + float(self.buffer.sum())
self.buffer.add_(1); x = x + self.buffer
self.buffer = self.buffer + 1
x = x + self.buffer
x = x * (2 if f"{self.mode}" == "double" else 3)
x = {"double": x * 2, "plain": x}[self.mode]
x = x + sum(p.numel() for p in self.layers[0].parameters())
n = 0\nwhile n < 2: x = x + n; n += 1
x = x[:, [3, 2, 1, 0]]
x = x.flatten(1).T.T
x = x + (1 if x.dtype is torch.float32 else 2)
x = x + (1 if x.dtype == torch.float32 else 2)
h, c = (x, None); x = h + 1 if c is None else h
y = x; x = x * 2 if y is x else x
x = getattr(self, "a")(x)
if hasattr(self, "extra"): x = x * self.extra
x = x * len(self.layers)
x = checkpoint(self.a, x, use_reentrant=False)
x = x.to(self.a.weight.dtype)
xs = [layer(x) for layer in self.layers]; x = torch.stack(xs).mean(0)
first, *rest = [x, x + 1, x + 2]; x = first + rest[-1]
x, y = x + 1, x; x = x + y
x = x + (y := x * 2)
import math as m; x = x / m.pi
x = x + (1 if x.requires_grad else 2)
x = functools.reduce(torch.add, [x, x, x])
x = torch.add(x, x, alpha=2)
x = x + (self.a.bias if self.a.bias is not None else 0)
x = x.mul_(2) if not x.requires_grad else x * 2
x = x * (optional if optional is not None else 2)
x = self.a.forward(x)
x = x + self.a.weight.shape[0]
x = x + (0 if "cpu" in str(x.device) else 1)
x = Pair(x, x * 2).second
x = self.steps_of(x)[-1]
x = ste(x)
x = x + torch.tensor([1.0, 2.0, 3.0, 4.0])
x = torch.einsum("ij,kj->ik", x, self.b.weight)
x = x + SHIFT
x = x.detach() + x
x = F.scaled_dot_product_attention(x[None], x[None], x[None])[0]
""".strip().splitlines()
STATEMENTS = [line.replace("\\n", "\n") for line in STATEMENTS]

CHANGES = """
model.scale = 3
model.flag = not model.flag
model.layers.append(nn.Linear(4, 4))
model.layers[0] = nn.Linear(4, 4)
del model.layers[2]
model.config.width = 5
model.config = types.SimpleNamespace(width=7)
model.table[1] = 7
model.cache["n"] = 4
model.cache.clear()
model.drop.p = 0.0
model.mode = "double"
model.mask = None
model.layers[0].eval()
model.layers[2].register_forward_hook(lambda module, args, output: output * 2)
model.inner.register_forward_pre_hook(lambda module, args: (args[0] * 2,))
model.inner.count = 5
model.inner = nn.Tanh()
model.extra = 2
model.a.weight.requires_grad_(False)
model.norm.eps = 0.1
model.buffer = torch.ones(4)
model.blocks["one"] = nn.Sequential(nn.Linear(4, 4), nn.ReLU())
model.steps.append(1)
model.hidden[0] = nn.Linear(4, 4)
model.load_state_dict({k: v + 1 for k, v in model.state_dict().items()}, strict=False)
COUNTS["n"] = 5
globals().update(FACTOR=4)
model.half = lambda t: t * 4
model.a = nn.Linear(4, 4)
""".strip().splitlines()


class Inner(nn.Module):
    """A module with state, and with a method that forwards use as well."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(4, 4)
        self.count = 0

    def inside(self, x):
        return self.fc(x) + self.count

    def forward(self, x):
        self.count += 1
        return self.fc(x)


class Straight(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.sign()

    @staticmethod
    def backward(ctx, grad):
        return grad


Pair = collections.namedtuple("Pair", ["first", "second"])

HEADER = """
import collections, functools, math, random, types
from math import sqrt
import numpy, torch
import torch.nn.functional as F
from torch import is_grad_enabled, nn
from torch.utils.checkpoint import checkpoint
from forwards import Inner, Pair, Straight

ste = Straight.apply
COUNTS = {"n": 1}
FACTOR = 2
SHIFT = torch.linspace(0, 1, 4)

class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)
        self.layers = nn.ModuleList(nn.Linear(4, 4) for _ in range(3))
        self.blocks = nn.ModuleDict({"one": nn.Linear(4, 4)})
        self.inner, self.drop, self.norm = Inner(), nn.Dropout(0.25), nn.BatchNorm1d(4)
        self.hidden = [nn.Linear(4, 4)]
        self.register_buffer("buffer", torch.zeros(4))
        self.mask = torch.full((4,), 0.5)
        self.scale, self.flag, self.mode, self.width = 2, True, "plain", 4
        self.steps, self.cache, self.table = [], {}, [1, 2, 3]
        self.config = types.SimpleNamespace(width=4)
        self.seen = collections.Counter()

    def doubled(self, x):
        return self.b(x) * self.scale

    @staticmethod
    def half(x):
        return x / 2

    def steps_of(self, x):
        return [layer(x) for layer in self.layers]
"""


def source(statements):
    """The module that defines the model of a program."""
    lines = [line for statement in statements for line in statement.split("\n")]
    body = "".join(f"        {line}\n" for line in [*lines, "return x"])
    return f"{HEADER}\n    def forward(self, x, optional=None):\n{body}"


class Program:
    """A model class made of statements, in a Python module of its own."""

    _numbers = itertools.count()

    def __init__(self, statements):
        self.source = source(statements)
        self.module = types.ModuleType(f"program_{next(self._numbers)}")
        filename = f"<{self.module.__name__}>"
        lines = self.source.splitlines(keepends=True)
        linecache.cache[filename] = (len(self.source), None, lines, filename)
        exec(compile(self.source, filename, "exec"), vars(self.module))

    def make(self, seed=0):
        """The model, and all that it depends on, as at first."""
        import numpy

        torch.manual_seed(seed)
        vars(self.module).update(FACTOR=2, SHIFT=torch.linspace(0, 1, 4))
        self.module.COUNTS.clear()
        self.module.COUNTS["n"] = 1
        model = self.module.Model()
        model.generator = numpy.random.default_rng(seed)
        model.counter = itertools.count()
        return model

    def change(self, model, change):
        """Do something to a model, and to the module that it is defined in."""
        torch.manual_seed(17)
        vars(self.module)["model"] = model
        exec(change, vars(self.module))
