"""Each kind of model of `pretrained.py`, and each set of rules for it."""

import pytest
from pretrained import KINDS, tie


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
