"""What a trace leaves behind that stops: nothing."""

import collections
import types

import pytest
import torch
from tied_forms import check as check_tied
from torch import fx, nn
from two_linears import RULE, Two, check, model_with

import fxtie
from fxtie import Rule
from fxtie.capturing.attempt import Attempt
from fxtie.tracing.stops import Stop


def test_a_failed_trace_leaves_nothing_behind():
    notes = []

    def forward(self, x):
        notes.append(x)
        return self.b(self.a(x)) if x.sum() > -1e9 else x

    (kept,) = check(model_with(forward)).kept
    assert kept.reason == "writes to a list that it has not made"
    assert all(type(value) is torch.Tensor for value in notes)


SHIFT = torch.linspace(0, 1, 4)


class Shifted(Two):
    def __init__(self, stops):
        super().__init__()
        self.stops = stops
        self._tensor_constant1 = torch.full((4,), 0.5)

    def forward(self, x):
        x = self.b(self.a(x)) + SHIFT
        if self.stops and x.sum() > 1e9:
            x = x / 2
        return x + self._tensor_constant1


@pytest.mark.parametrize("stops", [False, True])
def test_constants_from_outside(stops):
    """They get names of their own, and leave nothing behind where the trace stops."""
    net = Shifted(stops)
    before = set(vars(net))
    check(net)
    tied = fxtie.transform(net, RULE)
    assert set(vars(net)) == before
    constants = {name for name in vars(tied) if name.startswith("_tensor_constant")} - before
    assert len(constants) == (0 if stops else 1)


class UntraceableTarget(nn.Linear):
    def forward(self, x):
        y = super().forward(x)
        return y if y.sum() > 0 else -2 * y


def test_an_untraceable_target_is_kept_and_reads_derived_attributes():
    net = nn.Sequential(nn.Linear(6, 6), UntraceableTarget(6, 6), nn.Linear(6, 6))
    rules = [Rule("1", "0", torch.neg), Rule("2", "1", torch.neg)]
    tied = check_tied(net, rules, torch.randn(4, 6))
    assert isinstance(tied, fx.GraphModule)
    assert [k.name for k in fxtie.report(tied).kept] == ["1"]


@pytest.fixture
def tracer():
    """What an attempt needs of a tracer that has entered `a` and recorded its argument."""
    graph = fx.Graph()
    graph.placeholder("x")
    taken_back = []
    return types.SimpleNamespace(
        graph=graph,
        reads=types.SimpleNamespace(take_back=taken_back.append, taken_back=taken_back),
        made=1,
        writes=[],
        looked_up={"known": 1},
        facts=["of a"],
        inlined={"a": 1},
        _placed={"a": None},
        _seen={"a": None},
        _effects=[],
        _entered=["a"],
        _calls=collections.Counter("a"),
        kept=["before"],
        _assumed={"x": torch.Tensor},
        _opaque=set(),
        _escaped=set(),
    )


def go_on(tracer):
    """Enter `b`, and note something everywhere."""
    tracer.graph.call_function(torch.sin, tuple(tracer.graph.nodes))
    tracer.facts.append("of b")
    tracer.inlined["b"] = tracer._placed["b"] = None
    tracer._entered.append("b")
    tracer._calls["b"] += 1
    tracer.kept.append("b")
    tracer._assumed["y"] = object
    tracer._opaque.add(1)
    tracer._escaped.add(2)
    tracer.looked_up["b"] = 1


def test_all_that_was_noted_since_is_gone(tracer):
    (x,) = tracer.graph.nodes
    attempt = Attempt(tracer)
    for _ in range(2):  # each part of a model is tried once more by itself
        go_on(tracer)
        sin = next(iter(reversed(tracer.graph.nodes)))
        attempt.undo()
        assert [*tracer.graph.nodes] == [x] and tracer.reads.taken_back.pop() == {sin}
        assert (tracer.facts, tracer.inlined, tracer._placed) == (["of a"], {"a": 1}, {"a": None})
        assert tracer._entered == ["a"] and +tracer._calls == {"a": 1}
        assert (tracer.kept, tracer._assumed) == (["before"], {"x": torch.Tensor})
        assert tracer.looked_up == {"known": 1} and not (tracer._opaque or tracer._escaped)


def test_a_container_that_was_there_before_has_been_written_to(tracer):
    tracer.writes.append(0)
    attempt = Attempt(tracer)
    tracer.writes.append(1)  # to one that was made since
    attempt.undo()
    tracer.writes.append(0)
    with pytest.raises(Stop, match="hands a container to a part that can't be captured"):
        attempt.undo()
