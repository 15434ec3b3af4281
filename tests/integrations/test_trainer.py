"""transformers' Trainer: its checkpoints, resumed and chosen from."""

from __future__ import annotations

import pytest
import torch
from pretrained import LLAMA, TOKENS, assert_plain_form, tie
from transformers import Trainer, TrainingArguments

import fxtie
from fxtie.errors import FxtieError
from fxtie.transforms import fake_quant

compat = pytest.mark.compat
PACKAGES = ("transformers", "accelerate")
RULES = {
    **LLAMA.rules,
    "own": fxtie.Rule("model.layers.*.mlp", "model.layers.{0}.mlp", weight=fake_quant(4)),
}
HAS_HIDDEN = ("learned", "own")


@pytest.fixture(params=RULES)
def name(request):
    return request.param


def trainer(model, folder, **arguments):
    """A trainer of six steps, with a checkpoint every second step."""
    data = torch.randint(0, TOKENS, (16, 8), generator=torch.Generator().manual_seed(1))
    rows = [{"input_ids": row, "labels": row} for row in data]
    arguments = TrainingArguments(
        output_dir=str(folder),
        max_steps=6,
        save_steps=2,
        per_device_train_batch_size=4,
        learning_rate=1e-2,
        seed=3,
        report_to=[],
        disable_tqdm=True,
        use_cpu=True,
        **arguments,
    )
    return Trainer(model, arguments, train_dataset=rows, eval_dataset=rows[:4])


def state(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def equal(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@compat("Trainer", "its checkpoints are loaded by the plain class: the same outputs", *PACKAGES)
def test_checkpoints_are_those_of_the_plain_class(name, tmp_path):
    tied = tie(LLAMA.build(), RULES[name])
    trainer(tied, tmp_path).train()
    plain, info = LLAMA.cls.from_pretrained(tmp_path / "checkpoint-6", output_loading_info=True)
    assert not any(info.values())
    assert_plain_form(plain, tied.eval(), LLAMA.inputs())


@compat("Trainer", "resume_from_checkpoint: the weights of an undisturbed run", *PACKAGES)
def test_resumed_training_is_that_of_an_undisturbed_run(name, tmp_path):
    tied = tie(LLAMA.build(), RULES[name])
    trainer(tied, tmp_path).train()
    checkpoint = tmp_path / "checkpoint-4"
    if name in HAS_HIDDEN:
        again = fxtie.from_pretrained(checkpoint, LLAMA.cls)
    else:
        again = fxtie.transform(LLAMA.build(), RULES[name])
    trainer(again, tmp_path).train(resume_from_checkpoint=str(checkpoint))
    assert equal(state(again), state(tied))


@pytest.mark.parametrize("name", HAS_HIDDEN)
def test_a_checkpoint_without_all_that_the_model_has_is_not_resumed(name, tmp_path):
    trainer(tie(LLAMA.build(), RULES[name]), tmp_path).train()
    fresh = fxtie.transform(LLAMA.build(), RULES[name])
    with pytest.raises(FxtieError, match=r"make this one by fxtie\.from_pretrained\(folder, Llama"):
        trainer(fresh, tmp_path).train(resume_from_checkpoint=True)


@compat("Trainer", "load_best_model_at_end", *PACKAGES)
def test_the_best_checkpoint_is_loaded_whole(name, tmp_path):
    tied = tie(LLAMA.build(), RULES[name])
    run = trainer(
        tied,
        tmp_path,
        eval_strategy="steps",
        eval_steps=2,
        load_best_model_at_end=True,
        metric_for_best_model="loss",
        greater_is_better=True,  # so that the best is not the last
    )
    run.train()
    assert run.state.best_model_checkpoint.endswith("checkpoint-2")
    best = fxtie.from_pretrained(run.state.best_model_checkpoint, LLAMA.cls)
    assert equal(state(tied), state(best))


@compat("Trainer", "save_model: a folder as on the hub", *PACKAGES)
def test_the_folder_has_the_files_of_a_repository(tmp_path):
    tied = tie(LLAMA.build(), RULES["learned"])
    trainer(tied, tmp_path).save_model()
    assert {path.name for path in tmp_path.iterdir()} == {
        *("config.json", "generation_config.json", "model.safetensors", "training_args.bin"),
        *("fxtie.json", "fxtie.safetensors"),
    }
