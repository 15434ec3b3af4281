"""Lightning: a tied model in a module, and a tied module, trained, resumed and loaded."""

from __future__ import annotations

import lightning
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from pretrained import LLAMA, TOKENS, assert_plain_form, tie
from torch.utils.data import DataLoader

import fxtie

pytestmark = pytest.mark.filterwarnings(
    "ignore:The 'train_dataloader' does not have many workers",
    "ignore:The dirpath has changed",  # one run's checkpoint, another run's folder
)
compat = pytest.mark.compat


class Untied(lightning.LightningModule):
    def __init__(self):
        super().__init__()
        self.model = LLAMA.build().train()

    def training_step(self, batch, index):
        return self.model(input_ids=batch, labels=batch).loss

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), 1e-2)


class Tied(Untied):
    def __init__(self, rules):
        super().__init__()
        self.save_hyperparameters()
        self.model = tie(self.model, LLAMA.rules[rules])


def fit(module, folder, epochs, checkpoint=None):
    """Train, with a checkpoint at the end: its path."""
    torch.manual_seed(0)
    data = torch.randint(0, TOKENS, (16, 8), generator=torch.Generator().manual_seed(1))
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
@pytest.mark.parametrize("rules", LLAMA.rules)
def test_resumed_training_is_that_of_an_undisturbed_run(rules, tmp_path):
    undisturbed, first, second = (Tied(rules) for _ in range(3))
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
