"""`fxtie.save` and what `fxtie.load` gives back; what is refused at save. See test_container.py
for the file itself, test_saving_refused.py for what is refused at load.
"""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from saved_cases import (
    CASES,
    Gain,
    Growing,
    assert_same_state,
    assert_same_tied,
    buffer_case,
    buffered_linears,
    convs,
    example,
    linears,
    refused,
    shake,
    snapshot,
    tied_case,
)
from torch import nn

import fxtie
from fxtie import Rule
from fxtie.errors import FxtieError
from fxtie.life import container
from fxtie.life.saving import check_saveable, load, save
from fxtie.transforms import (
    ChannelScale,
    LowRank,
    chain,
    crop,
    flip,
    mean,
    neg,
    pad,
    resize,
    rot90,
    scale,
    square,
    standardize,
)
from fxtie.transforms.registry import register


@pytest.mark.parametrize("name", CASES)
def test_round_trip(name, path):
    build, tied = tied_case(name)
    before = snapshot(tied)
    save(tied, path)
    assert_same_state(tied.state_dict(), before)
    again = load(path, build())
    assert_same_tied(again, tied)
    first = container.read(path)[0]
    save(again, path)
    assert container.read(path)[0] == first


@pytest.mark.parametrize("name", ["learnable, shared in part", "two banks", "aliases"])
@pytest.mark.parametrize("through", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_copies_are_saved_as_well(name, through, path):
    build, tied = tied_case(name)
    save(through(tied), path)
    assert_same_tied(load(path, build()), tied)


def fits(transforms):
    """Not two that take the target's shape."""
    try:
        chain(*transforms)
    except ValueError:
        return False
    return True


TRANSFORMS = st.recursive(
    st.one_of(
        st.sampled_from([square, neg, torch.abs, standardize(), mean()]),
        st.builds(scale, st.floats(-3, 3, allow_nan=False)),
        st.builds(rot90, st.integers(-4, 4)),
        st.builds(flip, st.integers(-4, 3)),
        st.builds(LowRank, st.integers(1, 4)),
        st.builds(ChannelScale, st.integers(-4, 3)),
        st.builds(Gain, st.floats(-3, 3, width=32)),
        st.builds(pad, value=st.floats(-1, 1)),
        st.builds(crop, center=st.booleans()),
        st.builds(resize, st.sampled_from(["nearest", "linear"])),
    ),
    lambda inner: st.lists(inner, min_size=1, max_size=3).filter(fits).map(lambda t: chain(*t)),
    max_leaves=4,
)


@settings(
    max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(transforms=st.lists(TRANSFORMS, min_size=2, max_size=3), picks=st.data())
def test_round_trip_of_any_transforms(transforms, picks, path):
    rules = [
        fxtie.Tie(
            f"{i}.weight",
            picks.draw(st.sampled_from([f"{j}.weight" for j in range(i)])),
            picks.draw(st.sampled_from(transforms)),
        )
        for i in range(1, 4)
    ]
    tied = fxtie.transform(convs(4), rules)
    shake(tied, 1)
    save(tied, path)
    again = load(path, convs(4))
    assert_same_state(again.state_dict(), tied.state_dict())
    x = example(tied)
    torch.testing.assert_close(again(x), tied(x), rtol=0, atol=0, equal_nan=True)


def test_a_tensor_of_two_names_is_written_once(path):
    _, tied = tied_case("aliases")
    save(tied, path)
    with safe_open(path, framework="pt") as file:
        assert set(tied.state_dict()) - set(file.keys()) == {
            "head.weight",
            "two.weight",
            "two.bias",
        }


def test_views_that_overlap_are_written_whole(path):
    class Views(nn.Sequential):
        def __init__(self):
            super().__init__(nn.Linear(4, 4), nn.Linear(4, 4))
            self.register_buffer("all", torch.zeros(6, 2))
            self.register_buffer("part", self.all[1:3])
            self.register_buffer("turned", self.all.t())
            self.register_buffer("empty", torch.zeros(0, 3))
            self.register_buffer("nothing", torch.zeros(0, 3))

        def forward(self, x):
            return self[1](self[0](x)) + self.all.sum() + self.part.sum()

    tied = fxtie.transform(Views(), fxtie.Rule("1", "0"))
    shake(tied, 1)
    save(tied, path)
    assert_same_tied(load(path, Views()), tied)


def test_complex_tensors(path):
    values = torch.randn(4, 4, dtype=torch.complex64)
    tied = buffer_case(values.conj())
    save(tied, path)
    again = load(path, buffered_linears(torch.zeros(4, 4, dtype=torch.complex64)))
    assert torch.equal(again.odd, values.conj())


def test_what_is_shared_with_the_model(path):
    _, tied = tied_case("plain")
    save(tied, path)
    model = linears()
    target = model[2].weight.clone()
    parameters = dict(model.named_parameters())
    again = load(path, model)
    assert all(p is parameters[name] for name, p in again.named_parameters())
    assert torch.equal(model[0].weight, tied[0].weight)
    assert torch.equal(model[2].weight, target)


def test_moved_after_tying(path):
    """A learnable transform is in the dtype in which it was saved, not the one it starts in."""
    model = linears()
    tied = fxtie.transform(model, fxtie.Rule("1", "0", weight=Gain())).bfloat16()
    save(tied, path)
    again = load(path, linears().bfloat16())
    assert_same_tied(again, tied)
    assert next(iter(again.ties.children())).calls.dtype is torch.int64


def test_any_device(device, path):
    for name in ("learnable", "bank", "no for_target"):
        build, tied = tied_case(name)
        for source, target in (("cpu", device), (device, "cpu")):
            save(tied.to(source), path)
            again = load(path, build().to(target))
            assert {p.device.type for p in again.parameters()} == {torch.device(target).type}
            assert_same_tied(again.cpu(), copy.deepcopy(tied).cpu())


def test_compiled(path):
    tied = fxtie.transform(linears(), CASES["plain"][1]())
    save(torch.compile(tied, backend="eager"), path)
    assert_same_tied(load(path, linears()), tied)


def test_training_goes_on_the_same(path):
    build, tied = tied_case("learnable")
    save(tied, path)
    again, before = load(path, build()), snapshot(tied)
    for model in (tied, again):
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-6)
        for _ in range(3):
            optimizer.zero_grad()
            model(example(model)).square().mean().backward()
            optimizer.step()
        assert not torch.equal(model[0].weight, before["0.weight"])
    assert_same_state(again.state_dict(), tied.state_dict())


def test_values_bit_for_bit(path):
    _, tied = tied_case("plain")
    bits = torch.tensor([-(2**31), 2**31 - 1, 1, 0x7FC00001], dtype=torch.int32)  # -0.0, NaNs
    tied[0].bias.data.copy_(bits.view(torch.float32))
    save(tied, path)
    assert torch.equal(load(path, linears())[0].bias.view(torch.int32), bits)


def test_saving_leaves_the_random_state_alone(path):
    _, tied = tied_case("learnable")
    before = torch.get_rng_state()
    save(tied, path)
    assert torch.equal(torch.get_rng_state(), before)


def test_nothing_is_lost_by_a_refusal(path):
    """A transform can be given its name afterwards, in the same session."""

    def double(source):
        return source * 2

    tied = fxtie.transform(linears(), fxtie.Rule("1", "0", weight=double))
    assert "no registered name" in refused(tied, path)
    register("tests.files.double")(double)
    save(tied, path)
    assert_same_tied(load(path, linears()), tied)


def test_tensors_that_the_name_does_not_tell_of(path):
    grown = Growing()
    grown.late = nn.Parameter(torch.ones(()))
    tied = fxtie.transform(linears(), fxtie.Rule("1", "0", weight=grown))
    assert "__init__ or for_target" in refused(tied, path)


@pytest.mark.parametrize(
    "value, why",
    [
        (torch.zeros(2, dtype=torch.complex128), "complex128"),
        (torch.eye(2).to_sparse(), "layout"),
        (torch.zeros(1, device="meta"), "meta"),
        (torch.zeros(1).expand(3), "expanded"),
    ],
)
def test_tensors_that_a_file_can_not_hold(value, why, path):
    message = refused(buffer_case(value), path)
    assert "'odd'" in message and why in message


def test_extra_state(path):
    class Extra(nn.Linear):
        def get_extra_state(self):
            return {"a": 1}

        def set_extra_state(self, state):
            raise AssertionError

    tied = fxtie.transform(nn.Sequential(Extra(4, 4), nn.Linear(4, 4)), fxtie.Rule("1", "0"))
    assert "extra state of type dict" in refused(tied, path)


def test_not_a_tied_model(path):
    for save_it in (lambda: save(linears(), path), lambda: check_saveable(linears())):
        with pytest.raises(FxtieError, match="not a tied model"):
            save_it()
    assert not path.exists()


def test_a_model_tied_twice_loads_into_the_untied_one(tmp_path):
    layers = nn.Sequential(*(nn.Linear(4, 4) for _ in range(3)))
    once = fxtie.transform(layers, Rule("1", "0", weight=square))
    twice = fxtie.transform(once, Rule("2", "0", weight=neg))
    fxtie.save(twice, tmp_path / "twice.safetensors")
    x = torch.randn(3, 4)
    for fresh in (nn.Sequential(*(nn.Linear(4, 4) for _ in range(3))), once):
        again = fxtie.load(tmp_path / "twice.safetensors", fresh)
        assert torch.equal(again(x), twice(x))
        assert isinstance(again[2].weight, torch.Tensor) and "2.weight" not in again.state_dict()
