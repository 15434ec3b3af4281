"""Transforms as plain data and back, and names for one's own."""

from __future__ import annotations

import json
import math
import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from transform_cases import MODES, shapes

from fxtie.errors import RuleError
from fxtie.transforms import (
    ChannelScale,
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
from fxtie.transforms.registry import from_spec, register, to_spec

# --- Specs ------------------------------------------------------------------------------------


numbers = st.floats(allow_nan=False, allow_infinity=False, width=32)


maybe_shape = st.none() | shapes


simple = st.one_of(
    st.sampled_from([same, square, abs, neg, transpose(), mean(), sum(), stop_gradient()]),
    st.builds(scale, numbers),
    st.builds(standardize, st.floats(1e-9, 1)),
    st.builds(rot90, st.integers()),
    st.lists(st.integers(-4, 4), min_size=1).map(lambda dims: flip(*dims)),
    st.builds(repeat_interleave, st.integers(1, 9), st.integers(-4, 4)),
    st.builds(slice, st.integers(-4, 4), st.integers(0, 5), st.integers(6, 9)),
)


shaped = st.one_of(
    st.builds(tile, shape=maybe_shape),
    st.builds(crop, center=st.booleans(), shape=maybe_shape),
    st.builds(pad, value=numbers, shape=maybe_shape),
    st.builds(resize, st.sampled_from(MODES), shape=maybe_shape),
)


chains = st.tuples(st.lists(simple, min_size=1), st.lists(shaped, max_size=1)).map(
    lambda parts: chain(*parts[0], *parts[1])
)


@settings(deadline=None)
@given(simple | shaped | chains)
def test_spec_round_trip(transform: Callable[..., Tensor]) -> None:
    text = json.dumps(to_spec(transform), allow_nan=False)
    read = from_spec(json.loads(text))
    assert read == transform and type(read) is type(transform)


@pytest.mark.parametrize(
    "make",
    [
        lambda: LowRank(3),
        lambda: LowRank(3).for_target(torch.empty(4, 4)),
        lambda: ChannelScale(1),
        lambda: Mix(4),
        lambda: chain(Mix(2), square, LowRank(1)),
    ],
)
def test_spec_round_trip_of_learned_transforms(make: Callable[[], nn.Module]) -> None:
    module = make()
    read = from_spec(json.loads(json.dumps(to_spec(module))))
    assert type(read) is type(module) and repr(read) == repr(module)
    assert to_spec(read) == to_spec(module)


@pytest.mark.parametrize(
    ("transform", "spec"),
    [
        (square, "square"),
        (torch.square, "square"),
        (torch.abs, "abs"),
        (torch.neg, "neg"),
        (operator.neg, "neg"),
        (rot90(1), {"transform": "rot90", "k": 1}),
        (tile(), "tile"),
        (tile(shape=(2,)), {"transform": "tile", "shape": [2]}),
        (
            chain(torch.square, scale(2)),
            {
                "transform": "chain",
                "transforms": [{"transform": "square"}, {"transform": "scale", "s": 2.0}],
            },
        ),
    ],
)
def test_spec_text(transform: Callable[..., Tensor], spec: Any) -> None:
    assert to_spec(transform) == spec


def test_inner_transforms_may_be_written_as_plain_names() -> None:
    spec = {"transform": "chain", "transforms": ["square", {"transform": "scale", "s": 2}, "tile"]}
    assert from_spec(spec) == chain(square, scale(2.0), tile())


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ("sqare", "'square'"),
        ("os.system", "register"),
        ({"transform": "rot9", "k": 1}, "'rot90'"),
        ({"transform": "rot90"}, "'k'.*missing"),
        ({"transform": "rot90", "l": 1}, "'l'.*'k'"),
        ({"transform": "crop", "centre": True}, "'centre'.*'center'"),
        ({"transform": "rot90", "k": True}, "'k'.*int"),
        ({"transform": "rot90", "k": 1.0}, "'k'.*int"),
        ({"transform": "rot90", "k": "1"}, "'k'.*int"),
        ({"transform": "scale", "s": "2"}, "'s'.*float"),
        ({"transform": "scale", "s": math.nan}, "'s'.*float"),
        ({"transform": "scale", "s": 10**400}, "'s'.*float"),
        ({"transform": "crop", "center": 1}, "'center'.*bool"),
        ({"transform": "tile", "shape": 3}, "'shape'"),
        ({"transform": "tile", "shape": [1.5]}, "'shape'.*1.5"),
        ({"transform": "flip", "dims": []}, "dimensions"),
        ({"transform": "slice", "dim": 0, "start": 2, "stop": 1}, "start < stop"),
        ({"transform": "resize", "mode": "best"}, "nearest"),
        ({"transform": "square", "p": 2}, "no argument,.*'p'"),
        ({"transform": "chain", "transforms": "square"}, "'transforms'"),
        ({"transform": "chain", "transforms": [3]}, "'transforms'.*3"),
        ({"transform": "chain", "transforms": ["squar"]}, "'square'"),
        ({"k": 1}, "written as"),
        (["square"], "written as"),
        (None, "written as"),
    ],
)
def test_bad_specs_are_refused(spec: Any, says: str) -> None:
    with pytest.raises(RuleError, match=says):
        from_spec(spec)


def test_endless_nesting_is_refused() -> None:
    spec: Any = "square"
    for _ in range(100_000):
        spec = {"transform": "chain", "transforms": [spec]}
    with pytest.raises(RuleError, match="deep"):
        from_spec(spec)
    while isinstance(spec, dict):  # take it apart here, not in a deep destructor
        spec = spec["transforms"][0]


names = ["square", "scale", "rot90", "flip", "slice", "tile", "crop", "pad", "resize", "chain"]


keys = ["s", "k", "dims", "dim", "start", "stop", "shape", "value", "mode", "transforms", "center"]


junk = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.sampled_from(names) | st.text(),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["transform", *keys]), inner, max_size=4)
    ),
    max_leaves=8,
)


@settings(deadline=None)
@given(
    st.builds(
        lambda name, rest: {**rest, "transform": name},
        st.sampled_from(names),
        st.dictionaries(st.sampled_from(keys), junk, max_size=3),
    )
    | junk
)
def test_any_json_is_read_or_refused(spec: Any) -> None:
    try:
        transform = from_spec(spec)
    except RuleError:
        return
    assert from_spec(to_spec(transform)) == transform


# --- Names for one's own ----------------------------------------------------------------------


def plus_one(source: Tensor) -> Tensor:
    return source + 1


def unnamed(source: Tensor) -> Tensor:
    return source


@register("tests.blend")
@dataclass(frozen=True)
class Blend:
    inner: Callable[..., Tensor]
    label: str
    amounts: tuple[float, float] = (1.0, 2.0)
    limit: int | None = None

    def __call__(self, source: Tensor) -> Tensor:
        return self.inner(source) * self.amounts[0] + self.amounts[1]


@dataclass(frozen=True)
class MoreThanBlend(Blend):
    extra: int = 3


@register("tests.loose")
@dataclass(frozen=True)
class Loose:
    value: Any

    def __call__(self, source: Tensor) -> Tensor:
        return source


@register("tests.hyper")
class Hyper(nn.Module):
    def __init__(self, width: int, act: Callable[..., Tensor] = torch.neg) -> None:
        super().__init__()
        self.width, self.act = width, act
        self.net = nn.Linear(width, width)


register("tests.plus_one")(plus_one)


def test_a_registered_function_goes_by_its_name() -> None:
    assert to_spec(chain(plus_one, square)) == {
        "transform": "chain",
        "transforms": [{"transform": "tests.plus_one"}, {"transform": "square"}],
    }
    assert from_spec("tests.plus_one") is plus_one


@pytest.mark.parametrize("inner", [square, chain(neg, tile(shape=(2,))), Blend(neg, "x")])
def test_a_registered_dataclass_goes_by_its_arguments(inner: Callable[..., Tensor]) -> None:
    # The label is the name of a transform, and stays a string.
    for blend in (Blend(inner, "square"), Blend(inner, "", (0.5, 3.0), 7)):
        assert from_spec(json.loads(json.dumps(to_spec(blend)))) == blend


def test_a_registered_module_goes_by_its_arguments() -> None:
    read = from_spec(to_spec(Hyper(3, torch.abs)))
    assert isinstance(read, Hyper) and (read.width, read.act) == (3, abs)


@pytest.mark.parametrize(
    "value", ["square", 1, 1.5, None, True, (1, "a", (2.0,)), square, scale(2)]
)
def test_arguments_without_a_type_keep_their_value(value: Any) -> None:
    read = from_spec(json.loads(json.dumps(to_spec(Loose(value)))))
    assert read == Loose(value) and type(read.value) is type(value)


@pytest.mark.parametrize(
    ("transform", "says"),
    [
        (lambda w: w, "register"),
        (unnamed, "register"),
        (tile, "register"),
        (chain(square, unnamed), "register"),
        (MoreThanBlend(neg, "a"), "register"),
        (nn.Linear(2, 2), "register"),
        (Loose(math.inf), "'value'"),
        (Loose(torch.ones(2)), "'value'.*Tensor"),
        (Loose({"a": 1}), "'value'.*dict"),
        (Loose(unnamed), "register"),
        (Blend(neg, 3), "'label'.*str"),  # type: ignore[arg-type]
        (Blend(neg, "a", (1.0,)), "'amounts'"),  # type: ignore[arg-type]
        (Blend(neg, "a", limit=1.5), "'limit'.*int"),  # type: ignore[arg-type]
    ],
)
def test_what_has_no_spec_is_refused_with_the_remedy(transform: Any, says: str) -> None:
    with pytest.raises(RuleError, match=says):
        to_spec(transform)


def test_an_argument_that_is_not_kept_is_told() -> None:
    @register("tests.forgetful")
    class Forgetful(nn.Module):
        def __init__(self, width: int) -> None:
            super().__init__()

    with pytest.raises(RuleError, match=r"self\.width = width"):
        to_spec(Forgetful(2))


def test_names_are_given_once_and_the_same_code_may_run_again() -> None:
    def first(source: Tensor) -> Tensor:
        return source

    def again() -> Callable[..., Tensor]:
        def cell(source: Tensor) -> Tensor:
            return source

        return register("tests.cell")(cell)

    assert register("tests.first")(first) is first
    with pytest.raises(RuleError, match=r"'tests\.first' is taken"):
        register("tests.first")(again)
    with pytest.raises(RuleError, match="'square' is taken"):
        register("square")(first)
    again()
    newest = again()
    assert from_spec("tests.cell") is newest


def test_constructors_that_no_spec_can_describe_are_refused() -> None:
    class Open:
        def __init__(self, **options: int) -> None: ...

    class Clash:
        def __init__(self, transform: int) -> None: ...

    with pytest.raises(RuleError, match="options"):
        register("tests.open")(Open)
    with pytest.raises(RuleError, match="rename"):
        register("tests.clash")(Clash)
    with pytest.raises(RuleError, match="non-empty"):
        register("")
    with pytest.raises(RuleError, match="callable"):
        register("tests.text")("text")  # type: ignore[type-var]
    for name in ("tests.open", "tests.clash", "tests.text"):
        with pytest.raises(RuleError, match="no transform named"):
            from_spec(name)
