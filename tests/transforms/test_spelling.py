"""How transforms are written: as calls, with the arguments of torch's functions."""

from __future__ import annotations

import builtins
import copy
import json
import operator
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from fxtie import Rule, plan
from fxtie import transforms as T
from fxtie.errors import RuleError
from fxtie.planning.lowering import Lowered
from fxtie.transforms.protocol import check_transform
from fxtie.transforms.registry import from_spec, to_spec

W = torch.randn(4, 6, 3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))

# Each line: spellings of one transform, and what torch computes.
SPELLINGS: list[tuple[list[str], Callable[[Tensor], Tensor]]] = [
    (["flip(2)", "flip((2,))", "flip([2])", "flip(dims=(2,))"], lambda w: w.flip(2)),
    (["flip(2, -1)", "flip((2, -1))", "flip(dims=[2, -1])"], lambda w: torch.flip(w, (2, 3))),
    (["rot90(1)", "rot90(k=1)"], lambda w: torch.rot90(w, 1, (-2, -1))),
    (["rot90(1, (2, 3))", "rot90(k=1, dims=[2, 3])"], lambda w: w.rot90(1, (2, 3))),
    (["rot90(3, (0, 2))"], lambda w: torch.rot90(w, 3, (0, 2))),
    (["transpose()", "transpose(0, 1)", "transpose(dim0=0, dim1=1)"], lambda w: w.transpose(0, 1)),
    (["transpose(-2, -1)", "transpose(dim0=-2, dim1=-1)"], lambda w: w.mT),
    (["repeat_interleave(2, 1)", "repeat_interleave(2, dim=1)"],
     lambda w: w.repeat_interleave(2, 1)),
    (["mean(1)", "mean(dim=1)", "mean((1,))"], lambda w: w.mean(1)),
    (["mean((1, 2), True)", "mean(dim=[1, 2], keepdim=True)"], lambda w: w.mean((1, 2), True)),
    (["sum(1, True)", "sum(dim=1, keepdim=True)"], lambda w: w.sum(1, keepdim=True)),
    (["sum((-2, -1))", "sum(dim=(-2, -1))"], lambda w: torch.sum(w, (2, 3))),
    (["pad((1, 2))", "pad(pad=[1, 2])"], lambda w: F.pad(w, (1, 2))),
    (["pad((1, 1, 2, 0), 3)", "pad((1, 1, 2, 0), value=3)"],
     lambda w: F.pad(w, (1, 1, 2, 0), value=3)),
    (["tile((1, 2, 1, 1))", "tile(dims=[1, 2, 1, 1])"], lambda w: torch.tile(w, (1, 2, 1, 1))),
    (["slice(1, 2, 5)", "slice(dim=1, start=2, stop=5)"], lambda w: w.narrow(1, 2, 3)),
]  # fmt: skip


@pytest.mark.parametrize(
    ("texts", "expected"), SPELLINGS, ids=lambda v: str(v[0]) if type(v) is list else ""
)
def test_the_spellings_of_torch(texts: list[str], expected: Callable[[Tensor], Tensor]) -> None:
    first = eval(texts[0], vars(T))
    assert torch.equal(first(W), expected(W))
    for text in texts:
        transform = eval(text, vars(T))
        assert transform == first and hash(transform) == hash(first)
        assert eval(repr(transform), vars(T)) == transform
        assert from_spec(json.loads(json.dumps(to_spec(transform)))) == transform
        assert pickle.loads(pickle.dumps(transform)) == transform == copy.deepcopy(transform)


def test_mean_and_sum_go_over_the_sources_and_then_over_dimensions() -> None:
    sources = [W, 2 * W, -W]
    stacked = np.stack([x.numpy() for x in sources])
    mean, total = T.mean(dim=(1, 3))(*sources), T.sum(dim=0)(*sources)
    np.testing.assert_allclose(mean, stacked.mean((0, 2, 4)))
    np.testing.assert_allclose(total, stacked.sum((0, 1)))


@settings(deadline=None)
@given(st.lists(st.integers(1, 4), min_size=1, max_size=4), st.data())
def test_amounts_are_those_of_torch(shape: list[int], data: st.DataObject) -> None:
    source = torch.randn(shape)
    amounts = data.draw(st.lists(st.integers(0, 3), min_size=1, max_size=len(shape)))
    pairs = [n for amount in amounts for n in (amount, 3 - amount)]
    assert torch.equal(T.pad(pairs, value=2.0)(source), F.pad(source, pairs, value=2.0))
    assert torch.equal(T.tile(amounts)(source), source.tile(amounts))
    dims = data.draw(st.lists(st.sampled_from(range(len(shape))), unique=True, min_size=1))
    assert torch.equal(T.flip(dims)(source), source.flip(dims))
    torch.testing.assert_close(T.sum(dims, True)(source), source.sum(dims, True))


def test_amounts_do_not_take_the_shape_of_the_target() -> None:
    for transform in (T.pad((1, 1)), T.tile((2, 1))):
        assert transform.for_target(torch.empty(9, 9)) is transform
    assert T.chain(T.pad((1, 1)), T.tile()).for_target(torch.empty(2, 9)) == T.chain(
        T.pad((1, 1)), T.tile(shape=(2, 9))
    )


@pytest.mark.parametrize("name", ["same", "square", "abs", "neg", "stop_gradient", "ternary"])
def test_those_without_arguments_are_functions_that_return_themselves(name: str) -> None:
    function = getattr(T, name)
    assert function() is function and function()() is function
    assert to_spec(function()) == name and from_spec(name) is function
    assert pickle.loads(pickle.dumps(function)) is function is copy.deepcopy(function)
    assert torch.equal(function()(W), function(W))
    net = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    step = plan(net, Rule("1", "0", function())).steps[0]
    assert isinstance(step.lowered, Lowered)
    assert name == "ternary" or not len(step.lowered.guards)  # nothing to check at each call
    assert step.transform_name == name


def test_importing_all_hides_no_builtin() -> None:
    assert not set(T.__all__) & set(dir(builtins))
    for name in ("abs", "slice", "sum"):
        assert getattr(T, name) is not getattr(builtins, name)
        assert f"`{name}`" in (T.__doc__ or "")
    assert all(hasattr(T, name) for name in T.__all__) and sorted(T.__all__) == T.__all__


# --- What is not a transform, but makes some --------------------------------------------------


class Doubling:
    def __init__(self, times: int, more: int = 0) -> None: ...


@pytest.mark.parametrize(
    ("maker", "call"),
    [
        (T.rot90, "rot90(k)"),
        (T.LowRank, "LowRank(rank)"),
        (T.Mix, "Mix()"),
        (T.transpose, "transpose()"),
        (T.flip, "flip(dims)"),
        (T.chain, "chain(...)"),
        (T.kronecker, "kronecker()"),
        (T.slice, "slice(dim, start, stop)"),
        (T.resize, "resize(mode)"),
        (T.standardize, "standardize()"),
        (T.learn, "learn(of)"),
        (T.orbit, "orbit(group)"),
        (Doubling, "Doubling(times)"),
        (dict, "dict(...)"),
    ],
)
def test_an_uncalled_maker_is_told_how_to_be_called(maker: Any, call: str) -> None:
    name = call.partition("(")[0]
    with pytest.raises(RuleError) as error:
        check_transform(maker, "weight= of the rule for conv")
    told = f"weight= of the rule for conv is {name}, which makes transforms. Call it: {call}."
    assert str(error.value) == told
    with pytest.raises(ValueError, match=f"A member of chain.. is {name}, "):
        T.chain(T.square, maker)


@pytest.mark.parametrize("value", [3, "square", None, torch.ones(2), [T.square]])
def test_what_is_not_callable_is_refused(value: Any) -> None:
    with pytest.raises(RuleError, match=r"is a callable on tensors, such as fxtie\.same"):
        check_transform(value, "bias=")


def test_transforms_pass() -> None:
    for value in (
        T.same,
        T.rot90(1),
        T.LowRank(2),
        torch.square,
        operator.neg,
        lambda w: w,
        nn.ReLU(),
    ):
        check_transform(value, "weight=")


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: T.flip(), "flip(-2, -1)"),
        (lambda: T.flip((1.5,)), "flip(dims) takes integers, not 1.5"),
        (lambda: T.flip("2"), "flip(dims) takes integers, not '2'"),
        (lambda: T.rot90(1, 2), "dims are two dimensions, not 2"),
        (lambda: T.rot90(1, (2, 2)), "dims are two dimensions, not (2, 2)"),
        (lambda: T.transpose("a"), "transpose(dim0, dim1) takes integers, not 'a'"),
        (lambda: T.mean(()), "mean(dim): dim names one dimension or more"),
        (lambda: T.sum(keepdim=True), "needs a dim to keep: sum(1, keepdim=True)"),
        (lambda: T.pad(1.5), "a tuple, not 1.5: pad((1, 1)). The constant is pad(value=0.5)."),
        (lambda: T.pad((1, 2, 3)), "amounts come in pairs, before and after: (1, 2, 3)"),
        (lambda: T.pad((1, -1)), "none below 0"),
        (lambda: T.pad(()), "one amount or more"),
        (lambda: T.pad((1, 1), shape=(2,)), "give either pad or shape"),
        (lambda: T.pad((1, 1, 1, 1))(torch.ones(3)), "is for more dimensions than (3,) has"),
        (lambda: T.tile(2), "tile(dims) takes a tuple, not 2: tile((2, 1))."),
        (lambda: T.tile((2,), shape=(2,)), "give either dims or shape"),
    ],
)  # fmt: skip
def test_mistakes(make: Callable[[], Any], says: str) -> None:
    with pytest.raises(ValueError) as error:
        make()
    assert says in str(error.value)
