"""Lightning: a tied model in a module, and a tied module, trained, resumed and loaded."""

from __future__ import annotations

import lightning
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from pretrained import KINDS, LLAMA, assert_plain_form, tie
from torch.utils.data import DataLoader

import fxtie

pytestmark = pytest.mark.filterwarnings(
    "ignore:The 'train_dataloader' does not have many workers",
    "ignore:The dirpath has changed",  # one run's checkpoint, another run's folder
)
compat = pytest.mark.compat


NO_DROPOUT = dict.fromkeys(  # Lightning restores no state of random numbers
    ("hidden_dropout_prob", "attention_probs_dropout_prob", "dropout_rate"), 0.0
)


class Untied(lightning.LightningModule):
    def __init__(self, kind="decoder (Llama)"):
        super().__init__()
        self.model = KINDS[kind].build(**NO_DROPOUT).train()

    def training_step(self, batch, index):
        return self.model(**batch).loss

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), 1e-2)


class Tied(Untied):
    def __init__(self, rules, kind="decoder (Llama)"):
        super().__init__(kind)
        self.save_hyperparameters()
        self.model = tie(self.model, KINDS[kind].rules[rules])


def fit(module, folder, epochs, checkpoint=None):
    """Train, with a checkpoint at the end: its path."""
    torch.manual_seed(0)
    kinds = {kind.cls: kind for kind in KINDS.values()}
    (kind,) = (kind for cls, kind in kinds.items() if isinstance(module.model, cls))
    data = kind.examples(8)
    saving = ModelCheckpoint(folder, str(epochs))
    trainer = lightning.Trainer(
        accelerator="cpu",
        max_epochs=epochs,
        callbacks=[saving],
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, DataLoader(data, batch_size=4), ckpt_path=checkpoint, weights_only=False)
    return saving.best_model_path


def equal(one, other):
    return all(map(torch.equal, one.state_dict().values(), other.state_dict().values()))


@compat("Lightning", "Trainer.fit, ckpt_path: the weights of an undisturbed run", "lightning")
@pytest.mark.parametrize(
    ("kind", "rules"),
    [("decoder (Llama)", rules) for rules in LLAMA.rules]
    + [(kind, "learned") for kind in KINDS if KINDS[kind] is not LLAMA],
)
def test_resumed_training_is_that_of_an_undisturbed_run(kind, rules, tmp_path):
    undisturbed, first, second = (Tied(rules, kind) for _ in range(3))
    fit(undisturbed, tmp_path / "undisturbed", 2)
    fit(second, tmp_path / "second", 2, fit(first, tmp_path / "first", 1))
    assert equal(second, undisturbed)
    assert not equal(first, undisturbed)


@compat("Lightning", "load_from_checkpoint", "lightning")
def test_a_checkpoint_makes_the_tied_module_again(tmp_path):
    module = Tied("learned")
    again = Tied.load_from_checkpoint(fit(module, tmp_path, 1), weights_only=False)
    assert equal(again, module)


@compat("Lightning", "a LightningModule that is tied as a whole", "lightning")
def test_a_module_is_tied(tmp_path):
    rule = fxtie.Rule("model.model.layers.*.mlp", "model.model.layers.0.mlp")
    tied = fxtie.transform(Untied(), rule)
    before = tied.model.model.layers[3].mlp.up_proj.weight.clone()
    fit(tied, tmp_path / "checkpoints", 1)
    assert not torch.equal(tied.model.model.layers[3].mlp.up_proj.weight, before)
    tied.model.eval().save_pretrained(tmp_path / "plain")
    plain = LLAMA.cls.from_pretrained(tmp_path / "plain")
    assert_plain_form(plain, tied.model, LLAMA.inputs())
