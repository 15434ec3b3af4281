"""Forwards such as people write, made of statements, and models that run them.

A program is a list of statements, the body of a forward that turns `x` into `x`. Some are pure;
some have state, contexts, or control flow on values. Its model has all the attributes that the
statements use. `CHANGES` are things that people do to a model between calls.
"""

import collections
import itertools
import linecache
import types
import typing

import torch
from torch import nn
from twins import seed

import fxtie

RULES = [fxtie.Rule("b", "a", weight=torch.square), fxtie.Rule("layers.1", "layers.0")]

STATEMENTS = r"""
graph | x = self.a(x)
graph | x = self.b(x)
graph | x = x + self.b.weight.sum()
graph | x = F.linear(x, self.b.weight, self.a.bias)
graph | x = x @ self.b.weight.T
graph | x = x * self.scale
kept  | self.scale = self.scale + 1
kept  | self.steps.append(1)
graph | x = x * (1 + len(self.steps))
kept  | self.cache["x"] = x.detach()
graph | x = x + self.cache.get("n", 0)
graph | x = x + self.cache["x"] if "x" in self.cache else x
graph | x = x * 2 if self.training else x
graph | x = self.a(x) if self.flag else self.b(x)
graph | for layer in self.layers: x = layer(x)
graph | for i, layer in enumerate(self.layers[:2]): x = layer(x) * (i + 1)
graph | for layer in reversed(list(self.layers)): x = layer(x).tanh()
graph | x = torch.relu_(x.clone())
graph | x += 1
graph | y = x; y += 1
graph | x = x.clone(); x[0] = 0.5
graph | y = [x, x * 2]; y.append(x + 1); x = sum(y)
graph | d = {"a": x}; d["b"] = x * 3; x = d["a"] + d["b"]
kept  | x = x + (1 if x.sum() > 0 else 2)
kept  | if bool((x > 0).any()): x = x * 2
kept  | try: x = x + int(x.sum() > 0)\nexcept TypeError: x = x - 1
kept  | with torch.no_grad(): s = x.mean()\nx = x + s
kept  | with torch.autocast("cpu", torch.bfloat16): x = self.a(x).float()
graph | if torch.is_grad_enabled(): x = x * 2
graph | if is_grad_enabled(): x = x * 3
graph | x = x * COUNTS["n"]
kept  | COUNTS["n"] = COUNTS["n"] + 1
graph | x = x * FACTOR
kept  | x = x + random.random()
kept  | x = x + numpy.random.rand()
kept  | x = x + float(self.generator.random())
graph | x = F.dropout(x, self.drop.p, self.training)
graph | x = self.drop(x)
graph | x = self.norm(x)
graph | x = x / math.sqrt(x.shape[-1])
graph | x = x / sqrt(self.width)
graph | n, w = x.shape; x = x.reshape(w, n).reshape(n, w)
graph | x = x.view(x.size(0), -1)
kept  | if x.shape[0] == 3: x = x + 1
graph | x = x + x.shape[0]
graph | x = x + torch.arange(4)
graph | x = x + torch.randn(4)
graph | x = torch.cat([x, x], -1)[:, :4]
kept  | x = torch.stack(list(x.unbind(-1)), -1)
graph | q, k = x.chunk(2, dim=-1); x = torch.cat((k, q), -1)
graph | x = (lambda t: t * 2)(x)
graph | def helper(t, by=2): return t * by + self.scale\nx = helper(x)
graph | x = x + self.config.width
kept  | self.config.width = self.config.width + 1
graph | x = x * self.table[1]
kept  | self.table[1] = self.table[1] + 1
kept  | y = self.members; y |= {len(y)}; x = x * len(y)
graph | y = {1, 2}; y |= {3}; x = x * len(y)
kept  | x = x + next(self.counter)
kept  | self.seen["calls"] += 1
kept  | x = x + self.seen["calls"]
graph | if self.mask is not None: x = x + self.mask
kept  | x = self.hidden[0](x)
graph | x = self.doubled(x)
graph | x = self.half(x)
graph | x = self.inner(x)
graph | x = self.inner.inside(x)
graph | x = x + self.inner.count
graph | x = self.blocks["one"](x)
graph | x = x if isinstance(x, torch.Tensor) else x[0]
graph | assert x.dim() == 2, f"{x.shape}"
graph | if x.dim() != 2: raise ValueError("two dimensions")
graph | x = torch.where(x > 0, x, -x)
graph | x = x + float(self.buffer.sum())
graph | x = x + max(int(x.shape[1] * 0.6), x.shape[0] - 1)
graph | x = x / len(x) + len(x.shape)
graph | y = 0; y += x; x = y * 2; y = 1; y *= x; x = y
graph | x = x + torch.randn_like(x)
graph | x = x(1) if callable(x) else x * 2
graph | x = x + torch.as_tensor(self.table)[0]
kept  | x = x * max([x.shape[0]], self.table)[0]
graph | x = x.reshape(*x.shape[:-1], -1, 2).flatten(1)
graph | y = (*x.shape, 1); x = x.view(y).view(*x.shape)
graph | n, *rest = x.shape; x = x.view(n, *rest).expand(*[n, *rest])
graph | x = x + torch.ones(*x.shape) + torch.zeros(*x.shape, dtype=torch.float32)
graph | *first, last = x; x = x + last + first[0]
kept  | x = (lambda *sizes: x * len(sizes))(*x.shape)
graph | x = x * self.settings.__dict__.get("number", 2) * self.settings.__dict__.get("absent", 3)
graph | x = x * self.settings.__dict__["number"] * (2 if "absent" in self.settings.__dict__ else 3)
kept  | x = x * len(self.settings.__dict__)
graph | y = torch.jit.annotate(typing.List[torch.Tensor], []); y.append(x); x = y[0]
graph | x = x if isinstance(x, torch.Tensor) else typing.cast(list[torch.Tensor], x)[0]
graph | y = self.part(x); x = y[0] if isinstance(y, tuple) else y
graph | y = self.part(x); x = x if y is None else y[:, :4] if self.flag else x
graph | x = x * self.settings.doubled
graph | x = x * self.settings.alias + self.settings.other
graph | x = x * getattr(self.settings, "absent", 2)
graph | x = self.inner.fc2(x)
graph | self.buffer.add_(1); x = x + self.buffer
kept  | self.buffer = self.buffer + 1
graph | x = x + self.buffer
graph | x = x * (2 if f"{self.mode}" == "double" else 3)
graph | x = {"double": x * 2, "plain": x}[self.mode]
graph | x = x + sum(p.numel() for p in self.layers[0].parameters())
graph | n = 0\nwhile n < 2: x = x + n; n += 1
graph | x = x[:, [3, 2, 1, 0]]
graph | x = x.flatten(1).T.T
kept  | x = x + (1 if x.dtype is torch.float32 else 2)
kept  | x = x + (1 if x.dtype == torch.float32 else 2)
graph | h, c = (x, None); x = h + 1 if c is None else h
kept  | y = x; x = x * 2 if y is x else x
graph | x = getattr(self, "a")(x)
graph | if hasattr(self, "extra"): x = x * self.extra
graph | x = x * len(self.layers)
kept  | x = checkpoint(self.a, x, use_reentrant=False)
graph | x = x.to(self.a.weight.dtype)
graph | xs = [layer(x) for layer in self.layers]; x = torch.stack(xs).mean(0)
graph | first, *rest = [x, x + 1, x + 2]; x = first + rest[-1]
graph | x, y = x + 1, x; x = x + y
graph | x = x + (y := x * 2)
graph | import math as m; x = x / m.pi
kept  | x = x + (1 if x.requires_grad else 2)
graph | x = functools.reduce(torch.add, [x, x, x])
graph | x = torch.add(x, x, alpha=2)
graph | x = x + (self.a.bias if self.a.bias is not None else 0)
kept  | x = x.mul_(2) if not x.requires_grad else x * 2
graph | x = x * (optional if optional is not None else 2)
graph | x = self.a.forward(x)
graph | x = x + self.a.weight.shape[0]
kept  | x = x + (0 if "cpu" in str(x.device) else 1)
graph | x = Pair(x, x * 2).second
graph | x = self.steps_of(x)[-1]
kept  | x = ste(x)
graph | x = x + torch.tensor([1.0, 2.0, 3.0, 4.0])
graph | x = torch.einsum("ij,kj->ik", x, self.b.weight)
graph | x = x + SHIFT
graph | x = x.detach() + x
graph | x = F.scaled_dot_product_attention(x[None], x[None], x[None])[0]
graph | y = {}; y.update(self.options); x = x * len(y)
graph | y = {**self.options, "m": 3}; x = x * sum(y.values())
graph | x = x * dict(self.options, m=3).get("n", 1)
graph | y = [0]; y.extend(self.table); x = x * y[-1]
graph | y = [0]; y += self.table; x = x * y[-1]
graph | y = self.table.copy(); y.append(5); x = x * y[0]
graph | x = x * [*self.table, 2][1] * tuple(self.table)[-1]
graph | x = x * (2 if 9 in self.table else 3)
graph | y, *z = self.table; x = x * y * len(z)
graph | x = x * self.table[::-1][0] * max(self.table)
graph | x = x * sorted(self.table)[-1] * len(set(self.table))
graph | x = x * sum(n for n in self.table if n > 1)
graph | x = x + torch.tensor(self.table).sum()
graph | x = x + x.sum(self.axes, keepdim=True)
graph | for name, n in self.options.items(): x = x * n + len(name)
graph | for layer in nn.ModuleList(self.order): x = layer(x)
graph | x = nn.Sequential(*self.order)(x)
graph | x = nn.Sequential(self.named)(x)
graph | y = list(self.layers); y.insert(0, self.a); x = y[1](x)
graph | x = x * len("-".join(self.names)) * int("{}".format(self.width))
graph | x = x * (self.flag and 2 or 3) * (1 < self.scale <= 2)
graph | x = x * (2 if isinstance(self.mask, torch.Tensor) else 3)
graph | x = self.b(x) if isinstance(self.inner, nn.Tanh) else self.a(x)
graph | fs = [lambda t: t * i for i in range(3)]; x = fs[0](x)
graph | x = x * len(self.members)
kept  | x = x * sum(self.members)
kept  | x = x * {0: 2, 1: 3}.get(self.key, 4)
kept  | x = x * [2, 3, 4][self.key]
graph | x = x * next(n for n in self.table)
graph | x = x.to(next(self.parameters()).dtype)
graph | for layer in reversed(self.layers): x = layer(x)
graph | it = iter(self.layers); x = next(it)(x); x = next(it)(x)
graph | for layer in filter(lambda m: isinstance(m, nn.Linear), self.layers): x = layer(x)
graph | f = functools.partial(F.leaky_relu, negative_slope=0.2); x = f(x)
graph | f = functools.partial(self.layers[0]); x = f(x)
graph | x = x + sum(p.sum() for n, p in self.layers.named_parameters() if n.endswith("bias"))
graph | for name, child in self.layers.named_children(): x = child(x) if name else x
graph | for n in itertools.islice(self.table, 1, None): x = x * n
graph | x = nn.Sequential(self.a, self.b)[0](x)
graph | x = x * len([m for m in self.layers.modules() if isinstance(m, nn.Linear)])
kept  | self.stream = iter(self.table); x = x * next(self.stream)
kept  | self.frame.t_(); x = x * self.frame.shape[0]
graph | w = self.limit(self.b.weight.detach()); x = F.linear(x, w) + self.b(x)
graph | x = self.noting(x) + self.b(x)
kept  | x = self.noting(x) + getattr(self.noting, "loss", 0)
graph | x = x * 2 if self.checked else x
graph | x = self.engine(x)
kept  | y = Pair(x, self.table); y.second.append(1); x = x * len(y.second)
kept  | x = x if getattr(self, "meta", None) is None else -x
""".strip().splitlines()
OUTCOMES = {
    statement.replace("\\n", "\n"): outcome.strip()
    for outcome, _, statement in (line.partition(" | ") for line in STATEMENTS)
}
"""For each statement, whether a forward with it is a graph or kept."""
STATEMENTS = list(OUTCOMES)

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
model.options["n"] = 5
model.options.pop("n")
model.table.append(9)
model.table.reverse()
model.axes[0] = 1
model.order.reverse()
model.named.move_to_end("tanh")
model.names.append("c")
model.members.add(5)
model.key.number = 0
model.settings.number = 3
model.part.pair = True
model.settings.names["alias"] = "other"
model.settings.absent = 5
model.limit.inplace = True
model.checked = 1
model.engine.model = nn.Tanh()
""".strip().splitlines()


class Inner(nn.Module):
    """A module with state, and with a method that forwards use as well."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(4, 4)
        self.count = 0

    def __getattr__(self, name):
        return super().__getattr__("fc" if name == "fc2" else name)

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


class Part(nn.Module):
    """A module that gives one tensor, or two."""

    pair = False

    def forward(self, x):
        return (x.tanh(), x) if self.pair else x.tanh()


class Settings:
    """As configurations that have several names for one number, and compute others."""

    names: typing.ClassVar = {}

    def __init__(self):
        self.number, self.other, self.names = 2, 4, {"alias": "number"}

    @property
    def doubled(self):
        return self.number * 2

    def __getattribute__(self, name):
        if name != "names" and name in super().__getattribute__("names"):
            name = super().__getattribute__("names")[name]
        return super().__getattribute__(name)


class Key:
    """An object that is equal to a number."""

    def __init__(self, number):
        self.number = number

    def __hash__(self):
        return hash(self.number)

    def __eq__(self, other):
        return self.number == other

    def __index__(self):
        return self.number


class Noting(nn.Module):
    """Leaves something behind where it had nothing."""

    def forward(self, x):
        self.loss = x.detach().mean()
        return x


class NotNegative:
    """A descriptor that is not asked when what it has set is read."""

    def __set_name__(self, owner, name):
        self.name = name

    def __set__(self, instance, value):
        if value < 0:
            raise ValueError(self.name)
        instance.__dict__[self.name] = value


class Engine:
    """A helper that refers to its model."""

    def __init__(self, model):
        self.model = model

    def __call__(self, x):
        return self.model.b(x) if hasattr(self.model, "b") else self.model(x)


Pair = collections.namedtuple("Pair", ["first", "second"])


class Parts(nn.Module):
    """What the statements use."""

    checked = NotNegative()

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
        self.config, self.members = types.SimpleNamespace(width=4), {0}
        self.seen, self.options, self.axes = collections.Counter(), {"n": 2}, [0]
        self.names, self.key = ["a", "b"], Key(1)
        self.settings, self.engine, self.checked = Settings(), Engine(self), 0
        self.limit, self.noting = nn.Hardtanh(-0.01, 0.01), Noting()
        self.frame, self.part = torch.ones(2, 4), Part()
        tanh, soft = nn.Tanh(), nn.Softplus()
        self.order, self.named = [tanh, soft], collections.OrderedDict(tanh=tanh, soft=soft)
        self.activations = nn.ModuleList(self.order)

    def doubled(self, x):
        return self.b(x) * self.scale

    @staticmethod
    def half(x):
        return x / 2

    def steps_of(self, x):
        return [layer(x) for layer in self.layers]


HEADER = """
import collections, functools, itertools, math, random, types, typing
from math import sqrt
import numpy, torch
import torch.nn.functional as F
from torch import is_grad_enabled, nn
from torch.utils.checkpoint import checkpoint
from forwards import Key, Pair, Parts, Straight

ste = Straight.apply
COUNTS = {"n": 1}
FACTOR = 2
SHIFT = torch.linspace(0, 1, 4)

class Model(Parts):
"""


def source(statements):
    """The module that defines the model of a program."""
    lines = [line for statement in statements for line in statement.split("\n")]
    body = "".join(f"        {line}\n" for line in [*lines, "return x"])
    return f"{HEADER}    def forward(self, x, optional=None):\n{body}"


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

    def make(self):
        """The model, and all that it depends on, as at first."""
        import numpy

        seed(0)
        vars(self.module).update(FACTOR=2, SHIFT=torch.linspace(0, 1, 4))
        self.module.COUNTS.clear()
        self.module.COUNTS["n"] = 1
        model = self.module.Model()
        model.generator = numpy.random.default_rng(0)
        model.counter = itertools.count()
        return model

    def change(self, model, change):
        """Do something to a model, and to the module that it is defined in."""
        seed(17)
        vars(self.module)["model"] = model
        exec(change, vars(self.module))
