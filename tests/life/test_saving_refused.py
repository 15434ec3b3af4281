"""Files of tied models that `fxtie.load` refuses: damaged, forged, of another model."""

from __future__ import annotations

import re

import pytest
import torch
from saved_cases import (
    Shared,
    assert_refused,
    assert_same_state,
    buffer_case,
    buffered_linears,
    linears,
    tied_case,
)
from torch import nn

from fxtie.errors import FileError
from fxtie.life.saving import load, save


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


def test_nothing_is_unpickled_or_imported(path, monkeypatch):
    _, tied = tied_case("learnable")
    save(tied, path)
    model = linears()

    def refuse(*args, **kwargs):
        raise AssertionError("a file must not lead here")

    for name in ("pickle.load", "pickle.loads", "torch.load", "importlib.import_module"):
        monkeypatch.setattr(name, refuse)
    assert_same_state(load(path, model).state_dict(), tied.state_dict())
