"""Files of tied models that `fxtie.load` refuses: damaged, forged, of another model."""

from __future__ import annotations

import copy
import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from saved_cases import (
    Gain,
    Shared,
    assert_same_state,
    buffer_case,
    buffered_linears,
    linears,
    snapshot,
    tied_case,
)
from torch import nn

import fxtie
from fxtie.errors import FileError
from fxtie.life import container
from fxtie.life.saving import load, save
from fxtie.transforms.registry import register


def assert_refused(path, model, match="can't be loaded"):
    """Loading raises FileError and changes nothing."""
    before = snapshot(model)
    members = [list(module.__dict__) for module in model.modules()]
    with pytest.raises(FileError, match=match) as caught:
        load(path, model)
    assert str(path) in str(caught.value)
    assert_same_state(model.state_dict(), before)
    assert [list(module.__dict__) for module in model.modules()] == members


def test_damaged_files(path):
    """One of each kind: test_container.py tries every byte and every bit."""
    build, tied = tied_case("bank")
    assert_refused(path, build(), "no such file")
    save(tied, path)
    whole = path.read_bytes()
    header = 8 + int.from_bytes(whole[:8], "little")
    for size in (0, 4, 8, header // 2, header, header + 4, len(whole) - 1):
        path.write_bytes(whole[:size])
        assert_refused(path, build(), "not a whole safetensors file")
    for place in (3, whole.index(b"Mix"), whole.index(b"F32"), header + 5, len(whole) - 1):
        damaged = bytearray(whole)
        damaged[place] ^= 1
        path.write_bytes(damaged)
        assert_refused(path, build())


def tied_linears():
    model = linears()
    model[1].weight = model[0].weight
    return model


def hooked_linears():
    model = linears()
    model[2].register_forward_hook(lambda *args: None)
    return model


@pytest.mark.parametrize(
    ("model", "why"),
    [
        (lambda: linears(2), "not a tensor of the model"),
        (lambda: linears(5), "'4.bias' is not in the file"),
        (lambda: linears(features=5), "'0.bias' has the shape (4,) in the file, (5,)"),
        (lambda: linears().double(), "Bring the model to it with .to(torch.float32)"),
        (lambda: nn.Sequential(*[nn.Linear(4, 4, bias=False)] * 4), "2.bias"),
        (tied_linears, "two tensors in the file and one in the model"),
        (lambda: buffered_linears(torch.zeros(2)), "'odd' is not in the file"),
        (hooked_linears, "hooks"),
    ],
)
def test_wrong_model(model, why, path):
    _, tied = tied_case("plain")
    save(tied, path)
    assert_refused(path, model(), re.escape(why))


@pytest.mark.parametrize("name", ["plain", "bank", "no for_target", "odd names"])
def test_model_on_the_meta_device(name, path):
    """The ties fit there as well, and what is learned goes with the model; the values can't."""
    build, tied = tied_case(name)
    save(tied, path)
    with pytest.raises(FileError, match="is on the meta device and has no data"):
        load(path, build().to("meta"))


def test_model_without_the_aliases_of_the_file(path):
    _, tied = tied_case("aliases")
    save(tied, path)
    model = Shared()
    model.head.weight = nn.Parameter(torch.zeros(4, 4))
    assert_refused(path, model, "'head.weight' is not in the file")


def test_model_that_can_not_take_the_values(path):
    save(buffer_case(torch.zeros(3)), path)
    assert_refused(path, buffered_linears(torch.zeros(1).expand(3)), "expanded")


def test_not_a_model(path):
    with pytest.raises(FileError, match="not dict"):
        load(path, {})


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


def test_nothing_is_unpickled_or_imported(path, monkeypatch):
    _, tied = tied_case("learnable")
    save(tied, path)
    model = linears()

    def refuse(*args, **kwargs):
        raise AssertionError("a file must not lead here")

    for name in ("pickle.load", "pickle.loads", "torch.load", "importlib.import_module"):
        monkeypatch.setattr(name, refuse)
    assert_same_state(load(path, model).state_dict(), tied.state_dict())
