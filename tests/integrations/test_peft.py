"""PEFT: adapters on tied models, and rules for the factors of adapters."""

from __future__ import annotations

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from pretrained import LLAMA, assert_same_outputs, logits, tie

import fxtie
from fxtie.errors import FxtieError, Outdated

# PEFT puts adapters around layers, whose graphs then are none any more: they say so.
pytestmark = [
    pytest.mark.filterwarnings("ignore::fxtie.errors.Outdated"),
    pytest.mark.filterwarnings("ignore:.*is deprecated and will be removed in v6:FutureWarning"),
]
compat = pytest.mark.compat
PACKAGES = ("peft", "transformers")
ADAPTED = ["q_proj", "v_proj"]


@pytest.fixture(params=LLAMA.rules)
def tied(request):
    return tie(LLAMA.build(), LLAMA.rules[request.param])


def adapted(model, layers=ADAPTED):
    """The model with adapters that have an effect, in `eval()`."""
    config = LoraConfig(r=2, target_modules=layers, init_lora_weights=False)
    return get_peft_model(model, config).eval()


@compat("PEFT", "LoRA on derived layers and on their sources: outputs, training", *PACKAGES)
def test_adapters_on_a_tied_model(tied):
    plain = adapted(fxtie.materialize(tied))
    model = adapted(tied)
    adapters = {name: value for name, value in model.state_dict().items() if "lora" in name}
    assert adapters
    plain.load_state_dict(adapters, strict=False)
    torch.testing.assert_close(logits(model, LLAMA.inputs()), logits(plain, LLAMA.inputs()))
    model(**LLAMA.inputs()).logits.square().sum().backward()
    assert all(p.grad is not None for name, p in model.named_parameters() if "lora" in name)
    assert not any(p.requires_grad for name, p in model.named_parameters() if "lora" not in name)


@compat("PEFT", "the model that was tied gets no adapters", *PACKAGES)
def test_the_untied_model_stays_as_it_is():
    model = LLAMA.build()
    before, names = logits(model, LLAMA.inputs()), [*model.state_dict()]
    adapted(tie(model, LLAMA.rules["squared"]), [*ADAPTED, "up_proj"])
    assert [*model.state_dict()] == names
    assert torch.equal(logits(model, LLAMA.inputs()), before)


@compat("PEFT", "materialize, then merge_and_unload: the same outputs", *PACKAGES)
def test_adapters_are_merged_into_the_plain_model(tied, tmp_path):
    model = adapted(tied)
    expected = logits(model, LLAMA.inputs())
    merged = fxtie.materialize(model).merge_and_unload()
    torch.testing.assert_close(logits(merged, LLAMA.inputs()), expected)
    merged.save_pretrained(tmp_path)
    plain = LLAMA.cls.from_pretrained(tmp_path)
    assert_same_outputs(plain, merged, LLAMA.inputs())


def test_adapters_are_not_merged_into_derived_layers(tied):
    with pytest.raises(FxtieError, match=r"fxtie\.materialize\(peft_model\)\.merge_and_unload"):
        adapted(tied).merge_and_unload()


@compat("PEFT", "unload; merge_and_unload where no tied layer has an adapter", *PACKAGES)
def test_what_may_be_unloaded(tied, tmp_path):
    before = logits(tied, LLAMA.inputs())
    assert torch.equal(logits(adapted(tied).unload(), LLAMA.inputs()), before)
    model = adapted(tied, ["lm_head"])
    expected = logits(model, LLAMA.inputs())
    merged = model.merge_and_unload()
    torch.testing.assert_close(logits(merged, LLAMA.inputs()), expected)
    merged.save_pretrained(tmp_path)
    again = fxtie.from_pretrained(tmp_path, LLAMA.cls)
    assert_same_outputs(again, merged, LLAMA.inputs())


@compat("PEFT", "save_pretrained of the adapters; on the tied and on the plain model", *PACKAGES)
def test_adapters_are_saved(tied, tmp_path):
    tied.save_pretrained(tmp_path / "base")
    model = adapted(tied)
    expected = logits(model, LLAMA.inputs())
    model.save_pretrained(tmp_path / "adapters")
    for base in (
        fxtie.from_pretrained(tmp_path / "base", LLAMA.cls),
        LLAMA.cls.from_pretrained(tmp_path / "base"),
    ):
        again = PeftModel.from_pretrained(base, tmp_path / "adapters").eval()
        torch.testing.assert_close(logits(again, LLAMA.inputs()), expected)


@compat("PEFT", "add_adapter of transformers: save_pretrained writes adapters only", *PACKAGES)
def test_an_adapter_that_transformers_adds(tied, tmp_path, monkeypatch):
    # transformers 5.24 asks for a version of PEFT that there is not yet.
    monkeypatch.setattr("transformers.integrations.peft.check_peft_version", lambda **_: None)
    tied.add_adapter(LoraConfig(r=2, target_modules=ADAPTED, init_lora_weights=False))
    tied.save_pretrained(tmp_path)
    names = {path.name for path in tmp_path.iterdir()}
    assert "adapter_model.safetensors" in names
    assert not names & {"fxtie.json", "model.safetensors"}


@compat("PEFT", "rules for the factors: Tied-LoRA, one A and one B for all layers", *PACKAGES)
def test_tied_lora():
    model = adapted(LLAMA.build(), ["q_proj"])
    layer = "base_model.model.model.layers.{}.self_attn.q_proj"
    rules = fxtie.Rule(layer.format("*") + ".lora_*", layer.format(0) + ".lora_{1}")
    tied = fxtie.transform(model, rules)
    trained = [name for name, p in tied.named_parameters() if p.requires_grad]
    assert len(trained) == 2
    fxtie.verify(model, tied, **LLAMA.inputs())


def test_the_graph_of_an_adapted_layer_says_that_it_is_none_any_more():
    with pytest.warns(Outdated, match=r"LlamaAttention\.q_proj was replaced"):
        logits(adapted(tie(LLAMA.build(), LLAMA.rules["squared"])), LLAMA.inputs())
