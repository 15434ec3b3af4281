"""State that parts of a model share, or that a part of it may change while another reads it."""

import copy
import types

import numpy
import pytest
import torch
from compared import RULE, check
from elsewhere import Two
from torch import nn

import fxtie


class Collector(nn.Module):
    def __init__(self, store):
        super().__init__()
        self.store = store

    def forward(self, x):
        self.store["last"] = x * 2
        return x


class Collecting(Two):
    def __init__(self):
        super().__init__()
        self.store = {}
        self.collector = Collector(self.store)

    def forward(self, x):
        x = self.collector(self.b(self.a(x)))
        return x + self.store["last"]


class Counting(nn.Module):
    def __init__(self, owner):
        super().__init__()
        self.owner = [owner]

    def forward(self, x):
        self.owner[0].state.n += 1
        return x


class Told(Two):
    """A part of it changes what it reads afterwards."""

    def __init__(self):
        super().__init__()
        self.state = types.SimpleNamespace(n=0)
        self.counting = Counting(self)

    def forward(self, x):
        return self.b(self.counting(self.a(x))) * self.state.n


class Giving(Counting):
    def forward(self, x):
        self.owner[0].extra = nn.Parameter(torch.ones(4))
        return x


class Given(Two):
    """A part of it registers a parameter where there was None."""

    def __init__(self):
        super().__init__()
        self.register_parameter("extra", None)
        self.giving = Giving(self)

    def forward(self, x):
        x = self.b(self.giving(self.a(x)))
        return x if self.extra is None else x * 2


class Noting(nn.Module):
    """Leaves a loss behind, where it had none."""

    def forward(self, x):
        self.loss = x.square().mean()
        return x


class Noted(Two):
    """A part of it sets what it has not had, and what its class has."""

    def __init__(self):
        super().__init__()
        self.noting = Noting()

    def forward(self, x):
        x = self.b(self.noting(self.a(x)))
        return x + (self.noting.loss if hasattr(self.noting, "loss") else 0)


class NotedByDefault(Noted):
    def forward(self, x):
        x = self.b(self.noting(self.a(x)))
        return x + getattr(self.noting, "loss", 0)


class NotedInPlace(Noted):
    def __init__(self):
        super().__init__()
        self.noting = type("Noting", (Noting,), {"loss": None})()

    def forward(self, x):
        x = self.b(self.noting(self.a(x)))
        return x if self.noting.loss is None else x + self.noting.loss


class Asking(nn.Module):
    def __init__(self, state):
        super().__init__()
        self.state = state

    def forward(self, x):
        return x * self.state.n


class Asked(Told):
    """A part of it only reads what it reads afterwards."""

    def __init__(self):
        super().__init__()
        self.state.n, self.counting = 2, Asking(self.state)


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        *((made, "kept") for made in (Collecting, Told, Given)),
        *((made, "kept") for made in (Noted, NotedByDefault, NotedInPlace)),
        (Asked, "graph"),
    ],
)
def test_state_that_a_part_shares(make, expected):
    check(make, expected)


class Trying(nn.Module):
    """What stays a call, with something of its own."""

    def __init__(self, own):
        super().__init__()
        self.own = own

    def forward(self, x):
        try:
            self.own()
        except TypeError:  # it is nothing to be called
            return x * 2
        return x


class Apart(Two):
    """A part of it can't reach what it reads afterwards, or it may be anything."""

    def __init__(self, own=None):
        super().__init__()
        self.options, self.part = {"n": 2}, Trying(own)

    def forward(self, x):
        return self.b(self.part(self.a(x))) * self.options["n"]


@pytest.mark.parametrize(("own", "expected"), [(list, "graph"), (lambda: numpy.ones(1), "kept")])
def test_state_that_a_part_may_reach(own, expected):
    check(lambda: Apart(own()), expected)


class Renormalized(nn.Module):
    """Its source is changed by a layer of torch's between two uses."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Embedding(5, 4, max_norm=0.5), nn.Linear(4, 5, bias=False)

    def forward(self, x):
        rows = x.abs().long().clamp(0, 4)[:, 0]
        first = self.b(x)
        return first + self.b(self.a(rows))


def test_a_source_that_a_layer_changes():
    plan = fxtie.plan(Renormalized(), RULE)
    tied = fxtie.transform(Renormalized(), plan)
    assert not fxtie.report(tied).kept
    twin = copy.deepcopy(tied)
    given = torch.randn(3, 4)
    with torch.no_grad():
        expected = type(tied)._fxtie_made.user.forward(twin, given)  # reads the attributes
        assert torch.equal(tied(given), expected)


class Counted(Apart):
    """Uses builtins after a part that may do anything."""

    def forward(self, x):
        return self.b(self.part(self.a(x))) * len((1, 2)) * max(2, int(2.5))


def test_builtins_after_what_a_part_may_do():
    check(lambda: Counted(numpy.ones(1)), "graph")
