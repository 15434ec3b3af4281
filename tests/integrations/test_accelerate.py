"""accelerate: prepared, saved, spread over devices and offloaded."""

from __future__ import annotations

import accelerate
import pytest
import torch
from accelerate.state import AcceleratorState
from pretrained import KINDS, LLAMA, assert_plain_form, logits, tie
from safetensors.torch import load_file
from torch.utils.data import default_collate

import fxtie
from fxtie.errors import FxtieError, PlanError

compat = pytest.mark.compat


@pytest.fixture(params=LLAMA.rules)
def rules(request):
    return LLAMA.rules[request.param]


@pytest.fixture
def tied(rules):
    return tie(LLAMA.build(), rules)


@pytest.fixture(params=["no", "bf16"])
def accelerator(request):
    AcceleratorState._reset_state(reset_partial_state=True)
    yield accelerate.Accelerator(cpu=True, mixed_precision=request.param)
    AcceleratorState._reset_state(reset_partial_state=True)


def step(accelerator, kind, model, optimizer):
    accelerator.backward(model(**default_collate(kind.examples(4))).loss)
    optimizer.step()
    optimizer.zero_grad()


def values(model):
    return [value.clone() for value in model.state_dict().values()]


@compat("accelerate", "prepare, save_state, load_state: the weights of an undisturbed run")
@pytest.mark.parametrize(
    ("kind", "name"),
    [(LLAMA, name) for name in LLAMA.rules]
    + [(kind, "learned") for kind in KINDS.values() if kind is not LLAMA],
    ids=lambda value: getattr(value, "layers", value),
)
def test_a_state_is_saved_and_loaded(accelerator, kind, name, tmp_path):
    tied = tie(kind.build(), kind.rules[name])
    optimizer = torch.optim.AdamW(tied.parameters(), 1e-2)
    model, optimizer = accelerator.prepare(tied.train(), optimizer)
    step(accelerator, kind, model, optimizer)
    accelerator.save_state(tmp_path)
    step(accelerator, kind, model, optimizer)
    undisturbed = values(tied)
    accelerator.load_state(tmp_path)
    step(accelerator, kind, model, optimizer)
    assert all(map(torch.equal, values(tied), undisturbed))


@compat("accelerate", "unwrap_model(...).save_pretrained with get_state_dict")
def test_an_unwrapped_model_is_saved(accelerator, tied, tmp_path):
    model = accelerator.prepare(tied)
    unwrapped = accelerator.unwrap_model(model)
    unwrapped.save_pretrained(
        tmp_path,
        is_main_process=accelerator.is_main_process,
        save_function=accelerator.save,
        state_dict=accelerator.get_state_dict(model),
    )
    assert all(
        map(torch.equal, values(fxtie.from_pretrained(tmp_path, LLAMA.cls)), values(unwrapped))
    )


@compat("accelerate", "save_model: the stored tensors, for load_checkpoint_in_model")
def test_stored_tensors_are_saved_and_loaded(accelerator, tied, rules, tmp_path):
    accelerator.save_model(tied, tmp_path)
    assert load_file(tmp_path / "model.safetensors").keys() == tied.state_dict().keys()
    other = fxtie.transform(LLAMA.build(initializer_range=0.1), rules)
    accelerate.load_checkpoint_in_model(other, tmp_path, strict=True)
    assert all(map(torch.equal, values(other), values(tied)))


def everywhere(model):
    """A device map of the parts of a model."""
    layers = [f"model.layers.{i}" for i in range(4)]
    parts = ["model.embed_tokens", *layers, "model.norm", "model.rotary_emb", "lm_head", "ties"]
    return dict.fromkeys([part for part in parts if part != "ties" or hasattr(model, part)], "cpu")


MAPS = {  # of layers 0 to 3, of which 1 and 3 are derived
    "sources on disk": {"model.layers.0": "disk", "model.layers.2": "disk"},
    "readers on disk": {"model.layers.1": "disk", "model.layers.3": "disk", "model.norm": "disk"},
}


@pytest.fixture(params=["memory", "disk", "device map", *MAPS])
def offloaded(request, tied, tmp_path):
    """A tied model, offloaded in place, and what it gave before."""
    before = logits(tied, LLAMA.inputs())
    if request.param == "memory":
        accelerate.cpu_offload(tied, execution_device="cpu")
    elif request.param == "disk":
        accelerate.disk_offload(tied, str(tmp_path), execution_device="cpu")
    elif request.param in MAPS:
        devices = everywhere(tied) | MAPS[request.param]
        accelerate.dispatch_model(tied, devices, "cpu", offload_dir=tmp_path, force_hooks=True)
    else:
        size = sum(p.numel() * p.element_size() for p in tied.parameters())
        kept = {"cpu": size // 2, "disk": 2 * size}
        devices = accelerate.infer_auto_device_map(tied, kept, ["LlamaDecoderLayer"])
        assert set(devices.values()) == {"cpu", "disk"}
        accelerate.dispatch_model(tied, devices, "cpu", offload_dir=tmp_path, force_hooks=True)
    assert any(value.is_meta for value in tied.state_dict().values())
    return tied, before


@compat("accelerate", "infer_auto_device_map, dispatch_model, cpu_offload, disk_offload")
def test_derived_tensors_of_offloaded_sources(offloaded):
    tied, before = offloaded
    for _ in range(2):
        assert torch.equal(logits(tied, LLAMA.inputs()), before)


@compat("accelerate", "init_empty_weights, load_checkpoint_and_dispatch of a tied model")
def test_a_model_without_data_is_loaded_and_dispatched(tied, rules, tmp_path):
    accelerate.Accelerator(cpu=True).save_model(tied, tmp_path)
    with accelerate.init_empty_weights():
        model = LLAMA.build()
    empty = fxtie.transform(model, rules)
    assert empty.model.layers[1].self_attn.q_proj.weight.is_meta
    loaded = accelerate.load_checkpoint_and_dispatch(empty, tmp_path, everywhere(empty))
    assert torch.equal(logits(loaded, LLAMA.inputs()), logits(tied, LLAMA.inputs()))


def test_an_offloaded_model_is_saved_once_it_is_back(tmp_path, tied):
    accelerate.cpu_offload(tied, execution_device="cpu")
    with pytest.raises(FxtieError, match="remove_hook_from_submodules"):
        tied.save_pretrained(tmp_path)
    accelerate.hooks.remove_hook_from_submodules(tied)
    tied.save_pretrained(tmp_path)
    plain = LLAMA.cls.from_pretrained(tmp_path)
    assert_plain_form(plain, tied, LLAMA.inputs())


def test_an_offloaded_model_is_not_tied(rules):
    model = LLAMA.build()
    accelerate.cpu_offload(model, execution_device="cpu")
    with pytest.raises(PlanError, match="is offloaded: it is not there until its module is called"):
        fxtie.plan(model, rules)


@compat("accelerate", "infer_auto_device_map, dispatch_model, cpu_offload, disk_offload")
@pytest.mark.parametrize("kind", [kind for kind in KINDS.values() if kind is not LLAMA])
def test_other_kinds_of_models_are_offloaded(kind):
    tied = tie(kind.build(), kind.rules["learned"])
    before = logits(tied, kind.inputs())
    accelerate.cpu_offload(tied, execution_device="cpu")
    assert torch.equal(logits(tied, kind.inputs()), before)


def test_a_report_tells_of_graphs_that_are_not_used(tied):
    accelerate.cpu_offload(tied, execution_device="cpu")
    logits(tied, LLAMA.inputs())
    reasons = {reason for _, reason in fxtie.report(tied).missed.values()}
    assert reasons == {"has a hook of another library that moves tensors"}
