"""The pictures in docs/models are what examples/pictures.py draws.

After a change of the picture, renew them, and look at them in a browser:

    python examples/pictures.py docs/models
"""

from pathlib import Path

import pytest
import torch
from vision import import_torchvision

import fxtie

ROOT = Path(__file__).parents[2]
DRAWN = ROOT / "docs" / "models"
NAMES = ["resnet18", "resnet50", "vit_b_16", "llama"]


@pytest.mark.parametrize("name", NAMES)
def test_a_picture_is_up_to_date(name, monkeypatch, tmp_path):
    import_torchvision()
    if name == "llama":
        pytest.importorskip("transformers")
    monkeypatch.syspath_prepend(ROOT / "examples")
    import pictures

    with torch.device("meta"):
        model, rules = getattr(pictures, name)()
    fxtie.picture(fxtie.transform(model, rules)).svg(tmp_path / "now.svg")
    assert (tmp_path / "now.svg").read_bytes() == (DRAWN / f"{name}.svg").read_bytes()


def test_no_picture_is_stale():
    assert {file.name for file in DRAWN.iterdir()} == {f"{name}.svg" for name in NAMES}
