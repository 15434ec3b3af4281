"""Each kind of model of `pretrained.py`, and each set of rules for it."""

import os

import pytest
from pretrained import KINDS, tie

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # nothing is downloaded


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
