"""PEFT: adapters on tied models, and rules for the factors of adapters."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from peft import LoraConfig, PeftModel, VeraConfig, get_peft_model
from pretrained import KINDS, LLAMA, WIDTH, assert_same_outputs, logits, tie
from safetensors.torch import load_file

import fxtie
from fxtie.errors import FxtieError, Outdated
from fxtie.tied.state import state_of
from fxtie.transforms import ChannelScale

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


MIXTRAL = KINDS["mixture of experts (Mixtral)"]


def linears(kind):
    """All layers that may have adapters; of a mixture of experts those around the experts."""
    return ["q_proj", "k_proj", "v_proj", "o_proj"] if kind is MIXTRAL else "all-linear"


def adapted(model, layers=ADAPTED, **more):
    """The model with adapters that have an effect, in `eval()`."""
    config = LoraConfig(r=2, lora_alpha=2, target_modules=layers, init_lora_weights=False, **more)
    return get_peft_model(model, config).eval()


@compat("PEFT", "LoRA on derived layers and on their sources: outputs, training", *PACKAGES)
@pytest.mark.parametrize("rules", LLAMA.rules)
def test_adapters_on_a_tied_model(kind, rules):
    tied = tie(kind.build(), kind.rules[rules])
    plain = adapted(fxtie.materialize(tied), linears(kind))
    model = adapted(tied, linears(kind))
    adapters = {name: value for name, value in model.state_dict().items() if "lora" in name}
    assert adapters
    plain.load_state_dict(adapters, strict=False)
    torch.testing.assert_close(logits(model, kind.inputs()), logits(plain, kind.inputs()))
    model(**kind.inputs()).logits.square().sum().backward()
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
def test_adapters_are_merged_into_the_plain_model(kind, tmp_path):
    model = adapted(tie(kind.build(), kind.rules["learned"]), linears(kind))
    expected = logits(model, kind.inputs())
    merged = fxtie.materialize(model).merge_and_unload()
    torch.testing.assert_close(logits(merged, kind.inputs()), expected, rtol=1e-4, atol=1e-5)
    merged.save_pretrained(tmp_path)
    plain = kind.cls.from_pretrained(tmp_path)
    assert_same_outputs(plain, merged, kind.inputs())


@compat(
    "PEFT", "merging into derived layers and into sources is refused, before it is done", *PACKAGES
)
@pytest.mark.parametrize("way", ["merge_adapter", "merge_and_unload"])
@pytest.mark.parametrize(
    ("layer", "what"), [(0, "is a source of derived tensors"), (1, "is derived")]
)
def test_adapters_are_not_merged_into_tied_layers(layer, what, way):
    tied = tie(LLAMA.build(), LLAMA.rules["learned"])
    model = pickle.loads(pickle.dumps(adapted(tied, ["v_proj"], layers_to_transform=[layer])))
    expected = logits(model, LLAMA.inputs())
    with pytest.raises(FxtieError, match=f"model.layers.{layer}.self_attn.v_proj.weight' {what}"):
        getattr(model, way)()
    assert torch.equal(logits(model, LLAMA.inputs()), expected)
    merged = fxtie.materialize(model).merge_and_unload()
    torch.testing.assert_close(logits(merged, LLAMA.inputs()), expected)


def test_adapters_of_tied_parameters_are_refused():
    tied = tie(MIXTRAL.build(), MIXTRAL.rules["repeated"])
    name = "mlp.experts.gate_up_proj"
    model = adapted(tied, ["q_proj"], layers_to_transform=[0], target_parameters=[name])
    with pytest.raises(FxtieError, match=r"'model.layers.1.mlp.experts.gate_up_proj' can't be"):
        logits(model, MIXTRAL.inputs())


def test_a_tied_model_that_is_tied_again_knows_all_of_its_sources():
    once = fxtie.transform(LLAMA.build(), fxtie.Rule("model.layers.1.mlp", "model.layers.0.mlp"))
    tied = fxtie.transform(once, fxtie.Rule("model.layers.3.mlp", "model.layers.2.mlp"))
    for layer in range(4):
        with pytest.raises(FxtieError, match=f"model.layers.{layer}.mlp.up_proj.weight' is"):
            adapted(copy.deepcopy(tied), ["up_proj"], layers_to_transform=[layer]).merge_adapter()


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


FACTORS = "base_model.model.model.layers.{}.self_attn.{}.lora_{}"


@compat("PEFT", "rules for the factors: Tied-LoRA, one A and one B for all layers", *PACKAGES)
def test_tied_lora():
    model = adapted(LLAMA.build(), ["q_proj"])
    rules = fxtie.Rule(FACTORS.format("*", "q_proj", "*"), FACTORS.format(0, "q_proj", "{1}"))
    tied = fxtie.transform(model, rules)
    trained = [name for name, p in tied.named_parameters() if p.requires_grad]
    assert len(trained) == 2
    fxtie.verify(model, tied, **LLAMA.inputs())


def vera():
    """A model with VeRA by rules, with random scales, and its shared matrices."""
    shared = fxtie.Tensors(A=(2, WIDTH), B=(WIDTH, 2), frozen=("A", "B"))
    rules = [
        fxtie.Rule(FACTORS.format("*", layer, f"{factor}.default"), shared[factor], ChannelScale())
        for layer in ("q_proj", "o_proj")
        for factor in ("A", "B")
    ]
    model = adapted(LLAMA.build(), ["q_proj", "o_proj"])
    return model, tie(model, rules), shared


@compat("PEFT", "rules for the factors: VeRA, the same outputs and gradients as PEFT's", *PACKAGES)
def test_vera():
    model, tied, shared = vera()
    fxtie.verify(model, tied, **LLAMA.inputs())
    trained = {name: p for name, p in tied.named_parameters() if p.requires_grad}
    assert all(name.startswith("ties.") for name in trained)
    assert sum(p.numel() for p in trained.values()) == 4 * 2 * (2 + WIDTH)
    config = VeraConfig(r=2, target_modules=["q_proj", "o_proj"])
    peft = get_peft_model(LLAMA.build(), config).eval()
    with torch.no_grad():
        peft.base_model.vera_A["default"].copy_(shared.A)
        peft.base_model.vera_B["default"].copy_(shared.B)
    scales = {}
    for name, layer in peft.named_modules():
        if hasattr(layer, "vera_lambda_d"):
            for factor, own in (("A", layer.vera_lambda_d), ("B", layer.vera_lambda_b)):
                derived = state_of(tied.get_submodule(f"{name}.lora_{factor}.default")).derived
                scales[derived["weight"].transform.scale] = own["default"]
    assert len(scales) == len(trained)
    with torch.no_grad():
        for scale, own in scales.items():
            own.copy_(scale)
    torch.testing.assert_close(logits(tied, LLAMA.inputs()), logits(peft, LLAMA.inputs()))
    for one in (tied, peft):
        one(**LLAMA.inputs()).logits.square().sum().backward()
    for scale, own in scales.items():
        torch.testing.assert_close(scale.grad, own.grad)


@compat("PEFT", "adapters that rules derive are saved as adapters that PEFT loads", *PACKAGES)
def test_derived_adapters_are_saved_as_plain_ones(tmp_path):
    _, tied, _ = vera()
    tied.save_pretrained(tmp_path)
    assert not any("ties" in name for name in load_file(tmp_path / "adapter_model.safetensors"))
    again = PeftModel.from_pretrained(LLAMA.build(), tmp_path).eval()
    torch.testing.assert_close(logits(again, LLAMA.inputs()), logits(tied, LLAMA.inputs()))
    merged = fxtie.materialize(tied).merge_and_unload()
    torch.testing.assert_close(logits(merged, LLAMA.inputs()), logits(tied, LLAMA.inputs()))


def test_the_graph_of_an_adapted_layer_says_that_it_is_none_any_more():
    with pytest.warns(Outdated, match=r"LlamaAttention\.q_proj was replaced"):
        logits(adapted(tie(LLAMA.build(), LLAMA.rules["squared"])), LLAMA.inputs())
