"""The builtins that the gate knows: a forward that needs one is a graph, and without it is kept."""

import collections
import functools
import itertools
import operator

import einops  # noqa: F401  # programs may import only what is imported
import pytest
import torch
from gate_rows import root_is_kept, title
from torch import nn

from fxtie.tracing import attributes, callables, operators

IN_PLACE = {"iadd", "isub", "imul", "itruediv", "imatmul", "ipow", "imod", "ifloordiv"}


INTEGERS = {"and_", "or_", "xor", "lshift", "rshift", "iand", "ior", "ixor", "ilshift", "irshift"}


def statement_for(function):
    """A statement that calls a builtin."""
    if function in CALLABLES:
        return CALLABLES[function]
    name = function.__name__
    if name in ("matmul", "imatmul"):
        return f"x = operator.{name}(x.clone(), self.a.weight)"
    if name in INTEGERS:
        return f"x = x * operator.{name}(3, 1)"
    if function in operators.COMPARISONS.values():
        return f"x = x * (2 if operator.{name}(self.scale, 2) else 3)"
    return f"x = operator.{name}(x.clone(), 2)"


CALLABLES = {
    isinstance: "x = x if isinstance(x, (int, torch.Tensor)) else x[0]",
    super: "x = x * 2 if callable(super(Model, self).forward) else x",
    getattr: "x = getattr(self, 'a')(x)",
    hasattr: "x = x * 2 if hasattr(self, 'extra') else x",
    len: "x = x * len(self.layers)",
    bool: "x = x * 2 if bool(self.scale) else x",
    callable: "x = x * 2 if callable(self.a) else x",
    type: "x = x * 2 if type(self.a) is nn.Linear else x",
    sum: "x = sum([x, x])",
    any: "x = x * 2 if any(n > 2 for n in self.table) else x",
    all: "x = x * 2 if all(n > 2 for n in self.table) else x",
    iter: "for layer in iter(self.layers): x = layer(x)",
    zip: "for layer, n in zip(self.layers, (1, 2)): x = layer(x) * n",
    enumerate: "for n, layer in enumerate(self.layers): x = layer(x) * n",
    reversed: "for n in reversed(self.table): x = x * n",
    map: "x = sum(map(self.a, (x, x)))",
    functools.reduce: "x = functools.reduce(torch.add, [x, x])",
    itertools.chain: "for n in itertools.chain((1, 2), (3,)): x = x * n",
    itertools.product: "for n, m in itertools.product((1, 2), (3,)): x = x * n * m",
    itertools.repeat: "for n in itertools.repeat(2, 3): x = x * n",
    itertools.islice: "for n in itertools.islice(self.table, 1, None): x = x * n",
    itertools.zip_longest: "for n, m in itertools.zip_longest((1, 2), (3,)): x = x * (m or n)",
    next: "x = x * next(iter(self.table))",
    filter: "for n in filter(None, self.table): x = x * n",
    functools.partial: "x = functools.partial(self.a)(x)",
    nn.Module.children: "for layer in self.layers.children(): x = layer(x)",
    nn.Module.named_children: "for name, layer in self.layers.named_children(): x = layer(x)",
    nn.Module.modules: "x = x * len(list(self.layers.modules()))",
    nn.Module.named_modules: "x = x * len(list(self.layers.named_modules()))",
    nn.Module.parameters: "x = x + sum(p.sum() for p in self.layers.parameters())",
    nn.Module.named_parameters: "x = x + sum(p.sum() for n, p in self.a.named_parameters())",
    nn.Module.buffers: "x = x + len(list(self.layers.buffers()))",
    nn.Module.named_buffers: "x = x + len(list(self.layers.named_buffers()))",
    list: "x = sum(list((x, x)))",
    tuple: "x = sum(tuple([x, x]))",
    set: "x = x * len(set(self.table))",
    frozenset: "x = x * len(frozenset(self.table))",
    torch.Size: "x = x.reshape(torch.Size([4, 3])).reshape(3, 4)",
    dict: "x = sum(dict(a=x, b=x).values())",
    collections.OrderedDict: "x = sum(collections.OrderedDict(a=x, b=x).values())",
    slice: "x = x[:, slice(0, 4)]",
    range: "for n in range(3): x = x + n",
    abs: "x = x + abs(x)",
    pow: "x = pow(x, 2)",
    int: "x = x * int(self.scale)",
    float: "x = x * float(self.scale)",
    str: "x = x * 2 if str(self.scale) == '2' else x",
    min: "x = x * min(self.table)",
    max: "x = x * max(3, self.scale)",
    round: "x = x * round(2.6)",
    divmod: "x = x * divmod(7, 2)[0]",
    sorted: "x = x * sorted(self.table)[0]",
    repr: "x = x * 2 if repr(self.scale) == '2' else x",
    issubclass: "x = x * 2 if issubclass(nn.Linear, nn.Module) else x",
    object.__getattribute__: "x = x * self.settings.doubled",
    nn.Module.__getattr__: "x = self.inner.fc2(x)",
    attributes.Members.get: "x = x * self.settings.__dict__.get('number', 2)",
    torch.device: "x = x + torch.ones(4, device=torch.device('cpu'))",
    operator.index: "x = x * operator.index(self.scale)",
}


@pytest.mark.parametrize("row", callables.CALLABLES, ids=title)
def test_builtins(monkeypatch, row):
    statement = f"import operator, itertools\n{statement_for(row)}"
    assert not root_is_kept(statement)
    monkeypatch.delitem(callables.CALLABLES, row)
    assert root_is_kept(statement)


NUMBERS = {
    int: "x = x[:, : int(x.shape[1] * 0.75)].sum(1, keepdim=True) + x",
    float: "x = x * float(self.a.weight.sum())",
    min: "x = x / min(x.shape)",
    max: "x = x + max(1, x.shape[0])",
    round: "x = x * round(x.shape[1] * 0.6)",
    divmod: "n, m = divmod(x.shape[0], 2); x = x * n + m",
}


@pytest.mark.parametrize("row", NUMBERS, ids=title)
def test_numbers_of_traced_values(monkeypatch, row):
    assert not root_is_kept(NUMBERS[row])
    monkeypatch.setattr(callables, "ON_NUMBERS", callables.ON_NUMBERS - {row})
    assert root_is_kept(NUMBERS[row])


def test_all_numbers_are_tested():
    assert NUMBERS.keys() == callables.ON_NUMBERS
