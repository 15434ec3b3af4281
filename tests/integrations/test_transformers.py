"""Tied models of transformers: saved, loaded, generated with, resized, changed after tying."""

from __future__ import annotations

import json
import pickle

import pytest
import torch
from pretrained import (
    KINDS,
    LLAMA,
    TOKENS,
    WIDTH,
    assert_plain_form,
    assert_same_outputs,
    logits,
    names_in,
    same_state,
    tie,
)
from safetensors.torch import load_file
from torch import nn
from transformers import AutoModelForCausalLM, LlamaModel

import fxtie
from fxtie.errors import FxtieError
from fxtie.integrations.transformers import rules_of
from fxtie.rules.reader import read_rules
from fxtie.transforms import LowRank, fake_quant, mean

compat = pytest.mark.compat
PACKAGES = ("transformers", "safetensors")
FILES = {"fxtie.json", "fxtie.safetensors"}


def plain_of(cls, folder):
    """The plain model of a folder, which was loaded without a complaint."""
    model, info = cls.from_pretrained(folder, output_loading_info=True)
    assert not any(info.values()), info
    assert type(model) is cls
    return model


# --- The round trip ---------------------------------------------------------------------------


@compat("transformers", "outputs and gradients equal the oracle's", *PACKAGES)
def test_a_tied_model_equals_the_oracle(kind, rules):
    model = kind.build()
    fxtie.verify(model, tie(model, rules), **kind.inputs())


@compat("transformers", "save_pretrained; the plain class loads it: the same outputs", *PACKAGES)
def test_what_is_saved_is_a_checkpoint_of_the_plain_class(kind, tied, tmp_path):
    tied.save_pretrained(tmp_path)
    plain = plain_of(kind.cls, tmp_path)
    assert_plain_form(plain, tied, kind.inputs())


@compat("transformers", "fxtie.from_pretrained: the tied model again, exactly", *PACKAGES)
def test_the_tied_model_comes_back(kind, tied, tmp_path):
    tied.save_pretrained(tmp_path)
    again = fxtie.from_pretrained(tmp_path, kind.cls)
    assert same_state(again, tied)
    assert isinstance(again, kind.cls)
    assert fxtie.report(again).targets == fxtie.report(tied).targets
    assert_same_outputs(again, tied, kind.inputs())


@compat("transformers", "the same with several shards (max_shard_size)", *PACKAGES)
def test_shards(kind, tmp_path):
    tied = tie(kind.build(), kind.rules["learned"])
    tied.save_pretrained(tmp_path, max_shard_size="5KB")
    assert "model.safetensors" not in names_in(tmp_path)
    plain = plain_of(kind.cls, tmp_path)
    assert_plain_form(plain, tied, kind.inputs())
    assert same_state(fxtie.from_pretrained(tmp_path, kind.cls), tied)


def test_saving_changes_nothing(tmp_path):
    tied = tie(LLAMA.build(), LLAMA.rules["learned"])
    names, values = [*tied.state_dict()], [value.clone() for value in tied.state_dict().values()]
    tied.save_pretrained(tmp_path)
    assert [*tied.state_dict()] == names
    assert all(map(torch.equal, tied.state_dict().values(), values))


def test_the_files_of_fxtie_are_data(tmp_path):
    tied = tie(LLAMA.build(), LLAMA.rules["learned"])
    tied.save_pretrained(tmp_path)
    record = json.loads((tmp_path / "fxtie.json").read_text())
    rules, modules = read_rules(record["rules"])
    assert {rule.target for rule in rules} == set(fxtie.report(tied).targets)
    assert list(modules) == record["modules"]
    assert load_file(tmp_path / "fxtie.safetensors").keys() == {
        name for name in tied.state_dict() if name.startswith("ties.")
    }
    assert "fxtie" not in (tmp_path / "config.json").read_text()


def test_without_tensors_of_their_own_ties_need_no_second_file(tmp_path):
    tie(LLAMA.build(), LLAMA.rules["squared"]).save_pretrained(tmp_path)
    assert names_in(tmp_path) & FILES == {"fxtie.json"}


@pytest.mark.parametrize("through", [lambda m: pickle.loads(pickle.dumps(m)), nn.Module.eval])
def test_auto_classes_and_copies(through, tmp_path):
    tied = through(tie(LLAMA.build(), LLAMA.rules["learned"]))
    tied.save_pretrained(tmp_path)
    again = fxtie.from_pretrained(str(tmp_path), AutoModelForCausalLM, torch_dtype=torch.float32)
    assert same_state(again, tied)


def test_only_the_main_process_writes(tmp_path):
    tied = tie(LLAMA.build(), LLAMA.rules["learned"])
    tied.save_pretrained(tmp_path, is_main_process=False)
    assert not names_in(tmp_path)


def test_a_state_dict_that_is_given_is_what_is_saved(tmp_path):
    """As a Trainer gives it that has gathered it from several devices."""
    tied = tie(LLAMA.build(), LLAMA.rules["learned"])
    given = {name: value + 0.01 for name, value in tied.state_dict().items()}
    tied.save_pretrained(tmp_path, state_dict=given)
    again = fxtie.from_pretrained(tmp_path, LLAMA.cls)
    assert all(torch.equal(given[name], value) for name, value in again.state_dict().items())
    plain = plain_of(LLAMA.cls, tmp_path)
    assert_same_outputs(plain, again, LLAMA.inputs())


@pytest.mark.parametrize("transform", [fake_quant(4), LowRank(2)], ids=repr)
def test_the_stored_value_of_a_self_derived_tensor_is_kept(transform, tmp_path):
    rule = fxtie.Rule("model.layers.*.mlp", "model.layers.{0}.mlp", weight=transform)
    tied = tie(LLAMA.build(), rule)
    tied.save_pretrained(tmp_path)
    assert same_state(fxtie.from_pretrained(tmp_path, LLAMA.cls), tied)
    name = "model.layers.1.mlp.up_proj.weight"
    saved = load_file(tmp_path / "model.safetensors")[name]
    assert torch.equal(saved, tied.get_submodule("model.layers.1.mlp.up_proj").weight)
    assert not torch.equal(saved, tied.state_dict()[name])


def test_a_half_precision_model(tmp_path):
    tied = tie(LLAMA.build().to(torch.bfloat16), LLAMA.rules["learned"])
    tied.save_pretrained(tmp_path)
    assert same_state(fxtie.from_pretrained(tmp_path, LLAMA.cls), tied)


def test_a_model_without_ties_of_its_own_in_another_precision(tmp_path):
    tied = tie(LLAMA.build(), LLAMA.rules["squared"])
    tied.save_pretrained(tmp_path)
    half = fxtie.from_pretrained(tmp_path, LLAMA.cls, dtype=torch.bfloat16)
    half.save_pretrained(tmp_path)
    again = fxtie.from_pretrained(tmp_path, LLAMA.cls, dtype=torch.float32)
    assert again.dtype == torch.float32
    assert same_state(again, half.float())


def test_shared_learned_tensors_are_written_once(tmp_path):
    shared = LowRank(2).for_target(torch.empty(2 * WIDTH, WIDTH))
    names = [f"model.layers.{i}.mlp.up_proj.weight" for i in range(3)]
    tied = tie(LLAMA.build(), [fxtie.Tie(name, names[0], shared) for name in names[1:]])
    tied.save_pretrained(tmp_path)
    assert same_state(fxtie.from_pretrained(tmp_path, LLAMA.cls), tied)


def test_a_part_is_saved_as_a_plain_model(tmp_path):
    tied = tie(LLAMA.build(), LLAMA.rules["learned"])
    tied.model.save_pretrained(tmp_path)
    assert not names_in(tmp_path) & FILES
    plain = plain_of(LlamaModel, tmp_path)
    outputs = [model(**LLAMA.inputs()).last_hidden_state for model in (plain, tied.model)]
    assert torch.equal(*outputs)


def test_a_derived_buffer_that_is_not_persistent_is_not_written(tmp_path):
    model = LLAMA.build()
    for i in (0, 1):
        model.model.layers[i].register_buffer("mask", torch.ones(2) + i, persistent=False)
    rule = fxtie.Rule("model.layers.1.mask", "model.layers.0.mask")
    tied = fxtie.transform(model, [rule, LLAMA.rules["squared"]])
    tied.save_pretrained(tmp_path)
    plain_of(LLAMA.cls, tmp_path)


# --- What is refused --------------------------------------------------------------------------


def test_what_would_write_another_checkpoint_is_refused(tmp_path):
    tied = tie(LLAMA.build(), LLAMA.rules["squared"])
    with pytest.raises(FxtieError, match=r"Use tied\.push_to_hub\(repo_id\)"):
        tied.save_pretrained(tmp_path, push_to_hub=True)
    with pytest.raises(FxtieError, match="A distributed checkpoint would lack"):
        tied.save_pretrained(tmp_path, distributed_checkpoint=True)
    tied.hf_quantizer = object()
    with pytest.raises(FxtieError, match="a tied model that is quantized"):
        tied.save_pretrained(tmp_path)
    assert not names_in(tmp_path)


# --- transformers' own ties -------------------------------------------------------------------

HEAD, TABLE = "lm_head.weight", "model.embed_tokens.weight"
OWN = {
    "same": (fxtie.Rule("lm_head", "model.embed_tokens"), {HEAD}),
    "squared": (fxtie.Rule("lm_head", "model.embed_tokens", torch.square), {HEAD}),
    "embeddings": (fxtie.Rule("model.embed_tokens", fxtie.Bank(2, (TOKENS, WIDTH)), mean()), set()),
}


@pytest.fixture(params=OWN)
def own(request):
    """A model whose head transformers ties, and rules for one end of it."""
    rule, targets = OWN[request.param]
    model = LLAMA.build(tie_word_embeddings=True)
    return model, tie(model, rule), targets or {HEAD, TABLE}


@compat("transformers", "tie_word_embeddings: the other end follows what rules derive", *PACKAGES)
def test_the_other_end_follows(own):
    model, tied, targets = own
    assert set(fxtie.report(tied).targets) == targets
    fxtie.verify(model, tied, **LLAMA.inputs())


@compat("transformers", "tie_weights, of a tied model", *PACKAGES)
def test_tie_weights_is_harmless(own):
    _, tied, _ = own
    before = logits(tied, LLAMA.inputs())
    tied.tie_weights()
    tied.tie_weights(recompute_mapping=False)
    assert torch.equal(logits(tied, LLAMA.inputs()), before)
    assert tied.state_dict().keys() & {HEAD, TABLE} == {HEAD, TABLE} - set(
        fxtie.report(tied).targets
    )


def test_own_ties_are_saved_as_well(own, tmp_path):
    _, tied, _ = own
    tied.save_pretrained(tmp_path)
    for again in (LLAMA.cls.from_pretrained(tmp_path), fxtie.from_pretrained(tmp_path, LLAMA.cls)):
        assert_same_outputs(again, tied, LLAMA.inputs())


def test_rules_of_gives_them_as_rules():
    model = LLAMA.build(tie_word_embeddings=True)
    rules = rules_of(model)
    assert [(rule.target, rule.sources) for rule in rules] == [(HEAD, (TABLE,))]
    tied = fxtie.transform(model, rules)
    assert HEAD not in tied.state_dict()
    assert sum(p.numel() for p in tied.parameters()) == sum(p.numel() for p in model.parameters())
    assert rules_of(LLAMA.build()) == []


@compat("transformers", "fxtie.suggest tells of transformers' own ties", *PACKAGES)
@pytest.mark.parametrize("shared", [True, False])
def test_suggestions_leave_them_alone(shared):
    model = LLAMA.build(tie_word_embeddings=True)
    if not shared:  # until the next tie_weights
        model.lm_head.weight = nn.Parameter(model.lm_head.weight.detach().clone())
    found = fxtie.suggest(model)
    assert f"tied already: {HEAD} = {TABLE}" in str(found)
    assert [(tie.target, tie.sources) for tie in found.known] == [(HEAD, (TABLE,))]
    assert not {"lm_head", "model.embed_tokens"} & {name for one in found for name in one.targets}
    assert "lm_head" in {name for one in fxtie.suggest(LLAMA.build()) for name in one.targets}


@compat("transformers", "resize_token_embeddings: a derived head follows", *PACKAGES)
@pytest.mark.parametrize("size", [TOKENS + 6, TOKENS - 6])
@pytest.mark.parametrize("flag", [True, False])
def test_a_derived_head_follows_when_embeddings_are_resized(flag, size):
    rule = fxtie.Rule("lm_head", "model.embed_tokens", torch.square)
    tied = fxtie.transform(LLAMA.build(tie_word_embeddings=flag), rule)
    tied.resize_token_embeddings(size, mean_resizing=False)
    assert HEAD not in tied.state_dict()
    assert torch.equal(tied.lm_head.weight, tied.model.embed_tokens.weight.square())
    assert (
        logits(tied, {"input_ids": torch.arange(8)[None]}).shape[-1]
        == size
        == len(tied.lm_head.weight)
    )


@pytest.mark.parametrize(
    "rule",
    [
        fxtie.Rule("model.embed_tokens", fxtie.Bank(2, (TOKENS, WIDTH)), mean()),
        fxtie.Rule("lm_head", "model.embed_tokens", LowRank(2)),
        fxtie.Rule("lm_head", fxtie.Bank(2, (TOKENS, WIDTH)), mean()),
    ],
)
def test_what_would_not_be_resized_is_refused(rule):
    tied = tie(LLAMA.build(), rule)
    with pytest.raises(FxtieError, match="Derived tensors would not be resized to 70 tokens"):
        tied.resize_token_embeddings(TOKENS + 6)
    assert len(tied.model.embed_tokens.weight) == tied.config.vocab_size == TOKENS
    tied.resize_token_embeddings(TOKENS)
    tied.resize_token_embeddings(pad_to_multiple_of=TOKENS)


# --- What is changed after tying --------------------------------------------------------------


def test_a_model_that_is_put_into_a_tied_one_stays_what_it_is():
    tied = tie(LLAMA.build(), LLAMA.rules["repeated"])
    other = LLAMA.build(initializer_range=0.1).model
    tied.model = other
    assert type(other) is LlamaModel
    assert torch.equal(
        logits(tied, LLAMA.inputs()), tied.lm_head(other(**LLAMA.inputs()).last_hidden_state)
    )


FLAGS = {
    "eager attention": lambda m: m.set_attn_implementation("eager"),
    "output_attentions": lambda m: (
        m.set_attn_implementation("eager"),
        setattr(m.config, "output_attentions", True),
    ),
    "output_hidden_states": lambda m: setattr(m.config, "output_hidden_states", True),
    "use_cache": lambda m: setattr(m.config, "use_cache", False),
}


@pytest.mark.parametrize("flag", FLAGS)
@compat("transformers", "set_attn_implementation and flags of the config, after tying", *PACKAGES)
def test_flags_that_are_changed_after_tying_take_effect(kind, flag):
    model = kind.build()
    tied = tie(model, kind.rules["squared"])
    before = [[*one(**kind.inputs())] for one in (model, tied)]  # its graphs have run
    FLAGS[flag](tied)  # and of the model, which has the same config
    after = [[*one(**kind.inputs())] for one in (model, tied)]
    assert before[0] == before[1]
    assert after[0] == after[1]
    if kind is LLAMA and flag != "eager attention":
        assert before != after
    plain = fxtie.materialize(tied)
    assert_same_outputs(tied, plain, kind.inputs())


@compat(
    "transformers", "attentions and hidden states, of the tied and of the untied model", *PACKAGES
)
def test_outputs_are_captured_once_in_each_model(kind):
    """transformers puts hooks for that on modules in the first call that asks for it."""
    model = kind.build(attn_implementation="eager")
    tied = tie(model, kind.rules["squared"])
    ask = {"output_attentions": True, "output_hidden_states": True}
    first, second = (one(**kind.inputs(), **ask) for one in (tied, model))
    for key in first:
        if isinstance(first[key], tuple):
            assert len(first[key]) == len(second[key]) == len(tied(**kind.inputs(), **ask)[key])


@compat("transformers", "generate: greedy, sampling and beams", *PACKAGES)
@pytest.mark.parametrize(
    "how", [{}, {"do_sample": True}, {"num_beams": 2}], ids=["greedy", "sampling", "beams"]
)
@pytest.mark.parametrize("name", ["decoder (Llama)", "encoder-decoder (T5)"])
def test_generate(name, how):
    kind = KINDS[name]
    tied = tie(kind.build(), kind.rules["learned"])
    tokens = []
    for model in (tied, fxtie.materialize(tied)):
        torch.manual_seed(0)
        ids = {"input_ids": kind.inputs()["input_ids"]}
        tokens.append(model.generate(**ids, max_new_tokens=8, pad_token_id=0, **how))
    assert torch.equal(*tokens)


@compat("transformers", "activation checkpointing: the same gradients", *PACKAGES)
def test_gradient_checkpointing(kind):
    gradients = []
    for checkpointing in (False, True):
        tied = tie(kind.build(), kind.rules["learned"]).train()
        if checkpointing:
            enable = (
                getattr(tied, "activation_checkpointing_enable", None)
                or tied.gradient_checkpointing_enable
            )
            enable()
        torch.manual_seed(0)
        tied(**kind.inputs()).logits.square().sum().backward()
        gradients.append([p.grad for p in tied.parameters() if p.grad is not None])
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)
