"""The whole text of plans, diffs and reports on real models, compared with files in snapshots/.

After a change of the texts, renew the files and look at what git shows of them:

    FXTIE_RENEW=1 pytest tests/looking/test_text.py
"""

import os
import re
from pathlib import Path

import pytest
import timm
import torch
from torch import nn
from vision import import_torchvision

import fxtie
from fxtie import Rule
from fxtie import transforms as T
from fxtie.looking.suggest import suggest

SNAPSHOTS = Path(__file__).parents[1] / "snapshots"


class Gated(nn.Module):
    """An autoencoder for images, one part of which a graph can't say."""

    def __init__(self):
        super().__init__()
        self.encoder = nn.Sequential(
            nn.Conv2d(3, 8, 3, stride=2), nn.ReLU(), nn.Conv2d(8, 16, 3, stride=2)
        )
        self.mix = Gate()
        self.decoder = nn.Sequential(
            nn.ConvTranspose2d(16, 8, 3, stride=2), nn.ReLU(), nn.ConvTranspose2d(8, 3, 3, stride=2)
        )

    def forward(self, x):
        return self.decoder(self.mix(self.encoder(x)))


class Gate(nn.Module):
    def __init__(self):
        super().__init__()
        self.up, self.down = nn.Conv2d(16, 32, 1), nn.Conv2d(32, 16, 1)

    def forward(self, x):
        if x.mean() > 100:
            return x
        return x + self.down(self.up(x).relu())


def resnet18():
    model = import_torchvision().models.resnet18(weights=None)
    return model, Rule("layer3.1.conv*", "layer3.0.conv2", T.neg)


def vit():
    model = timm.create_model("vit_tiny_patch16_224")
    return model, Rule("blocks.*.**", "blocks.0.{1}")


def autoencoder():
    return Gated(), [
        Rule("decoder.0", "encoder.2", bias=None),
        Rule("decoder.2", "encoder.0", bias=None),
        Rule("mix.down", "mix.up", weight=T.transpose(), bias=None),
    ]


MODELS = {"resnet18": resnet18, "vit": vit, "autoencoder": autoencoder}
TEXTS = {
    "plan": lambda model, rules: fxtie.plan(model, rules),
    "diff": lambda model, rules: fxtie.diff(model, fxtie.transform(model, rules)),
    "report": lambda model, rules: fxtie.report(fxtie.transform(model, rules)),
    "suggest": lambda model, rules: suggest(model),
}


@pytest.mark.parametrize("kind", TEXTS)
@pytest.mark.parametrize("name", MODELS)
def test_text(name, kind):
    with torch.device("meta"):
        model, rules = MODELS[name]()
    found = without_places(f"{TEXTS[kind](model, rules)}\n")
    file = SNAPSHOTS / f"{name}.{kind}.txt"
    if os.environ.get("FXTIE_RENEW"):
        file.parent.mkdir(exist_ok=True)
        file.write_text(found, encoding="utf-8")
    assert found == file.read_text(encoding="utf-8")


def without_places(text: str) -> str:
    """Folders and line numbers of sources removed: `.../vit.py:12` becomes `vit.py:#`."""
    text = re.sub(r"(?:[A-Za-z]:)?[^\s()]*[\\/]([^\\/\s:]+\.py):\d+", r"\1:#", text)
    return re.sub(r" -{3,}$", " ---", text, flags=re.M)  # as wide as a folder's name is long


def test_no_snapshot_is_stale():
    expected = {f"{name}.{kind}.txt" for name in MODELS for kind in TEXTS}
    assert {file.name for file in SNAPSHOTS.iterdir()} == expected


def test_places_are_removed():
    text = "reason (/usr/lib/python3/site-packages/timm/vit.py:123) and C:\\code\\net.py:7"
    assert without_places(text) == "reason (vit.py:#) and net.py:#"
