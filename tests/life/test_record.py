"""Ties as a record in files: what it keeps of them, and what it refuses."""

from __future__ import annotations

import copy
import pickle
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from saved_cases import (
    Gain,
    assert_refused,
    assert_same_state,
    linears,
    refused,
    snapshot,
    tied_case,
)
from torch import nn

import fxtie
from fxtie.errors import FileError
from fxtie.life import container
from fxtie.life.saving import check_saveable, load, save
from fxtie.transforms.registry import register


def test_for_target_that_never_ends(path):
    @register("tests.files.Restless")
    class Restless(Gain):
        def for_target(self, target):
            return Restless()

    tied = fxtie.transform(linears(), fxtie.Rule("1", "0", weight=Restless(), bias=None))
    save(tied, path)
    assert_refused(path, linears(), "something new for a target")


def rewrite(path, record):
    """The file with another record, and the sum that goes with it."""
    _, tensors = container.read(path)
    container.write(path, tensors, record)


def test_unknown_transform(path):
    _, tied = tied_case("plain")
    save(tied, path)
    record, _ = container.read(path)
    record["rules"]["rule"][0]["transform"] = "sqare"
    rewrite(path, record)
    assert_refused(path, linears(), r"rule\[0\].transform: .* Closest names: 'square'")


JSON = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(-3, 50),
        st.floats(allow_nan=False, allow_infinity=False),
        st.sampled_from(["0.weight", "bank", "square", "LowRank", "ties.bank.templates.0", ""]),
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(
            st.sampled_from(["transform", "rank", "shared", "bank", "n", "shape", "source"]),
            inner,
            max_size=3,
        ),
    ),
    max_leaves=5,
)


def places(value):
    """Every place in nested JSON, as the container and the key."""
    if isinstance(value, dict | list):
        for key in list(value) if isinstance(value, dict) else range(len(value)):
            yield value, key
            yield from places(value[key])


@pytest.fixture(scope="module")
def forgeries(tmp_path_factory):
    path, made = tmp_path_factory.mktemp("forgeries") / "tied.safetensors", {}
    for name in ("two banks", "learnable, shared", "learnable, shared in part", "aliases"):
        build, tied = tied_case(name)
        save(tied, path)
        made[name] = build, tied, *container.read(path)
    return path, made


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_forged_records(data, forgeries):
    """A record changed at random, with the right sum: refused, or right by its own lights."""
    path, made = forgeries
    build, tied, record, tensors = made[data.draw(st.sampled_from(sorted(made)))]
    record = copy.deepcopy(record)
    container_of, key = data.draw(st.sampled_from(list(places(record))))
    if data.draw(st.booleans()):
        container_of[key] = data.draw(JSON)
    else:
        del container_of[key]
    # The version and the name of the class are for people.
    record = {"version": 1, **record} if isinstance(record, dict) else record
    container.write(path, tensors, record)
    model = build()
    before = snapshot(model)
    try:
        again = load(path, model)
    except FileError:
        assert_same_state(model.state_dict(), before)
    else:
        values = again.state_dict()
        assert all(torch.equal(values[n], v) for n, v in tied.state_dict().items() if n in values)


def test_shared_modules_stay_shared(path):
    _, tied = tied_case("learnable, shared")
    save(tied, path)
    again = load(path, linears())
    (module,) = fxtie.report(again).plan.modules.values()
    assert [step.tie.transform for step in fxtie.report(again).plan.steps] == [module] * 2
    assert sum(name.startswith("ties.") for name, _ in again.named_parameters()) == 2


def test_parameters_shared_between_chains_stay_shared(path):
    _, tied = tied_case("learnable, shared in part")
    save(tied, path)
    again = load(path, linears())
    one, two = again.ties.children()
    for name in ("1.scale", "2.gain", "2.calls"):
        assert dict(one.state_dict(keep_vars=True))[name] is two.state_dict(keep_vars=True)[name]
    assert one.get_parameter("3.B") is not two.get_parameter("3.B")


def test_banks_stay_shared(path):
    _, tied = tied_case("two banks")
    save(tied, path)
    again = load(path, linears())
    (again[0].weight.sum() + again[1].weight.sum() + again[3].weight.sum()).backward()
    assert all(t.grad is not None for t in again.ties.bank_2.templates)


@pytest.mark.parametrize("transform", [lambda w: w + 1, torch.sigmoid, torch.nn.ReLU()])
def test_transform_without_a_name(transform, path):
    rules = [fxtie.Rule("1", "0", weight=transform, bias=None), fxtie.Rule("2", "0")]
    tied = fxtie.transform(linears(), rules)
    message = refused(tied, path)
    assert "'1.weight'" in message and "@fxtie.register" in message and "check_saveable" in message
    with pytest.raises(FileError, match="no registered name"):
        check_saveable(fxtie.plan(linears(), rules))
    if transform is not torch.sigmoid and not isinstance(transform, nn.Module):
        assert "no registered name" in refused(pickle.loads(pickle.dumps(tied)), path)


def test_every_fault_is_told(path):
    rules = [fxtie.Rule(f"{i}", "0", weight=lambda w: w + 1) for i in (1, 2, 3)]
    message = refused(fxtie.transform(linears(), rules), path)
    assert all(f"'{i}.weight'" in message for i in (1, 2, 3))


def test_for_target_that_gives_something_unnamed(path):
    @register("tests.files.Column")
    @dataclass(frozen=True)
    class Column:
        def for_target(self, target):
            return lambda source: source * 2

        def __call__(self, source):
            return source * 2

    tied = fxtie.transform(linears(), fxtie.Rule("1", "0", weight=Column()))
    assert "no registered name" in refused(tied, path)
