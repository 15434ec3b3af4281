"""Tied models in folders that transformers writes: read again, or refused."""

from __future__ import annotations

import pytest
import torch
from pretrained import LLAMA, names_in, same_state, tie
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import LlamaModel

import fxtie
from fxtie.errors import FileError, FxtieError
from fxtie.transforms import LowRank, fake_quant


@pytest.fixture
def saved(tmp_path):
    """The folder of a tied model whose ties have tensors of their own."""
    tie(LLAMA.build(), LLAMA.rules["learned"]).save_pretrained(tmp_path)
    return tmp_path


def refused(folder, cls=LLAMA.cls):
    with pytest.raises(FileError) as error:
        fxtie.from_pretrained(folder, cls)
    return str(error.value)


def test_a_checkpoint_of_others_is_said_to_be_untied(tmp_path):
    LLAMA.build().save_pretrained(tmp_path)
    assert "has no fxtie.json: its model is not tied. Load it by LlamaForCausalLM." in refused(
        tmp_path
    )


def test_a_checkpoint_that_was_changed(saved):
    name = "model.layers.1.self_attn.q_proj.weight"
    tensors = load_file(saved / "model.safetensors")
    tensors[name] += 1e-4
    save_file(tensors, saved / "model.safetensors", {"format": "pt"})
    assert f"{name} of its checkpoint are not what the ties make of the other" in refused(saved)


def test_a_file_that_is_missing(saved):
    (saved / "fxtie.safetensors").unlink()
    assert "fxtie.safetensors is missing, which has values for ties." in refused(saved)


def test_a_file_that_is_damaged(saved):
    path = saved / "fxtie.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    assert "its checksum differs" in refused(saved)


def test_a_file_of_another_model(saved):
    tensors = {"ties.other": torch.zeros(2)}
    fxtie.life.container.write(saved / "fxtie.safetensors", tensors, {})
    assert "are those of another model" in refused(saved)


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("{", "it is no JSON"),
        ("[]", "it has the format None, and this fxtie reads 1"),
        ('{"version": 2}', "it has the format 2, and this fxtie reads 1"),
        ('{"version": 1}', "its precision is damaged"),
        ('{"version": 1, "precision": 0.1}', "A table is needed here, not None"),
        ('{"version": 1, "precision": 0.1, "rules": {"rule": []}}', "A list of one or more rules"),
    ],
)
def test_a_record_that_is_damaged(saved, text, fault):
    (saved / "fxtie.json").write_text(text)
    assert fault in refused(saved)


def test_another_class(saved):
    assert "'model.layers.1.self_attn.q_proj.weight' is not a tensor of the model" in refused(
        saved, LlamaModel
    )


def test_ties_that_can_not_be_saved_are_refused_before_anything_is_written(tmp_path):
    tied = fxtie.transform(LLAMA.build(), fxtie.Rule("lm_head", "lm_head", weight=lambda w: -w))
    with pytest.raises(FileError, match="has no registered name"):
        tied.save_pretrained(tmp_path)
    assert not names_in(tmp_path)


def test_a_plain_checkpoint_is_loaded_with_the_tensors_that_belong_to_it(tmp_path):
    tied = tie(LLAMA.build(), LLAMA.rules["learned"])
    states = []
    for i in range(3):
        for parameter in tied.parameters():
            nn.init.normal_(parameter)
        tied.save_pretrained(tmp_path / str(i))
        states.append({name: value.clone() for name, value in tied.state_dict().items()})
    for i in (1, 2, 0):
        tied.load_state_dict(load_file(tmp_path / str(i) / "model.safetensors"), strict=False)
        assert all(torch.equal(states[i][n], value) for n, value in tied.state_dict().items())


@pytest.mark.parametrize("transform", [fake_quant(4), LowRank(2)], ids=repr)
def test_a_plain_checkpoint_does_not_overwrite_what_it_was_derived_from(transform, tmp_path):
    rule = fxtie.Rule("model.layers.*.mlp", "model.layers.{0}.mlp", weight=transform)
    tied = tie(LLAMA.build(), rule)
    tied.save_pretrained(tmp_path)
    again = fxtie.from_pretrained(tmp_path, LLAMA.cls)
    again.load_state_dict(load_file(tmp_path / "model.safetensors"), strict=False)
    assert same_state(again, tied)


@pytest.mark.parametrize("transform", [fake_quant(4), LowRank(2)], ids=repr)
def test_a_plain_checkpoint_whose_tensors_are_not_known_is_refused(transform, tmp_path):
    rule = fxtie.Rule("model.layers.*.mlp", "model.layers.{0}.mlp", weight=transform)
    tie(LLAMA.build(), rule).save_pretrained(tmp_path)
    fresh = fxtie.transform(LLAMA.build(initializer_range=0.1), rule)
    before = {name: value.clone() for name, value in fresh.state_dict().items()}
    with pytest.raises(FxtieError, match=r"fxtie\.from_pretrained\(folder, LlamaForCausalLM\)"):
        fresh.load_state_dict(load_file(tmp_path / "model.safetensors"), strict=False)
    assert all(torch.equal(before[name], value) for name, value in fresh.state_dict().items())


def test_a_state_dict_of_the_tied_model_is_loaded_as_it_is():
    tied = tie(LLAMA.build(), LLAMA.rules["learned"])
    state = {name: value + 1 for name, value in tied.state_dict().items()}
    for strict in (True, False):
        other = fxtie.transform(LLAMA.build(), LLAMA.rules["learned"])
        other.load_state_dict(state, strict=strict)
        assert all(torch.equal(state[name], value) for name, value in other.state_dict().items())
