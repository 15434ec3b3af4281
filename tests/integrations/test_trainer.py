"""transformers' Trainer: its checkpoints, resumed and chosen from."""

from __future__ import annotations

import pytest
import torch
from pretrained import KINDS, LLAMA, assert_plain_form, tie
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
CASES = {name: (LLAMA, rules) for name, rules in RULES.items()} | {
    name: (kind, kind.rules["learned"]) for name, kind in KINDS.items() if kind is not LLAMA
}
EXACTLY = {"rtol": 0, "atol": 0}
HAS_HIDDEN = ("learned", "own")


def trainer(kind, model, folder, **arguments):
    """A trainer of six steps, with a checkpoint every second step."""
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
    rows = kind.examples(16)
    return Trainer(model, arguments, train_dataset=rows, eval_dataset=rows[:4])


def state(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def equal(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.fixture(scope="module", params=CASES)
def run(request, tmp_path_factory):
    """A kind of model, its rules, the trainer of an undisturbed run, and its folder."""
    kind, rules = CASES[request.param]
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("run")
    undisturbed = trainer(kind, tie(kind.build(), rules), folder)
    undisturbed.train()
    return kind, rules, undisturbed, folder


@compat("Trainer", "its checkpoints are loaded by the plain class: the same outputs", *PACKAGES)
def test_checkpoints_are_those_of_the_plain_class(run):
    kind, _, undisturbed, folder = run
    plain, info = kind.cls.from_pretrained(folder / "checkpoint-6", output_loading_info=True)
    assert not any(info.values())
    assert_plain_form(plain, undisturbed.model.eval(), kind.inputs())


@compat("Trainer", "resume_from_checkpoint: the weights of an undisturbed run", *PACKAGES)
def test_resumed_training_is_that_of_an_undisturbed_run(run, tmp_path):
    kind, rules, undisturbed, folder = run
    checkpoint = folder / "checkpoint-4"
    if (checkpoint / "fxtie.safetensors").exists():
        again = fxtie.from_pretrained(checkpoint, kind.cls)
    else:
        again = fxtie.transform(kind.build(), rules)
    resumed = trainer(kind, again, tmp_path)
    resumed.train(resume_from_checkpoint=str(checkpoint))
    optimizers = (one.optimizer.state_dict()["state"] for one in (resumed, undisturbed))
    # What is read from a file is aligned in memory in another way, and added up in another order.
    close = {"rtol": 1e-5, "atol": 1e-6} if kind is KINDS["encoder-decoder (T5)"] else EXACTLY
    torch.testing.assert_close(state(again), state(undisturbed.model), **close)
    torch.testing.assert_close(*optimizers, **close)


@pytest.mark.parametrize("name", HAS_HIDDEN)
def test_a_checkpoint_without_all_that_the_model_has_is_not_resumed(name, tmp_path):
    trainer(LLAMA, tie(LLAMA.build(), RULES[name]), tmp_path).train()
    fresh = fxtie.transform(LLAMA.build(), RULES[name])
    with pytest.raises(FxtieError, match=r"make this one by fxtie\.from_pretrained\(folder, Llama"):
        trainer(LLAMA, fresh, tmp_path).train(resume_from_checkpoint=True)


@compat("Trainer", "load_best_model_at_end", *PACKAGES)
@pytest.mark.parametrize("name", RULES)
def test_the_best_checkpoint_is_loaded_whole(name, tmp_path):
    tied = tie(LLAMA.build(), RULES[name])
    run = trainer(
        LLAMA,
        tied,
        tmp_path,
        eval_strategy="steps",
        eval_steps=2,
        load_best_model_at_end=True,
        metric_for_best_model="loss",
        greater_is_better=True,  # so that the best is not the last
    )
    run.train()
    assert not run.state.best_model_checkpoint.endswith("checkpoint-6")
    best = fxtie.from_pretrained(run.state.best_model_checkpoint, LLAMA.cls)
    assert equal(state(tied), state(best))


@compat("Trainer", "save_model: a folder as on the hub", *PACKAGES)
def test_the_folder_has_the_files_of_a_repository(tmp_path):
    tied = tie(LLAMA.build(), RULES["learned"])
    trainer(LLAMA, tied, tmp_path).save_model()
    assert {path.name for path in tmp_path.iterdir()} == {
        *("config.json", "generation_config.json", "model.safetensors", "training_args.bin"),
        *("fxtie.json", "fxtie.safetensors"),
    }
