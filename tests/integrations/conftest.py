"""Each kind of model of `pretrained.py`, and each set of rules for it."""

import types

import accelerate.utils.memory
import pytest
from pretrained import KINDS, tie


@pytest.fixture(autouse=True)
def _no_collections(monkeypatch):
    """To collect garbage, as Trainer does before it trains, takes longer than these trainings."""
    monkeypatch.setattr(accelerate.utils.memory, "gc", types.SimpleNamespace(collect=int))


@pytest.fixture(params=KINDS)
def kind(request):
    """One of the five kinds of models."""
    return KINDS[request.param]


@pytest.fixture(params=["repeated", "squared", "learned"])
def rules(request, kind):
    """Its rules."""
    return kind.rules[request.param]


@pytest.fixture
def tied(kind, rules):
    """The model, tied, in `eval()`."""
    return tie(kind.build(), rules)
