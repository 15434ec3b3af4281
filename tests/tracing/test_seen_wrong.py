"""Forwards that older tracers got wrong, each against its twin, with the outcome written down.

`graph`: the root is a graph. `kept`: its forward runs as written.
"""

import collections
import dataclasses
import itertools
import operator
import types

import numpy
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from compared import RULE, check, model, x
from elsewhere import (
    Cache,
    Outer,
    Two,
    doubled_with_gradients,
    scripted,
    seeded,
    square,
    with_scale,
)
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from twins import seed

import fxtie

# -- modes and contexts, by other names --------------------------------------------------------


def asks_for_gradients(self, x):
    return self.b(doubled_with_gradients(self.a(x)))


def seeds(self, x):
    return self.b(seeded(self.a(x)))


def enters_a_kernel(self, x):
    with sdpa_kernel(SDPBackend.MATH):
        return self.b(F.scaled_dot_product_attention(x[None], x[None], self.a(x)[None])[0])


@pytest.mark.parametrize(
    ("forward", "expected"),
    [(asks_for_gradients, "graph"), (seeds, "kept"), (enters_a_kernel, "kept")],
)
def test_modes(forward, expected):
    check(model(forward), expected)


# -- state in plain objects --------------------------------------------------------------------


class Stateful(nn.Module):
    """A submodule that is reached by a method and not by a call."""

    def __init__(self):
        super().__init__()
        self.fc, self.calls = nn.Linear(4, 4), collections.Counter()

    def step(self, x):
        self.calls["step"] += 1
        return self.fc(x) * self.calls["step"]


STATE = {
    "cache": (Cache, lambda self, x: self.b(self.state.update(self.a(x)))),
    "counter": (collections.Counter, lambda self, x: count(self, "n") and self.b(self.a(x)) * 2),
    "defaultdict": (
        lambda: collections.defaultdict(int),
        lambda self, x: self.b(self.a(x)) + count(self, "n"),
    ),
    "deque": (
        lambda: collections.deque([1], maxlen=99),
        lambda self, x: self.b(self.a(x)) * add(self.state),
    ),
    "nested": (
        lambda: {"inner": {"n": 0}},
        lambda self, x: self.b(self.a(x)) + count(self.state["inner"], "n"),
    ),
    "namespace": (
        lambda: types.SimpleNamespace(values=[]),
        lambda self, x: self.b(self.a(x)) + add(self.state.values),
    ),
    "array": (lambda: np.zeros(2), lambda self, x: self.b(self.a(x)) + count(self, 0)),
    "count": (itertools.count, lambda self, x: self.b(self.a(x)) + next(self.state)),
    "submodule": (Stateful, lambda self, x: self.b(self.state.step(self.a(x)))),
    "generator": (
        lambda: np.random.default_rng(0),
        lambda self, x: self.b(self.a(x)) + float(self.state.random()),
    ),
    "old generator": (
        lambda: np.random.RandomState(0),
        lambda self, x: self.b(self.a(x)) + self.state.rand(),
    ),
    "iterator": (
        lambda: iter([1, 2, 3] * 99),
        lambda self, x: self.b(self.a(x)) + next(self.state),
    ),
    "set": (set, lambda self, x: self.b(self.a(x)) + add(self.state)),
}


def add(container):
    """Add something to a container of the model's. Returns how much it holds."""
    (container.add if isinstance(container, set) else container.append)(len(container))
    return len(container)


def count(owner, key):
    """Count up in the state of a model, or in a dict."""
    state = owner if isinstance(owner, dict) else owner.state
    state[key] += 1
    return float(state[key])


def unites(self, x):
    state = self.state
    state |= {len(state): 1} if isinstance(state, dict) else {len(state)}
    return self.b(self.a(x)) * len(state)


def appends(self, x):
    state = self.state
    state += "a" if "a" in state else ["a"]
    return self.b(self.a(x)) * len(state)


def by_function(self, x):
    return self.b(self.a(x)) * len(operator.ior(self.state, {len(self.state)}))


@pytest.mark.parametrize(
    ("forward", "state"),
    [(unites, set), (unites, dict), (appends, list), (appends, lambda: ["a"]), (by_function, set)],
)
def test_containers_that_change_in_place(forward, state):
    check(model(forward, state=state), "kept")


@pytest.mark.parametrize("name", STATE)
def test_state(name):
    state, forward = STATE[name]
    check(model(forward, state=state), "kept")


# -- None and flags inside of arguments --------------------------------------------------------


@dataclasses.dataclass
class Batch:
    x: torch.Tensor
    mask: torch.Tensor | None = None


def of_dict(self, batch):
    y = self.a(batch["x"])
    return self.b(y if batch["mask"] is None else y * batch["mask"])


def of_tuple(self, batch):
    first, mask = batch
    return self.b(self.a(first) if mask is None else self.a(first) * mask)


def of_dataclass(self, batch):
    return self.b(self.a(batch.x) if batch.mask is None else self.a(batch.x) * batch.mask)


def of_arguments(self, *args):
    return self.b(self.a(args[0]) if args[1] is None else self.a(args[0]) * args[1])


@pytest.mark.parametrize(
    ("forward", "wrap"),
    [
        (of_dict, lambda x, mask: ({"x": x, "mask": mask},)),
        (of_tuple, lambda x, mask: ((x, mask),)),
        (of_dataclass, lambda x, mask: (Batch(x, mask),)),
        (of_arguments, lambda x, mask: (x, mask)),
    ],
)
def test_none_inside_of_arguments(forward, wrap):
    calls = [lambda: (wrap(x(), torch.full((4,), 2.0)), {}), lambda: (wrap(x(), None), {})]
    check(model(forward), "kept", *calls)


def required_mask(self, x, mask):
    return self.b(self.a(x) if mask is None else self.a(x) * mask)


def test_none_as_an_argument():
    calls = [
        lambda: ((x(), torch.full((4,), 2.0)), {}),
        lambda: ((x(), None), {}),
        lambda: ((x(), 2), {}),
        lambda: ((x(),), {"mask": True}),
    ]
    check(model(required_mask), "graph", *calls)


def recurrent(self, x, state=None):
    h, c = state if state is not None else (torch.zeros(3, 4), None)
    h = self.a(x) + h
    c = h if c is None else h + c
    return self.b(h), (h, c)


def test_the_state_of_a_recurrent_cell():
    calls = [
        lambda: ((x(),), {}),
        lambda: ((x(), (x(), None)), {}),
        lambda: ((x(), (x(), x())), {}),
    ]
    check(model(recurrent), "graph", *calls)


def one_tensor_twice(self, q, k):
    return self.b(self.a(q) if q is k else self.a(q) + k)


def test_one_tensor_passed_twice():
    def twice():
        q = x()
        return (q, q), {}

    check(model(one_tensor_twice), "kept", lambda: ((x(), x()), {}), twice)


def changes_its_argument(self, q, k):
    q += 1
    return self.b(self.a(q) + k)


def test_an_argument_that_is_changed_and_passed_twice():
    def twice():
        q = x()
        return (q, q), {}

    check(model(changes_its_argument), "graph", lambda: ((x(), x()), {}), twice)


# -- unpacking --------------------------------------------------------------------------------


def too_many(self, x):
    b, t = x.shape[:-1]
    return self.b(self.a(x)).reshape(b * t, 4)


def test_unpacking_too_many():
    calls = [lambda: ((torch.randn(2, 3, 4),), {}), lambda: ((torch.randn(2, 3, 5, 4),), {})]
    check(model(too_many), "graph", *calls, raises=True)


# -- calls and outputs -------------------------------------------------------------------------


class OwnCall(Two):
    def __call__(self, x):
        return super().__call__(x) * 2

    def forward(self, x):
        return self.b(self.a(x))


def test_a_call_of_its_own():
    check(OwnCall, "graph")
    rule = fxtie.Rule("inner.b", "inner.a", weight=torch.square)
    report = check(lambda: Outer(OwnCall()), "graph", rule=rule)
    assert [kept.reason for kept in report.kept] == ["has a __call__ of its own"]


class OwnCallInside(Two):
    def _call_impl(self, x):
        return super()._call_impl(x) * 2

    def forward(self, x):
        return self.b(self.a(x))


class Straight(Two):
    def forward(self, x):
        return self.b(self.a(x))


def doubles_calls(net):
    inner = net.inner
    inner._call_impl = lambda x: inner.forward(x) * 2


def test_a_way_to_be_called_of_its_own():
    rule = fxtie.Rule("inner.b", "inner.a", weight=torch.square)
    report = check(lambda: Outer(OwnCallInside()), "graph", rule=rule)
    assert [kept.reason for kept in report.kept] == ["has a _call_impl of its own"]
    check(lambda: Outer(Straight()), "graph", change=doubles_calls, rule=rule)


@dataclasses.dataclass
class Checked:
    y: torch.Tensor
    calls: int = 0

    def __post_init__(self):
        self.calls += 1
        self.y = self.y * 2


class Tagged(dict):
    def __init__(self, y):
        super().__init__(y=y * 2)
        self.tag = "made"


@dataclasses.dataclass
class Plain:
    y: torch.Tensor
    z: torch.Tensor | None = None


def post_init(self, x):
    return Checked(self.b(self.a(x)))


def dict_subclass(self, x):
    return Tagged(self.b(self.a(x)))


def set_afterwards(self, x):
    output = Plain(self.b(self.a(x)))
    output.z = x
    return output


def plain(self, x):
    output = Plain(self.b(self.a(x)), z=x)
    return Plain(output.y * 2, output.z)


@pytest.mark.parametrize(
    ("forward", "expected"),
    [(post_init, "kept"), (dict_subclass, "kept"), (set_afterwards, "kept"), (plain, "graph")],
)
def test_outputs(forward, expected):
    check(model(forward), expected)


MADE = {
    "Tensor": lambda self, x: self.b(self.a(x)) + torch.Tensor([1, 2, 3, 4]).add_(1),
    "FloatTensor": lambda self, x: self.b(self.a(x)) + torch.FloatTensor([1, 2, 3, 4]).mul_(2),
    "from_numpy": lambda self, x: self.b(self.a(x)) + torch.from_numpy(self.table).add_(1),
}


@pytest.mark.parametrize("name", MADE)
def test_tensors_made_inside(name):
    check(model(MADE[name], table=lambda: np.ones(4, "float32")), "kept")


def wrapped(self, x):
    return self.b(square(self.a(x)))


def mapped(self, x):
    q, k = map(scripted, (self.a(x), x))
    return self.b(q + k)


@pytest.mark.parametrize(("forward", "expected"), [(wrapped, "graph"), (mapped, "kept")])
def test_functions_of_others(forward, expected):
    check(model(forward), expected)


class Decorated(Two):
    @with_scale
    def forward(self, x, *, scale):
        return self.b(self.a(x)) * scale


def test_a_decorator_that_fills_an_argument():
    calls = [lambda: ((x(),), {}), lambda: ((x(),), {"scale": 3.0}), lambda: ((), {"x": x()})]
    check(Decorated, "graph", *calls)


# -- modules -----------------------------------------------------------------------------------


class Hidden(Two):
    """A module in a list, whose mode follows by an overridden `train`."""

    def __init__(self):
        super().__init__()
        self.hidden = [nn.Dropout(0.5)]

    def train(self, mode=True):
        self.hidden[0].train(mode)
        return super().train(mode)

    def forward(self, x):
        return self.b(self.hidden[0](self.a(x)))


def test_a_hidden_module():
    check(Hidden, "kept")


class Blocks(Two):
    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList(nn.Linear(4, 4) for _ in range(3))
        self.tail = nn.Sequential(nn.Linear(4, 4), nn.Tanh())
        self.drop = nn.Dropout(0.5)

    def forward(self, x):
        for block in self.blocks[:2]:
            x = block(x)
        for block in self.blocks:
            x = block(x) + len(self.blocks)
        x = F.dropout(x, self.drop.p, self.training)
        return self.tail(self.b(self.a(x)))


def replace_first(model):
    model.blocks[1] = nn.Linear(4, 4)


def replace_behind(model):
    model.blocks._modules["0"] = nn.Linear(4, 4)


def delete(model):
    del model.blocks[0]


def less_dropout(model):
    model.drop.p = 0.0


@pytest.mark.parametrize(
    "change",
    [
        lambda model: model.blocks.append(nn.Linear(4, 4)),
        lambda model: model.blocks.insert(0, nn.Linear(4, 4)),
        lambda model: model.tail.insert(1, nn.Linear(4, 4)),
        lambda model: model.tail.append(nn.ReLU()),
        *(delete, replace_first, replace_behind, less_dropout),
    ],
)
def test_changed_containers(change):
    check(Blocks, "graph", change=change)
    # The targets inside of what changes.
    rule = [fxtie.Rule("blocks.2", "blocks.1", weight=torch.square), RULE]
    if change not in (delete, replace_first) and "insert(0" not in repr(change):
        check(Blocks, "graph", change=None, rule=rule)


class Backbone(Two):
    def forward_features(self, x):
        return self.b(self.a(x)) * (2 if self.training else 3)

    def forward(self, x):
        raise NotImplementedError


class Entered(nn.Module):
    def __init__(self):
        super().__init__()
        self.backbone, self.head = Backbone(), nn.Linear(4, 4)

    def forward(self, x):
        return self.head(self.backbone.forward_features(x))


def test_a_backbone_entered_by_a_method():
    rule = fxtie.Rule("backbone.b", "backbone.a", weight=torch.square)
    check(Entered, "graph", rule=rule)


class Two_with_forward(Two):
    def forward(self, x):
        return self.b(self.a(x))


# -- what is left of a trace -------------------------------------------------------------------


def test_generators_are_as_they_were():
    seed(5)
    before = torch.get_rng_state(), numpy.random.get_state()[1].copy()
    for forward in (seeds, plain, STATE["old generator"][1]):
        fxtie.transform(model(forward, state=lambda: np.random.RandomState(0))(), RULE)
    seed_of_model = torch.get_rng_state()
    assert numpy.array_equal(numpy.random.get_state()[1], before[1])
    seed(5)
    for _ in range(3):
        Two()
    assert torch.equal(torch.get_rng_state(), seed_of_model)  # what making the models has drawn


def test_a_profiler_goes_on_working():
    import cProfile
    import sys

    tracing, profile = sys.gettrace(), cProfile.Profile()
    profile.enable()
    fxtie.transform(Two_with_forward(), RULE)
    profile.disable()
    assert sys.gettrace() is tracing
    assert any("transform" in str(entry.code) for entry in profile.getstats())
