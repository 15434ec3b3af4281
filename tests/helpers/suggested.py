"""Suggestions that are checked, and models to make them for."""

from torch import nn

import fxtie
from fxtie.looking.suggest import suggest
from fxtie.looking.suggestions import Suggestions


def check(model: nn.Module) -> Suggestions:
    """Each suggestion is a good set of rules by itself, and those chosen are one together."""
    found = suggest(model)
    for group in found:
        plan = fxtie.plan(model, group.rules)
        assert plan.parameters - plan.parameters_after == group.saved > 0
        assert {tie.target.rpartition(".")[0] for tie in plan.ties} == set(group.targets)
    if found:
        plan = fxtie.plan(model, found.rules)
        assert plan.parameters == found.parameters
        assert plan.parameters - plan.parameters_after == found.saved
    assert list(found) == sorted(found, key=lambda group: -group.saved)
    return found


def rules(model: nn.Module) -> dict[str, list[str]]:
    """The suggested rules as text, by kind."""
    by_kind: dict[str, list[str]] = {}
    for group in check(model):
        by_kind.setdefault(group.kind, []).extend(map(repr, group.rules))
    return by_kind


class Language(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.head = nn.Embedding(50, 8), nn.Linear(8, 50)

    def forward(self, tokens):
        return self.head(self.embed(tokens))


class Autoencoder(nn.Module):
    def __init__(self, *layers: nn.Module):
        super().__init__()
        half = len(layers) // 2
        self.encoder, self.decoder = nn.Sequential(*layers[:half]), nn.Sequential(*layers[half:])

    def forward(self, x):
        return self.decoder(self.encoder(x))


def dense():
    return Autoencoder(
        nn.Linear(12, 8), nn.Tanh(), nn.Linear(8, 2), nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 12)
    )


def convolutional():
    return Autoencoder(
        nn.Conv2d(1, 4, 3, 2),
        nn.Conv2d(4, 6, 3, 2),
        nn.ConvTranspose2d(6, 4, 3, 2),
        nn.ConvTranspose2d(4, 1, 3, 2),
    )
