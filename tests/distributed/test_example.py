"""examples/distributed/train.py: the same losses in all modes, and after a rank has died."""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from ranks import NO_PIPELINES_IN_2_9
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save

pytestmark = NO_PIPELINES_IN_2_9
EXAMPLE = Path(__file__).parents[2] / "examples" / "distributed" / "train.py"
MODES = ["ddp", "fsdp", "tp", "pp"]


@pytest.fixture(scope="module")
def trained(two_ranks, tmp_path_factory):
    """Where all modes have written their losses."""
    out = tmp_path_factory.mktemp("out")
    two_ranks.run(trains_in_all_modes, out)
    return out


def trains_in_all_modes(rank, out):
    spec = importlib.util.spec_from_file_location("train", EXAMPLE)
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    for mode in MODES:
        options = argparse.Namespace(mode=mode, steps=5, save_every=5, out=out, die_at=None)
        example.train(options)


def losses(out, mode):
    return json.loads((out / mode / "losses.json").read_text())


def weights(out):
    """Those at the end."""
    dcp_to_torch_save(out / "fsdp" / "step-5", out / "step-5.pt")
    return torch.load(out / "step-5.pt")["model"]


def test_losses_are_the_same_in_all_modes(trained):
    expected = losses(trained, "ddp")
    assert expected[-1] < expected[0] - 0.5
    for mode in MODES:
        assert losses(trained, mode) == pytest.approx(expected, rel=1e-4)
    assert (trained / "losses.png").exists()


@pytest.mark.slow  # torchrun imports torch in three processes, twice
def test_a_rank_that_dies_is_started_again_from_the_last_checkpoint(trained, tmp_path):
    launch = (sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2")
    run = subprocess.run(
        [
            # One for the rank that dies, the others in case that a port is taken meanwhile.
            *(*launch, "--standalone", "--max-restarts", "3", str(EXAMPLE), "--out", str(tmp_path)),
            *("--mode", "fsdp", "--steps", "5", "--save-every", "2", "--die-at", "3"),
        ],
        capture_output=True,
        text=True,
        # Else a group of gloo that is made again finds addresses of the first one.
        env={**os.environ, "OMP_NUM_THREADS": "1", "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"},
    )
    assert run.returncode == 0, run.stderr
    assert "-9" in run.stderr  # the rank was killed
    assert losses(tmp_path, "fsdp") == pytest.approx(losses(trained, "ddp"), rel=1e-4)
    assert (tmp_path / "fsdp" / "step-2").exists()
    torch.testing.assert_close(weights(tmp_path), weights(trained))
