"""Every row of the gate's tables: a forward that needs it is a graph, and without it is kept."""

import ast
import collections

import einops  # noqa: F401  # programs may import only what is imported
import pytest
import torch
import torch.nn.functional as F
from gate_rows import root_is_kept, title

from fxtie.tracing import gate
from fxtie.tracing.rewriting import Rewriter

STATEMENTS = {
    ast.AnnAssign: "y: int = 2; x = x * y",
    ast.Assert: "assert x.dim() == 2",
    ast.Assign: "y = x; x = y * 2",
    ast.AugAssign: "x += 1",
    ast.Break: "for i in range(3):\n    if i == 1: break\n    x = x + i",
    ast.Continue: "for i in range(3):\n    if i == 1: continue\n    x = x + i",
    ast.Delete: "y = x; del y",
    ast.Expr: "x.size()",
    ast.For: "for i in range(2): x = x + i",
    ast.FunctionDef: "def add(t): return t + 1\nx = add(x)",
    ast.If: "if self.flag: x = x + 1",
    ast.Import: "import math as m; x = x * m.pi",
    ast.ImportFrom: "from math import pi; x = x * pi",
    ast.Pass: "pass",
    ast.Return: "if not self.flag: return x",
    ast.While: "n = 0\nwhile n < 2: n += 1",
}

EXPRESSIONS = {
    ast.Attribute: "x = x * self.scale",
    ast.BinOp: "x = x * 2",
    ast.BoolOp: "x = self.a(x) if self.flag and self.training else x",
    ast.Call: "x = self.a(x)",
    ast.Compare: "x = torch.where(x > 0, x, -x)",
    ast.Constant: "y = 1",
    ast.Dict: "y = {'a': x}; x = y['a']",
    ast.DictComp: "y = {n: x * n for n in (1, 2)}; x = y[2]",
    ast.GeneratorExp: "x = sum(x * n for n in (1, 2))",
    ast.IfExp: "x = x if self.flag else x * 2",
    ast.JoinedStr: "x = x * (2 if f'{self.mode!r:>3}' == 'plain' else 3)",
    ast.Lambda: "x = (lambda t: t * 2)(x)",
    ast.List: "x = torch.cat([x, x])[:3]",
    ast.ListComp: "x = sum([x * n for n in (1, 2)])",
    ast.Name: "y = x",
    ast.NamedExpr: "x = (y := x * 2) + y",
    ast.Set: "x = x * (2 if self.mode in {'plain'} else 3)",
    ast.SetComp: "x = x * len({n % 2 for n in (1, 2, 3)})",
    ast.Slice: "x = x[:, :4]",
    ast.Subscript: "x = x[:, [1, 0, 3, 2]]",
    ast.Tuple: "x = torch.cat((x, x))[:3]",
    ast.UnaryOp: "x = -x",
}


METHODS = {
    (tuple, "index"): "x = x * (1, 2).index(2)",
    (tuple, "count"): "x = x * (1, 2).count(2)",
    (torch.Size, "index"): "x = x * self.a.weight.shape.index(4)",
    (torch.Size, "count"): "x = x * self.a.weight.shape.count(4)",
    (torch.Size, "numel"): "x = x * self.a.weight.shape.numel()",
    (list, "index"): "x = x * self.table.index(2)",
    (list, "count"): "x = x * self.table.count(2)",
    (list, "append"): "y = [x]; y.append(x); x = sum(y)",
    (list, "extend"): "y = [x]; y.extend((x, x)); x = sum(y)",
    (list, "insert"): "y = [x]; y.insert(0, x * 2); x = y[0]",
    (list, "pop"): "y = [x, x * 2]; x = y.pop()",
    (list, "reverse"): "y = [x, x * 2]; y.reverse(); x = y[0]",
    (list, "clear"): "y = [x, x * 2]; y.clear(); x = x * len(y)",
    (list, "copy"): "y = self.table.copy(); y[0] = 5; x = x * y[0]",
    (dict, "get"): "x = x * self.cache.get('n', 3)",
    (dict, "items"): "for k, v in {'a': x}.items(): x = v",
    (dict, "keys"): "for k in {'a': x}.keys(): x = x * len(k)",
    (dict, "values"): "x = sum({'a': x}.values())",
    (dict, "update"): "y = {}; y.update(a=x * 2); x = y['a']",
    (dict, "pop"): "y = {'a': x * 2}; x = y.pop('a')",
    (dict, "setdefault"): "y = {}; x = y.setdefault('a', x * 2)",
    (dict, "copy"): "y = self.cache.copy(); y['a'] = 5; x = x * y['a']",
    (collections.OrderedDict, "get"): "x = collections.OrderedDict(a=x).get('a')",
    (collections.OrderedDict, "items"): "for k, v in collections.OrderedDict(a=x).items(): x = v",
    (
        collections.OrderedDict,
        "keys",
    ): "x = x * len([*collections.OrderedDict(a=x).keys()])",
    (collections.OrderedDict, "values"): "x = sum(collections.OrderedDict(a=x).values())",
    (collections.OrderedDict, "update"): "y = collections.OrderedDict(); y.update(a=x); x = y['a']",
    (set, "add"): "y = set(); y.add(2); x = x * len(y)",
    (str, "endswith"): "x = x * 2 if self.mode.endswith('n') else x",
    (str, "format"): "x = x * 2 if '{}'.format(self.mode) == 'plain' else x",
    (str, "join"): "x = x * len('-'.join(['a', self.mode]))",
    (str, "lower"): "x = x * 2 if self.mode.lower() == 'plain' else x",
    (str, "replace"): "x = x * 2 if self.mode.replace('p', 'q') == 'plain' else x",
    (str, "split"): "x = x * len(self.mode.split('a'))",
    (str, "startswith"): "x = x * 2 if self.mode.startswith('p') else x",
    (str, "strip"): "x = x * 2 if self.mode.strip() == 'plain' else x",
    (str, "upper"): "x = x * 2 if self.mode.upper() == 'PLAIN' else x",
    (float, "is_integer"): "x = x * 2 if (2.5).is_integer() else x",
}

FACTORIES = {
    torch.as_tensor: "x = x + torch.as_tensor([1.0, 2.0, 3.0, 4.0])",
    torch.bartlett_window: "x = x * torch.bartlett_window(4)",
    torch.blackman_window: "x = x * torch.blackman_window(4)",
    torch.fft.fftfreq: "x = x * torch.fft.fftfreq(4)",
    torch.fft.rfftfreq: "x = x * torch.fft.rfftfreq(6)",
    torch.hamming_window: "x = x * torch.hamming_window(4)",
    torch.hann_window: "x = x * torch.hann_window(4)",
    torch.normal: "x = x + torch.normal(0.0, 1.0, (4,))",
    torch.promote_types: "x = x.to(torch.promote_types(x.dtype, torch.float32))",
    torch.rand_like: "x = x + torch.rand_like(x)",
    torch.randint_like: "x = x + torch.randint_like(x, 5)",
    torch.randn_like: "x = x + torch.randn_like(x)",
    torch.arange: "x = x + torch.arange(4)",
    torch.empty: "x = x + torch.empty(4).fill_(1)",
    torch.eye: "x = x @ torch.eye(4)",
    torch.full: "x = x + torch.full((4,), 2.0)",
    torch.linspace: "x = x + torch.linspace(0, 1, 4)",
    torch.logspace: "x = x + torch.logspace(0, 1, 4)",
    torch.ones: "x = x + torch.ones(4)",
    torch.rand: "x = x + torch.rand(4)",
    torch.randint: "x = x + torch.randint(0, 5, (4,))",
    torch.randn: "x = x + torch.randn(4)",
    torch.randperm: "x = x[:, torch.randperm(4)]",
    torch.scalar_tensor: "x = x + torch.scalar_tensor(2.0)",
    torch.tensor: "x = x + torch.tensor([1.0, 2.0, 3.0, 4.0])",
    torch.tril_indices: "x = x + torch.tril_indices(4, 4).sum()",
    torch.triu_indices: "x = x + torch.triu_indices(4, 4).sum()",
    torch.zeros: "x = x + torch.zeros(4)",
    torch.finfo: "x = x + torch.finfo(x.dtype).eps",
    torch.iinfo: "x = x + torch.iinfo(torch.int8).max",
}


UNLISTED = {
    F.elu_: "x = F.elu_(x * 1)",
    F.hardsigmoid: "x = F.hardsigmoid(x)",
    F.hardswish: "x = F.hardswish(x)",
    F.hardtanh_: "x = F.hardtanh_(x * 1)",
    F.leaky_relu_: "x = F.leaky_relu_(x * 1)",
}


@pytest.mark.parametrize("row", sorted(gate.UNLISTED, key=title), ids=title)
def test_unlisted_functions(monkeypatch, row):
    assert not root_is_kept(UNLISTED[row])
    monkeypatch.setattr(gate, "UNLISTED", gate.UNLISTED - {row})
    monkeypatch.setattr(gate, "_recorded", gate._recorded.__wrapped__)  # not cached
    assert root_is_kept(UNLISTED[row])


def constructs(base):
    """The statements, or expressions, that the rewriter knows."""
    names = [name[6:] for name in vars(Rewriter) if name.startswith("visit_")]
    kinds = (getattr(ast, name) for name in names)
    parts = (ast.Starred, ast.FormattedValue)  # of other expressions
    return [kind for kind in kinds if issubclass(kind, base) and kind not in parts]


@pytest.mark.parametrize("row", constructs(ast.stmt), ids=title)
def test_statements(monkeypatch, row):
    assert not root_is_kept(STATEMENTS[row])
    monkeypatch.delattr(Rewriter, f"visit_{row.__name__}")
    assert "has a statement" in root_is_kept(STATEMENTS[row])[0]


@pytest.mark.parametrize("row", constructs(ast.expr), ids=title)
def test_expressions(monkeypatch, row):
    assert not root_is_kept(EXPRESSIONS[row])
    monkeypatch.delattr(Rewriter, f"visit_{row.__name__}")
    assert "has an expression" in root_is_kept(EXPRESSIONS[row])[0]


ROWS = [(kind, name) for kind, names in gate.METHODS.items() for name in sorted(names)]


@pytest.mark.parametrize("row", ROWS, ids=title)
def test_methods(monkeypatch, row):
    kind, name = row
    assert not root_is_kept(METHODS[row])
    monkeypatch.setitem(gate.METHODS, kind, gate.METHODS[kind] - {name})
    assert root_is_kept(METHODS[row])


@pytest.mark.parametrize("row", sorted(gate.FACTORIES, key=title), ids=title)
def test_factories(monkeypatch, row):
    assert not root_is_kept(FACTORIES[row])
    if row in torch.overrides.get_testing_overrides():
        pytest.skip("this version of torch lists it itself")
    monkeypatch.setattr(gate, "FACTORIES", gate.FACTORIES - {row})
    monkeypatch.setattr(gate, "_recorded", gate._recorded.__wrapped__)  # not cached
    assert root_is_kept(FACTORIES[row])
