"""What all transforms have in common: values, gradients, tracing, equality, repr, mistakes."""

from __future__ import annotations

import copy
import itertools
import math
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn
from transform_cases import CASES, Case, ShapeTracer, expected, root_of

import fxtie
from fxtie import Rule
from fxtie import transforms as T
from fxtie.transforms import (  # noqa: F401 (a test evaluates text)
    ChannelScale,
    FitsTarget,
    LowRank,
    Mix,
    abs,
    chain,
    crop,
    flip,
    mean,
    neg,
    pad,
    repeat_interleave,
    resize,
    rot90,
    same,
    scale,
    slice,
    square,
    standardize,
    stop_gradient,
    sum,
    tile,
    transpose,
)
from fxtie.transforms.protocol import fitted_to, formula, transform_name

# --- Values and gradients ---------------------------------------------------------------------


def test_value_is_what_numpy_computes(case: Case) -> None:
    torch.testing.assert_close(case.transform(*case.sources()), expected(case))


def test_gradient(case: Case) -> None:
    sources = [x.requires_grad_() for x in case.sources()]
    assert torch.autograd.gradcheck(case.transform, sources)


def test_sources_are_left_as_they_are(case: Case) -> None:
    sources = case.sources()
    case.transform(*sources)
    assert all(map(torch.equal, sources, case.sources()))


def test_transforms_keep_the_dtype() -> None:
    for dtype in (torch.bfloat16, torch.float16, torch.float64):
        x = torch.rand(4, 4, 3, 3, dtype=torch.float32).to(dtype)
        for f in (square, abs, neg, scale(0.5), standardize(), mean(), sum(), Mix(1).for_target(x)):
            assert f(x).dtype == dtype, (f, dtype)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: tile()(torch.ones(2)), "for_target"),
        (lambda: tile(shape=(2, 2))(torch.ones(2)), r"\(2,\) to \(2, 2\)"),
        (lambda: crop(shape=(3,))(torch.ones(2)), "pad"),
        (lambda: pad(shape=(1,))(torch.ones(2)), "crop"),
        (lambda: resize("bilinaer"), "nearest-exact"),
        (lambda: resize("cubic", shape=(3,))(torch.ones(2)), "'linear'"),
        (lambda: standardize(0.0), "positive"),
        (lambda: standardize()(torch.ones(8, 1)), r"\(8, 1\)"),
        (lambda: standardize()(torch.ones(8)), r"\(8,\)"),
        (lambda: scale(torch.ones(1)), "number"),
        (lambda: scale(math.nan), "finite"),
        (lambda: pad(value=math.inf), "finite"),
        (lambda: rot90(0.5), "integers"),
        (lambda: flip(), "dimensions"),
        (lambda: slice(0, 3, 3), "start < stop"),
        (lambda: slice(0, -2, 3), "start < stop"),
        (lambda: repeat_interleave(0, 1), "positive"),
        (lambda: mean()(), "one or more"),
        (lambda: sum()(), "one or more"),
        (lambda: chain(), "same"),
        (lambda: chain(tile), r"Call it: tile\(\)"),
        (lambda: chain(tile(), square, pad()), r"tile\(\) and pad\(\)"),
        (lambda: LowRank(0), "positive"),
        (lambda: Mix(0), "positive"),
        (lambda: Mix(2).for_target(torch.ones(1))(torch.ones(1)), r"Mix\(2\) takes 2"),
        (lambda: LowRank(2)(torch.ones(2, 2)), "for_target"),
        (lambda: LowRank(1).for_target(torch.ones(2, 2, dtype=torch.int64)), "int64"),
        (lambda: LowRank(3).for_target(torch.empty(2, 9)), "at most 2"),
        (lambda: ChannelScale().for_target(torch.empty(())), "no dimension 0"),
        (lambda: ChannelScale().for_target(torch.empty(4, 2))(torch.ones(1, 2)), "tile"),
    ],
)
def test_mistakes_are_told(make: Callable[[], Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        make()


def test_for_target_is_the_documented_protocol() -> None:
    assert all(isinstance(f, FitsTarget) for f in (tile(), crop(), pad(), resize("area")))
    assert all(isinstance(f, FitsTarget) for f in (LowRank(1), ChannelScale(), chain(neg)))
    assert not any(isinstance(f, FitsTarget) for f in (same, scale(2), mean()))


# --- Tracing ----------------------------------------------------------------------------------


def test_traced_by_proxies_that_know_their_shape(case: Case) -> None:
    sources = case.sources()
    root = root_of(case.transform, len(sources))
    traced = fx.GraphModule(root, ShapeTracer(sources).trace(root))
    assert not [n for n in traced.graph.nodes if n.op == "call_module"]
    assert torch.equal(traced(*sources), case.transform(*sources))


@pytest.mark.parametrize(
    "case", [pytest.param(c, id=name) for name, c in CASES.items() if not c.needs_shape]
)
def test_traced_by_stock_fx_where_no_shape_is_needed(case: Case) -> None:
    sources = case.sources()
    traced = fx.symbolic_trace(root_of(case.transform, len(sources)))
    assert torch.equal(traced(*sources), case.transform(*sources))


def test_nothing_is_added_to_the_graph_where_the_shape_fits_already() -> None:
    source = torch.randn(2, 3)
    for f in (tile(), crop(), pad(), resize("linear")):
        root = root_of(f.for_target(source), 1)
        assert [n.op for n in ShapeTracer([source]).trace(root).nodes] == ["placeholder", "output"]


# --- Copies, equality, repr -------------------------------------------------------------------


def test_copies_are_equal(case: Case) -> None:
    for twin in (copy.deepcopy(case.transform), pickle.loads(pickle.dumps(case.transform))):
        assert twin == case.transform and hash(twin) == hash(case.transform)
        torch.testing.assert_close(twin(*case.sources()), expected(case))


def test_different_transforms_differ() -> None:
    distinct = {case.transform for case in CASES.values()}
    distinct |= {crop(), crop(center=True), pad(), pad(value=1), tile(), rot90(1), chain(square)}
    listed = list(distinct)
    for a, b in itertools.combinations(listed, 2):
        assert a != b
    assert len(listed) == len(CASES) + 6  # rot90(1) is among the cases


def test_equal_after_fitting_to_equal_shapes() -> None:
    for f in (tile(), crop(), pad(value=2), resize("area"), chain(neg, tile())):
        a, b = f.for_target(torch.empty(2, 3)), f.for_target(torch.ones(2, 3))
        assert a == b and hash(a) == hash(b)
        assert a != f.for_target(torch.empty(3, 2))
    assert LowRank(1) != LowRank(1)


def test_frozen() -> None:
    with pytest.raises(AttributeError):
        scale(2).s = 3  # type: ignore[misc]


@pytest.mark.parametrize(
    "text",
    [
        "scale(0.5)",
        "rot90(1)",
        "tile()",
        "tile(shape=(2, 3))",
        "crop(center=True)",
        "crop(center=True, shape=(2, 3))",
        "resize('area', shape=(2,))",
        "pad(value=1.0)",
        "resize('linear')",
        "flip(-2, -1)",
        "slice(0, 1, 2)",
        "repeat_interleave(2, 0)",
        "standardize()",
        "transpose()",
        "mean()",
        "chain(square, scale(0.5), tile())",
        "chain(Mix(2), abs, LowRank(4), ChannelScale(), ChannelScale(dim=1))",
    ],
)
def test_repr_is_the_call(text: str) -> None:
    assert repr(eval(text)) == text


def test_a_name_is_one_line():
    module = nn.Sequential(nn.Linear(2, 2), nn.Tanh())
    assert transform_name(module) == "Sequential(…)"
    assert formula("square", ("a.weight",)) == "square(a.weight)"
    assert formula("same", ("a.weight",)) == "a.weight"


class Curious:
    def __init__(self) -> None:
        self.told: list[dict[str, Any]] = []


class Everything(Curious):
    def for_target(self, target: Tensor, **told: Any) -> Any:
        self.told.append(told)
        return lambda *sources: sources[0]


class Name(Curious):
    def for_target(self, target: Tensor, *, name: str = "") -> Any:
        self.told.append({"name": name})
        return lambda *sources: sources[0]


class Nothing(Curious):
    def for_target(self, target: Tensor) -> Any:
        self.told.append({})
        return lambda *sources: sources[0]


def test_for_target_is_told_what_it_asks_for() -> None:
    net = nn.Sequential(*(nn.Linear(4, 4) for _ in range(3)))
    asks: list[Any] = [Everything(), Name(), Nothing()]
    for one in asks:
        one.__class__.__call__ = lambda self, *sources: sources[0]
        fxtie.plan(net, Rule("2", ("0", "1"), one, None))
    everything, name, nothing = (one.told[0] for one in asks)
    assert everything.keys() == {"name", "sources", "value"}
    assert (everything["name"], everything["sources"]) == ("2.weight", 2)
    assert torch.equal(everything["value"], net[2].weight)
    assert not everything["value"].requires_grad
    assert name == {"name": "2.weight"} and nothing == {}


def test_fitted_to_leaves_others_alone() -> None:
    for transform in (torch.square, T.same, T.scale(2), lambda w: w):
        assert fitted_to(transform, torch.empty(2), name="x", sources=1) is transform
