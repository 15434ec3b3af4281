"""examples/distributed/train.py: the same losses in all modes, and after a rank has died."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLE = Path(__file__).parents[2] / "examples" / "distributed" / "train.py"


def losses(out, mode, *more, restarts=0):
    """Those of a run with two ranks, by torchrun."""
    launch = (sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2")
    run = subprocess.run(
        [
            *(*launch, "--standalone", "--max-restarts", str(restarts), str(EXAMPLE)),
            *("--mode", mode, "--out", str(out), *more),
        ],
        capture_output=True,
        text=True,
        # Else a group of gloo that is made again finds addresses of the first one.
        env={**os.environ, "OMP_NUM_THREADS": "1", "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"},
    )
    assert run.returncode == 0, run.stderr
    return json.loads((out / mode / "losses.json").read_text())


@pytest.fixture(scope="module")
def expected(tmp_path_factory):
    return losses(tmp_path_factory.mktemp("ddp"), "ddp", "--steps", "5")


@pytest.mark.parametrize("mode", ["fsdp", "tp", "pp"])
def test_losses_are_the_same_in_all_modes(tmp_path, expected, mode):
    found = losses(tmp_path, mode, "--steps", "5")
    assert found == pytest.approx(expected, rel=1e-4)
    assert found[-1] < found[0] - 0.5


def test_a_rank_that_dies_is_started_again_from_the_last_checkpoint(tmp_path, expected):
    dies = ("--steps", "5", "--save-every", "2", "--die-at", "3")
    assert losses(tmp_path, "fsdp", *dies, restarts=1) == pytest.approx(expected, rel=1e-4)
    assert (tmp_path / "fsdp" / "step-2").exists()
