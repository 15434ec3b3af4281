"""Tensors that are the same in a model as it is: in the eyes of its library, or held twice."""

import pytest
import torch
from chain_net import tied_names
from suggested import Language
from torch import nn

import fxtie
from fxtie import foreign
from fxtie.planning.names import Names
from fxtie.planning.own_ties import known_ties

HEAD, EMBED = "head.weight", "embed.weight"


@pytest.fixture
def library(monkeypatch):
    """One that keeps the head the same as the embeddings."""
    own_ties = foreign.Foreign(type("Methods", (), {}), lambda module: {HEAD: EMBED})
    name = f"{Language.__module__}.{Language.__qualname__}"
    monkeypatch.setattr(foreign, "_declared", {name: own_ties})


def test_what_a_library_keeps_the_same_follows_what_rules_derive(library):
    embed = fxtie.Tie(EMBED, EMBED, torch.neg)
    assert tied_names(fxtie.plan(Language(), embed)) == {EMBED: (EMBED,), HEAD: (EMBED,)}
    apart = fxtie.Tie(HEAD, None, lambda: torch.zeros(50, 8))
    assert tied_names(fxtie.plan(Language(), [embed, apart])) == {EMBED: (EMBED,), HEAD: ()}
    other = fxtie.Tie("head.bias", None, lambda: torch.zeros(50))
    assert list(tied_names(fxtie.plan(Language(), other))) == ["head.bias"]


def test_each_tensor_is_known_once(library):
    """Whether its library or the model itself says so, and whatever names it has."""
    model = nn.ModuleDict({"one": Language(), "other": nn.Linear(8, 50)})
    model["one"].head.weight = model["one"].embed.weight
    model["other"].weight = model["one"].embed.weight
    known = [(tie.target, *tie.sources) for tie in known_ties(Names(model))]
    assert known == [(f"one.{HEAD}", f"one.{EMBED}"), ("other.weight", f"one.{EMBED}")]
