"""Calls of anything: what is recorded, looked into, run, or stops the trace."""

import collections
import dataclasses
import functools
import math
import random
from math import sqrt

import einops  # noqa: F401  # programs may import only what is imported
import pytest
import torch
from gate_rows import root_is_kept, title
from two_linears import RULE, Two, check, model_with

import fxtie
from fxtie import Rule
from fxtie.tracing import calls, gate

QUESTIONS = {
    torch.is_grad_enabled: "x = x * 2 if torch.is_grad_enabled() else x",
    torch.is_inference_mode_enabled: "x = x * 2 if torch.is_inference_mode_enabled() else x",
    torch.get_default_dtype: "x = x + torch.ones(4, dtype=torch.get_default_dtype())",
    torch.is_autocast_enabled: "x = x * 2 if torch.is_autocast_enabled('cpu') else x",
    torch.get_autocast_dtype: "x = x * 2 if torch.get_autocast_dtype('cpu') == 5 else x",
    torch._C._is_tracing: "x = x * 2 if torch.jit.is_tracing() else x",
    torch._C._get_cudnn_enabled: "x = x * 2 if torch._C._get_cudnn_enabled() else x",
}


@pytest.mark.parametrize("row", sorted(gate.QUESTIONS, key=title), ids=title)
def test_questions(monkeypatch, row):
    assert not root_is_kept(QUESTIONS[row])
    monkeypatch.setattr(calls, "QUESTIONS", gate.QUESTIONS - {row})
    assert root_is_kept(QUESTIONS[row])


SIZED = {
    torch.empty: "x = x + torch.empty(*x.shape).fill_(1)",
    torch.ones: "x = x + torch.ones(*x.shape, dtype=x.dtype)",
    torch.rand: "x = x + torch.rand(*x.shape)",
    torch.randn: "x = x + torch.randn(2, *x.shape)[0]",
    torch.zeros: "x = x + torch.zeros(*x.shape)",
}


@pytest.mark.parametrize("row", sorted(gate.SIZED, key=title), ids=title)
def test_functions_of_as_many_sizes_as_there_are(monkeypatch, row):
    assert not root_is_kept(SIZED[row])
    monkeypatch.setattr(calls, "SIZED", gate.SIZED - {row})
    assert "the number is known only" in root_is_kept(SIZED[row])[0]


SIZED_METHODS = {
    "expand": "x = x.expand(*x.shape)",
    "flip": "x = x.flip(*x.new_zeros(1, dtype=torch.long).tolist())",
    "permute": "x = x.permute(*torch.arange(2).tolist())",
    "repeat": "x = x.repeat(*torch.ones(2, dtype=torch.long).tolist())",
    "reshape": "x = x.reshape(*x.shape[:1], -1)",
    "tile": "x = x.tile(*torch.ones(2, dtype=torch.long).tolist())",
    "view": "x = x.float().view(*x.shape)",
}


@pytest.mark.parametrize("row", sorted(gate.SIZED_METHODS))
def test_methods_of_as_many_sizes_as_there_are(monkeypatch, row):
    assert not root_is_kept(SIZED_METHODS[row])
    monkeypatch.setattr(calls, "SIZED_METHODS", gate.SIZED_METHODS - {row})
    assert "the number is known only" in root_is_kept(SIZED_METHODS[row])[0]


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


def test_lru_caches_of_made_tensors():
    @functools.lru_cache
    def mask(n):
        made = torch.zeros(n, n)
        made[0] = 1
        made.fill_diagonal_(2)
        low, high = made.aminmax()
        assert int(made.sum()) == 11
        return made.T + high if bool(low == 0) else low

    def forward(self, x):
        return self.b(self.a(x) @ mask(4))

    (kept,) = check(model_with(forward)).kept
    assert "calls" in kept.reason and "mask" in kept.reason
    assert type(mask(4)) is torch.Tensor


def test_compiled_code_that_a_graph_can_call():
    """It asks whether its argument is a tensor before it has the call recorded."""

    def forward(self, x):
        hidden = self.a(x)
        norm = torch.pow(torch.sum(torch.pow(hidden, 2), dim=-1, keepdim=True), 0.5)
        return self.b(torch.add(torch.mul(2, hidden), 1) / norm)

    assert not check(model_with(forward)).kept


def test_compiled_code_gets_no_traced_value():
    """It would take what says to be a tensor for one of its own, and crash."""
    compiled = torch._C._functorch.maybe_get_level  # a plain C++ function of a tensor

    def forward(self, x):
        hidden = self.a(x)
        return self.b(hidden) * (2 if compiled(hidden + 1) < 0 else 3)

    (kept,) = check(model_with(forward)).kept
    assert "maybe_get_level" in kept.reason

    def transform(weight):
        return weight * (2 if compiled(weight) < 0 else 3)

    check(Two(), rule=Rule("b", "a", weight=transform))


class Straight(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.clamp(0, 1)

    @staticmethod
    def backward(ctx, gradient):
        return gradient * 5


straight = Straight.apply


def test_autograd_functions_keep_their_backward():
    def forward(self, x):
        return self.b(straight(self.a(x)))

    (kept,) = check(model_with(forward)).kept
    assert "apply" in kept.reason  # which is C in torch 2.15
    check(Two(), rule=Rule("b", "a", weight=straight))
    check(Two(), rule=Rule("b", "a", weight=lambda w: Straight.apply(w) * 2))


def test_random_generators_of_python():
    generator = random.Random(0)

    def forward(self, x):
        return self.b(self.a(x)) * generator.uniform(1, 2)

    model = model_with(forward)
    tied = fxtie.transform(model, RULE)
    (kept,) = fxtie.report(tied).kept
    assert kept.reason == "reads .random of a Random, which code in C computes"
    x = torch.randn(3, 4)
    assert not torch.equal(tied(x), tied(x))


@dataclasses.dataclass
class Counted:
    value: torch.Tensor
    calls: int = dataclasses.field(default=1, init=False)


class Items(list):
    pass


@pytest.mark.parametrize(
    ("make", "captured"),
    [
        (lambda y: collections.defaultdict(list, y=y), False),
        (Counted, False),
        (lambda y: Items([y, 1]), False),
        (lambda y: collections.OrderedDict(y=y), True),
    ],
)
def test_outputs_of_a_class(make, captured):
    def forward(self, x):
        return make(self.b(self.a(x)))

    assert (not check(model_with(forward)).kept) == captured


class Scaled(Two):
    """Asks `math` by way of the module and by a name of its own."""

    def forward(self, x):
        x = self.b(self.a(x)) / math.sqrt(x.shape[-1])
        return x * sqrt(x.shape[0]) + math.prod([x.shape[0], 2]) + math.sqrt(4)


def test_math_is_recorded():
    before = dict(vars(math))
    assert check(Scaled()).regions == 1
    assert vars(math) == before
    tied = fxtie.transform(Scaled(), RULE)
    assert [node.target for node in tied.graph.nodes].count(math.sqrt) == 2
    x = torch.randn(7, 4)
    torch.testing.assert_close(tied(x), type(tied)._fxtie_made.user.forward(tied, x))
