"""Random forwards, put together from statements, against an independent twin.

A long run: `FXTIE_PROGRAMS=20000 pytest tests/tracing/test_fuzz.py -k random --hypothesis-seed 1`.
"""

import copy
import os
import warnings

import pytest
from forwards import CHANGES, OUTCOMES, RULES, STATEMENTS, Program
from hypothesis import HealthCheck, Phase, event, given, settings
from hypothesis import strategies as st
from twins import CIRCUMSTANCES, assert_same, run, twin_of

import fxtie
from fxtie.tracing.evaluator import Evaluator
from fxtie.tracing.guards import Guards
from fxtie.tracing.rewriting import Rewriter
from fxtie.tracing.traced import Traced


def series(program, model, change, **kwargs):
    """What a model does in all circumstances, with a change in between."""
    found = {name: run(model, name) for name in CIRCUMSTANCES}
    found["optional"] = run(model, "eval", optional=2.5)
    if change is not None:
        program.change(model, change)
        found |= {f"{name}, changed": run(model, name) for name in ("eval", "train", "no_grad")}
    return found


def spoils(found):
    """Whether a call has written to what autograd needs."""
    return isinstance(found[0], RuntimeError) and "by an inplace operation" in str(found[0])


def compare(series, expected, untied, what=""):
    """Each call, unless it writes to a weight that autograd needs.

    That raises, tied or not. In the twin each read has a value of its own, and it doesn't.
    """
    for name, found in series.items():
        if not (spoils(found) and spoils(untied[name])):
            assert_same(found, expected[name], f"{name}{what}")


def check(statements, change=None, trace=True):
    """Tie a program and compare it with its twin. Returns the report."""
    program = Program(statements)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", fxtie.Outdated)
        plan = fxtie.plan(program.make(), RULES)
        expected = series(program, twin_of(program.make(), plan.ties), change)
        untied = series(program, program.make(), change)

        model = program.make()
        tied = fxtie.transform(model, plan, trace=trace)
        copied = copy.deepcopy(tied)
        # The user's model goes on as if nothing had been.
        for name, found in series(program, model, change).items():
            assert_same(found, untied[name], f"{name}, the model itself")
        tied = fxtie.transform(program.make(), plan, trace=trace)
        compare(series(program, tied, change), expected, untied)
        report = fxtie.report(tied)
        program.make()  # globals as at first
        compare(series(program, copied, change), expected, untied, ", copied")
    return report


programs = st.lists(st.sampled_from(STATEMENTS), min_size=1, max_size=6)


@settings(
    max_examples=int(os.environ.get("FXTIE_PROGRAMS", "150")),
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
    phases=[Phase.explicit, Phase.reuse, Phase.generate, Phase.shrink],
)
@given(programs, st.none() | st.sampled_from(CHANGES))
def test_random_forwards_equal_their_twin(statements, change):
    report = check(statements, change)
    event("kept" if report.kept else "graph")


def ignore_contexts(monkeypatch):
    def body(rewriter, statement):
        return rewriter.generic_visit(statement).body

    monkeypatch.setattr(Rewriter, "visit_With", body, raising=False)


def forget_guards(monkeypatch):
    monkeypatch.setattr(Guards, "broken", lambda self: None)


def take_branches(monkeypatch):
    truth = Evaluator.truth
    monkeypatch.setattr(
        Evaluator, "truth", lambda self, value: type(value) is Traced or truth(self, value)
    )


@pytest.mark.parametrize(
    ("plant", "word"),
    [(ignore_contexts, "with "), (forget_guards, "self."), (take_branches, "if ")],
)
def test_a_planted_fault_is_found(monkeypatch, plant, word):
    """In the gate, in the guards, and in an operation of the evaluator."""
    plant(monkeypatch)
    # Of what is kept only what may be a graph now, so that most programs are. A tenth of all.
    pool = [s for s in STATEMENTS if OUTCOMES[s] == "graph"]
    freed = [s for s in STATEMENTS if OUTCOMES[s] == "kept" and word in s]
    pool += freed * (1 + len(pool) // 10 // len(freed))

    @settings(max_examples=300, deadline=None, derandomize=True, phases=[Phase.generate])
    @given(st.lists(st.sampled_from(pool), max_size=6), st.none() | st.sampled_from(CHANGES))
    def random_programs(statements, change):
        check(statements, change)

    with pytest.raises(AssertionError):
        random_programs()


@pytest.mark.parametrize("statement", STATEMENTS)
def test_each_statement(statement):
    report = check([statement, "x = self.b(x)"])
    is_kept = any(not kept.name for kept in report.kept)
    assert OUTCOMES[statement] == ("kept" if is_kept else "graph")


@pytest.mark.parametrize("first", range(0, len(STATEMENTS), 6))
def test_each_statement_without_graphs(first):
    report = check([*STATEMENTS[first : first + 6], "x = self.b(x)"], trace=False)
    assert not report.regions


@pytest.mark.parametrize("change", CHANGES)
def test_each_change(change):
    for statement in STATEMENTS[CHANGES.index(change) :: len(CHANGES)]:  # each with one of them
        check([statement, "x = self.b(x)"], change)
