"""What holds for every transform here: values, gradients, files, copies, a tied model's life."""

from __future__ import annotations

import copy
import json
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from oracle import assert_tied_equals_oracle
from torch import Tensor, nn
from torch.func import functional_call

import fxtie
from fxtie import Rule
from fxtie import transforms as T
from fxtie.planning.lowering import Lowered
from fxtie.transforms.registry import from_spec, to_spec

S = (4, 6, 2, 2)


def turned(w: np.ndarray, mirrors: int, hidden: bool) -> np.ndarray:
    """`orbit`, by the definition: the value at `(g^-1 y, g^-1 h)`, element by element."""
    n, k = 4 * mirrors, w.shape[-1]
    out = np.zeros((w.shape[0] * n, *w.shape[1:]))

    def matrix(g: int) -> np.ndarray:  # on (row, column), rows going down
        turn = np.linalg.matrix_power(np.array([[0, -1], [1, 0]]), g % 4)
        return turn @ np.diag([1, -1]) if g >= 4 else turn

    elements = [matrix(g) for g in range(n)]
    middle = (k - 1) / 2
    for o, g, i in np.ndindex(w.shape[0], n, w.shape[1]):
        inverse = np.linalg.inv(elements[g])
        source = i
        if hidden:
            moved = inverse @ elements[i % n]
            found = [h for h in range(n) if np.allclose(elements[h], moved)]
            source = i - i % n + found[0]
        for y in np.ndindex(k, k):
            at = np.rint(inverse @ (np.array(y) - middle) + middle).astype(int)
            out[o * n + g, i][y] = w[o, source][tuple(at)]
    return out


def rounded(w: np.ndarray, bits: int, axes: tuple[int, ...] | None) -> np.ndarray:
    step = np.abs(w).max(axis=axes, keepdims=True) / (2 ** (bits - 1) - 1)
    return np.rint(w / step) * step


def in_three(w: np.ndarray) -> np.ndarray:
    size = np.abs(w).mean()
    return np.where(w > size / 2, size, np.where(w < -size / 2, -size, 0))


# The call, the shapes of its sources, and what numpy makes of them.
FIXED: dict[str, tuple[list[tuple[int, ...]], Callable[..., np.ndarray]]] = {
    "interpolate(0.25)": ([S, S], lambda a, b: 0.75 * a + 0.25 * b),
    "interpolate(-1.5)": ([S, S], lambda a, b: a + -1.5 * (b - a)),
    "task_vector()": ([S, S], lambda a, b: b),
    "task_vector(scale=0.5)": ([S] * 3, lambda a, b, c: a + 0.5 * ((b - a) + (c - a))),
    "task_vector(scale=-1.0)": ([S, S], lambda a, b: 2 * a - b),
    "kronecker()": ([(2, 3), (4, 5)], np.kron),
    "orbit('p4', lifting=True)": ([(2, 3, 3, 3)], lambda w: turned(w, 1, False)),
    "orbit('p4m', lifting=True)": ([(2, 3, 2, 2)], lambda w: turned(w, 2, False)),
    "orbit('p4')": ([(2, 8, 3, 3)], lambda w: turned(w, 1, True)),
    "orbit('p4m')": ([(2, 16, 3, 3)], lambda w: turned(w, 2, True)),
    "fake_quant(4)": ([S], lambda w: rounded(w, 4, None)),
    "fake_quant(3, dim=0)": ([S], lambda w: rounded(w, 3, (1, 2, 3))),
    "fake_quant(8, dim=-3)": ([S], lambda w: rounded(w, 8, (0, 2, 3))),
    "fake_quant(8, dim=0)": ([(5,)], lambda w: w),
    "ternary": ([S], in_three),
}
STRAIGHT = ("fake_quant", "ternary")


def draw(shapes: list[tuple[int, ...]], dtype: torch.dtype = torch.float64) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(s, generator=generator, dtype=torch.float64).to(dtype) for s in shapes]


@pytest.mark.parametrize("text", FIXED)
def test_fixed(text: str) -> None:
    shapes, expected = FIXED[text]
    transform, sources = eval(text, vars(T)), draw(shapes)
    value = transform(*sources)
    np.testing.assert_allclose(value, expected(*(x.numpy() for x in sources)), atol=1e-12)
    assert all(map(torch.equal, sources, draw(shapes)))
    assert transform(*draw(shapes, torch.bfloat16)).dtype == torch.bfloat16
    if not text.startswith(STRAIGHT):
        assert torch.autograd.gradcheck(transform, [x.requires_grad_() for x in sources])
        assert repr(transform) == text
    for twin in (
        eval(text, vars(T)),
        copy.deepcopy(transform),
        pickle.loads(pickle.dumps(transform)),
        from_spec(json.loads(json.dumps(to_spec(transform)))),
    ):
        assert twin == transform and hash(twin) == hash(transform)
        assert repr(twin) == repr(transform)


def test_different_ones_differ() -> None:
    made = [eval(text, vars(T)) for text in FIXED]
    assert len(set(made)) == len(made)


# --- Learned ----------------------------------------------------------------------------------

# The call, the shapes of its sources, the parameters, and what numpy makes of both.
LEARNED: dict[str, tuple[list[tuple[int, ...]], dict[str, tuple[int, ...]], Any]] = {
    "LowRank(2, alpha=6.0)": (
        [S],
        {"A": (2, 24), "B": (4, 2)},
        lambda A, B, w: w + 3 * (B @ A).reshape(S),
    ),
    "weight_norm()": (
        [S],
        {"g": (4,)},
        lambda g, w: np.stack([g[i] * w[i] / np.sqrt((w[i] ** 2).sum()) for i in range(4)]),
    ),
    "weight_norm(dim=-3)": (
        [S],
        {"g": (6,)},
        lambda g, w: np.stack(
            [g[i] * w[:, i] / np.sqrt((w[:, i] ** 2).sum()) for i in range(6)], axis=1
        ),
    ),
    "learn(interpolate(0.5))": ([S, S], {"coefficient": ()}, lambda t, a, b: a + t * (b - a)),
    "learn(task_vector(), shared=True)": (
        [S, S, S],
        {"coefficient": ()},
        lambda t, a, b, c: a + t * (b - a) + t * (c - a),
    ),
    "learn(scale(2.0))": ([S], {"coefficient": ()}, lambda t, w: t * w),
    "kronecker((2, 3))": ([], {"A": (2, 3), "B": (2, 2, 2, 2)}, lambda A, B: np_kron(A, B)),
    "kronecker((4, 3, 2, 1))": (
        [],
        {"A": (4, 3, 2, 1), "B": (1, 2, 1, 2)},
        lambda A, B: np_kron(A, B),
    ),
    "basis(3)": (
        [(1, 6, 2, 2)] * 3,
        {"coefficients": (4, 3)},
        lambda c, *b: np.einsum("om,mijk->oijk", c, np.concatenate(b)),
    ),
    "basis(5)": (
        [(2, 6, 2, 2), (3, 6, 2, 2)],
        {"coefficients": (4, 5)},
        lambda c, *b: np.einsum("om,mijk->oijk", c, np.concatenate(b)),
    ),
    "Mix(2)": ([S, S], {"weights": (2,)}, lambda w, a, b: w[0] * a + w[1] * b),
}


def np_kron(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.kron(a.reshape(*a.shape, *(1,) * (b.ndim - a.ndim)), b)


def fitted_of(text: str, dtype: torch.dtype = torch.float64) -> nn.Module:
    torch.manual_seed(0)
    module: nn.Module = eval(text, vars(T)).for_target(torch.empty(S, dtype=dtype)).to(dtype)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_()
    return module


@pytest.mark.parametrize("text", LEARNED)
def test_learned(text: str) -> None:
    shapes, sizes, expected = LEARNED[text]
    module, sources = fitted_of(text), draw(shapes)
    assert {name: tuple(p.shape) for name, p in module.named_parameters()} == sizes
    parameters = [p.detach().numpy() for p in module.parameters()]
    value = module(*sources)
    assert value.shape == S
    np.testing.assert_allclose(
        value.detach(), expected(*parameters, *(x.numpy() for x in sources)), atol=1e-12
    )

    def run(*tensors: Tensor) -> Tensor:
        given = dict(zip(sizes, tensors, strict=False))
        return functional_call(module, given, tensors[len(sizes) :])

    values = [x.detach().clone().requires_grad_() for x in (*module.parameters(), *sources)]
    assert torch.autograd.gradcheck(run, values)
    low = draw(shapes, torch.bfloat16)
    assert fitted_of(text, torch.bfloat16)(*low).dtype == torch.bfloat16


@pytest.mark.parametrize("text", LEARNED)
def test_learned_copies_and_specs(text: str) -> None:
    module, fresh = fitted_of(text), eval(text, vars(T))
    assert repr(module) == repr(fresh) == text
    assert bool(list(fresh.parameters())) == ("shared" in text)
    for twin in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        sources = draw(LEARNED[text][0])
        assert torch.equal(twin(*sources), module(*sources))
        assert not {map(id, twin.parameters())} & {map(id, module.parameters())}
    for one in (module, fresh):
        read = from_spec(json.loads(json.dumps(to_spec(one))))
        assert type(read) is type(one) and repr(read) == text
    again = fresh.for_target(torch.empty(S))
    assert again.for_target(torch.empty(S)) is again
    if "shared" not in text:
        assert again is not fresh.for_target(torch.empty(S))
        with pytest.raises(ValueError, match=r"is fitted to a target of shape .*\(3, 6\)"):
            again.for_target(torch.empty(3, 6))
        with pytest.raises(ValueError, match="no parameters yet"):
            fresh(*draw(LEARNED[text][0]))


@pytest.mark.parametrize("text", LEARNED)
def test_fit_to_is_the_least_squares_solution(text: str) -> None:
    """The gradient of the distance is 0 there, and a target that can be met is met."""
    shapes, _, _ = LEARNED[text]
    module, sources = fitted_of(text), draw(shapes)
    if shapes and text.startswith("basis"):
        sources = [x / x.norm() for x in sources]
    met = module(*sources).detach()
    for target in (met, met + torch.randn(S, dtype=torch.float64)):
        with torch.no_grad():
            for name, value in module.fit_to(target, *sources).items():
                module.get_parameter(name).copy_(value)
        module.zero_grad()
        distance = (module(*sources) - target).square().sum()
        distance.backward()
        assert max(p.grad.abs().max() for p in module.parameters()) < 1e-9
        assert target is not met or distance < 1e-18


# --- In a model -------------------------------------------------------------------------------


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = (nn.Linear(8, 8) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        return self.c(self.b(self.a(x).relu()).relu())


RULES: dict[str, Callable[[], Any]] = {
    "LowRank": lambda: Rule("b", "a", T.LowRank(2, alpha=8)),
    "weight_norm": lambda: Rule("*", "{0}", T.weight_norm(), None),
    "weight_norm-other": lambda: Rule("b", "a", T.weight_norm(), None),
    "interpolate": lambda: Rule("c", ("a", "b"), T.interpolate(0.3), T.interpolate(0.3)),
    "task_vector": lambda: Rule("c", ("a", "b", "b"), T.task_vector(0.3), None),
    "learn": lambda: Rule("c", ("a", "b"), T.learn(T.interpolate(0.3)), T.learn(T.task_vector())),
    "learn-shared": lambda: Rule("re:[bc]", "a", T.learn(T.scale(0.5), shared=True), None),
    "kronecker": lambda: Rule("re:[bc]", None, T.kronecker((2, 4)), None),
    "kronecker-sources": lambda: [
        Rule("b.weight", ("bank_1.weight", "bank_2.weight"), T.kronecker())
    ],
    "basis": lambda: Rule("*", fxtie.Bank(3, (1, 8)), T.basis(3), None),
    "Mix": lambda: Rule("*", fxtie.Bank(3, (8, 8)), T.Mix(), None),
    "Mix-chain": lambda: Rule("*", fxtie.Bank(3, (8, 8)), T.chain(T.Mix(), T.scale(2)), None),
    "fake_quant": lambda: Rule("*", "{0}", T.fake_quant(4, dim=0), None),
    "ternary": lambda: Rule("*", "{0}", T.ternary(), None),
}  # fmt: skip


def net_for(name: str) -> nn.Module:
    torch.manual_seed(0)
    net = Net()
    if name == "kronecker-sources":
        net.bank_1, net.bank_2 = nn.Linear(4, 2), nn.Linear(2, 4)
    return net


@pytest.mark.parametrize("name", RULES)
def test_in_a_model(name: str) -> None:
    net = net_for(name)
    plan = fxtie.plan(net, RULES[name]())
    assert all(isinstance(step.lowered, Lowered | nn.Module) for step in plan.steps)
    tied = fxtie.transform(net, plan)
    with torch.no_grad():  # away from the start
        for parameter in tied.ties.parameters() if hasattr(tied, "ties") else ():
            parameter.add_(0.1 * torch.randn_like(parameter))
    x = torch.randn(5, 8)
    assert fxtie.verify(net, tied, x).calls  # raises for what differs
    if not any(isinstance(module, fxtie.Bank) for module in plan.modules.values()):
        for train in (False, True):
            assert_tied_equals_oracle(net, tied, plan.ties, (x,), train=train)


@pytest.mark.parametrize("name", RULES)
def test_saved_and_loaded(name: str, tmp_path: Any) -> None:
    net = net_for(name)
    tied = fxtie.transform(net, RULES[name]())
    path, x = tmp_path / "tied.safetensors", torch.randn(5, 8)
    fxtie.save(tied, path)
    torch.manual_seed(1)
    loaded = fxtie.load(path, net_for(name))
    assert torch.equal(loaded(x), tied(x))


@pytest.mark.parametrize("name", RULES)
def test_rules_round_trip_in_files(name: str, tmp_path: Any) -> None:
    rules = RULES[name]()
    fxtie.dump_rules(rules, tmp_path / "rules.toml")
    read = fxtie.load_rules(tmp_path / "rules.toml")
    assert list(map(repr, read)) == list(map(repr, rules if isinstance(rules, list) else [rules]))
