"""FSDP2 as accelerate and Lightning set it up, on two processes of gloo.

Neither asks for it on a CPU by itself. accelerate is told that it has been asked for; Lightning's
ModelParallelStrategy shards in `configure_model`, wherever it runs.
"""

from __future__ import annotations

import copy
import os
import warnings

import accelerate
import lightning
import pytest
import torch
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin
from lightning.pytorch.strategies import ModelParallelStrategy
from pretrained import LLAMA, assert_plain_form, logits, tie
from ranks import Ranks
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.utils.data import DataLoader, DistributedSampler
from vision import import_torchvision

import fxtie

compat = pytest.mark.compat
RULES = {
    "learned": LLAMA.rules["learned"],
    "head": fxtie.Rule("lm_head", "model.embed_tokens", torch.square),
}
TOKENS = torch.arange(1, 65).reshape(8, 8) % 64
STEPS, BATCH = 2, 2


@pytest.fixture(scope="module")
def two_ranks():
    ranks = Ranks(2, import_torchvision)
    yield ranks
    ranks.stop()


def launched(rank):
    """What a launcher tells a process."""
    warnings.simplefilter("ignore")  # of what these tools do on a CPU
    os.environ |= {
        **{"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"},
        **{"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0", "OMP_NUM_THREADS": "1"},
    }


def loss(model, tokens):
    return model(input_ids=tokens, labels=tokens).loss


def batch(step, rank):
    """The tokens of one process; of all of them if `rank` is None."""
    whole = TOKENS[2 * BATCH * step :][: 2 * BATCH]
    return whole if rank is None else whole[rank::2]


def trained(model):
    """What the training of a copy in one process gives."""
    model = copy.deepcopy(model).train()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    for step in range(STEPS):
        loss(model, batch(step, None)).backward()
        optimizer.step()
        optimizer.zero_grad()
    return model.eval()


def close(found, expected):
    """Two state_dicts, up to the order in which gradients are added up."""
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-6)


# --- accelerate -------------------------------------------------------------------------------


def with_accelerate(rank, folder):
    launched(rank)
    accelerator = accelerate.Accelerator(cpu=True)
    for state in (accelerate.PartialState(), accelerator.state):
        state.distributed_type = DistributedType.FSDP
    for name, rules in RULES.items():
        for efficient in (False, True):  # moved to meta and back, by way of tie_weights
            accelerator.state.fsdp_plugin = FullyShardedDataParallelPlugin(
                fsdp_version=2,
                cpu_ram_efficient_loading=efficient,
                auto_wrap_policy="transformer_based_wrap",
                transformer_cls_names_to_wrap=["LlamaDecoderLayer"],
            )
            tied = tie(LLAMA.build(tie_word_embeddings=name == "head"), rules)
            expected = trained(tied)
            model, optimizer = accelerator.prepare(tied, torch.optim.SGD(tied.parameters(), 0.1))
            assert isinstance(model, FSDPModule)
            for step in range(STEPS):
                accelerator.backward(loss(model.train(), batch(step, rank)))
                optimizer.step()
                optimizer.zero_grad()
            state = accelerator.get_state_dict(model)
            arguments = {"state_dict": state, "is_main_process": accelerator.is_main_process}
            accelerator.unwrap_model(model).save_pretrained(folder / name, **arguments)
            if accelerator.is_main_process:
                close(state, expected.state_dict())
                # As Trainer does: no other process takes part.
                accelerator.unwrap_model(model).save_pretrained(folder / name, state_dict=state)
            torch.testing.assert_close(
                logits(model.eval(), LLAMA.inputs()), logits(expected, LLAMA.inputs())
            )


@compat("accelerate", "FSDP2: prepare, training, save_pretrained of what get_state_dict gathers")
def test_accelerate(two_ranks, tmp_path):
    two_ranks.run(with_accelerate, tmp_path)
    for name, rules in RULES.items():
        again = fxtie.from_pretrained(tmp_path / name, LLAMA.cls)
        plain = LLAMA.cls.from_pretrained(tmp_path / name)
        assert_plain_form(plain, again, LLAMA.inputs())
        expected = trained(tie(LLAMA.build(tie_word_embeddings=name == "head"), rules))
        close(again.state_dict(), expected.state_dict())


# --- Lightning --------------------------------------------------------------------------------


class Tied(lightning.LightningModule):
    def __init__(self, name):
        super().__init__()
        self.save_hyperparameters()
        self.model = tie(LLAMA.build(), RULES[name]).train()

    def configure_model(self):
        if self.device_mesh is not None:
            for layer in self.model.model.layers:
                fully_shard(layer, mesh=self.device_mesh["data_parallel"])
            fully_shard(self.model, mesh=self.device_mesh["data_parallel"])

    def training_step(self, tokens, index):
        return loss(self.model, tokens)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


def with_lightning(rank, folder):
    launched(rank)
    for name in RULES:
        module = Tied(name)
        trainer = lightning.Trainer(
            accelerator="cpu",
            devices=2,
            strategy=ModelParallelStrategy(
                data_parallel_size=2, tensor_parallel_size=1, save_distributed_checkpoint=False
            ),
            max_steps=STEPS,
            logger=False,
            use_distributed_sampler=False,  # which shuffles
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        sampler = DistributedSampler(TOKENS, shuffle=False)
        trainer.fit(module, DataLoader(TOKENS, BATCH, sampler=sampler))
        assert isinstance(module.model, FSDPModule)
        trainer.save_checkpoint(folder / f"{name}.ckpt")


@compat("Lightning", "ModelParallelStrategy (FSDP2): training, save_checkpoint", "lightning")
def test_lightning(two_ranks, tmp_path):
    two_ranks.run(with_lightning, tmp_path)
    for name in RULES:
        again = Tied.load_from_checkpoint(tmp_path / f"{name}.ckpt", weights_only=False)
        close(again.model.state_dict(), trained(tie(LLAMA.build(), RULES[name])).state_dict())
