"""Every row of the gate's tables: a forward that needs it is a graph, and without it is kept."""

import ast
import collections
import functools
import itertools
import math
import operator

import einops  # noqa: F401  # programs may import only what is imported
import pytest
import torch
from forwards import RULES, Program
from torch import nn

import fxtie
from fxtie.tracing import callables, calls, gate, operators
from fxtie.tracing.rewriting import Rewriter


def root_is_kept(*statements):
    """The reasons why the root of a program is no graph; none if it is."""
    tied = fxtie.transform(Program([*statements, "x = self.b(x)"]).make(), RULES)
    return [kept.reason for kept in fxtie.report(tied).kept if not kept.name]


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
    nn.Module.children: "for layer in self.layers.children(): x = layer(x)",
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
    torch.device: "x = x + torch.ones(4, device=torch.device('cpu'))",
    operator.index: "x = x * operator.index(self.scale)",
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

QUESTIONS = {
    torch.is_grad_enabled: "x = x * 2 if torch.is_grad_enabled() else x",
    torch.is_inference_mode_enabled: "x = x * 2 if torch.is_inference_mode_enabled() else x",
    torch.get_default_dtype: "x = x + torch.ones(4, dtype=torch.get_default_dtype())",
    torch.is_autocast_enabled: "x = x * 2 if torch.is_autocast_enabled('cpu') else x",
    torch.get_autocast_dtype: "x = x * 2 if torch.get_autocast_dtype('cpu') == 5 else x",
    torch._C._is_tracing: "x = x * 2 if torch.jit.is_tracing() else x",
    torch._C._get_cudnn_enabled: "x = x * 2 if torch._C._get_cudnn_enabled() else x",
}


def title(row):
    owner, name = row if isinstance(row, tuple) else (None, getattr(row, "__name__", str(row)))
    return f"{owner.__name__}.{name}" if owner else name


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


@pytest.mark.parametrize("row", callables.CALLABLES, ids=title)
def test_builtins(monkeypatch, row):
    statement = f"import operator, itertools\n{statement_for(row)}"
    assert not root_is_kept(statement)
    monkeypatch.delitem(callables.CALLABLES, row)
    assert root_is_kept(statement)


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
    monkeypatch.setattr(gate, "FACTORIES", gate.FACTORIES - {row})
    assert root_is_kept(FACTORIES[row])


@pytest.mark.parametrize("row", sorted(gate.QUESTIONS, key=title), ids=title)
def test_questions(monkeypatch, row):
    assert not root_is_kept(QUESTIONS[row])
    monkeypatch.setattr(calls, "QUESTIONS", gate.QUESTIONS - {row})
    assert root_is_kept(QUESTIONS[row])


def takes_a_number(function):
    try:
        function(0 if function is math.atanh else 1)
    except TypeError:  # several arguments, or a list: one rule with the others
        return False
    return True


@pytest.mark.parametrize("row", sorted(filter(takes_a_number, gate.MATH), key=title), ids=title)
def test_math(monkeypatch, row):
    number = 0 if row is math.atanh else 1
    statement = f"x = x * len(str(math.{row.__name__}({number})))"
    assert not root_is_kept(statement)
    monkeypatch.setattr(calls, "MATH", gate.MATH - {row})
    assert root_is_kept(statement)


BINARY = (
    {
        kind: f"x = x.clone() {symbol} 2"
        for kind, symbol in {
            ast.Add: "+",
            ast.Div: "/",
            ast.FloorDiv: "//",
            ast.Mod: "%",
            ast.Mult: "*",
            ast.Pow: "**",
            ast.Sub: "-",
        }.items()
    }
    | {
        kind: f"x = x * (self.scale {symbol} 3)"
        for kind, symbol in {
            ast.BitAnd: "&",
            ast.BitOr: "|",
            ast.BitXor: "^",
            ast.LShift: "<<",
            ast.RShift: ">>",
        }.items()
    }
    | {ast.MatMult: "x = x @ self.a.weight"}
)


@pytest.mark.parametrize("row", operators.BINARY, ids=title)
def test_operators(row):
    assert not root_is_kept(BINARY[row])


@pytest.mark.parametrize(
    "statement",
    [
        "x = torch.ops.aten.mul(x, 2)",
        "x = torch.ops.aten.mul.Tensor(x, x)",
        "x = einops.rearrange(x, 'b (h d) -> b h d', h=2).flatten(1)",
        "x = einops.reduce(x, 'b c -> b', 'mean')[:, None] + einops.repeat(x, 'b c -> (b 1) c')",
        "p, s = einops.pack([x, x], 'b *'); x, y = einops.unpack(p, s, 'b *')",
        "x = einops.einsum(x, self.a.weight, 'b i, j i -> b j')",
    ],
)
def test_operations_of_libraries(statement):
    assert not root_is_kept(f"import einops\n{statement}")
