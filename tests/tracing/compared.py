"""A tied model, traced and untraced, and the model itself, each against its twin."""

import copy
import dataclasses
import itertools
import types
import warnings

import torch
from elsewhere import Two
from twins import assert_same, seed, twin_of

import fxtie

RULE = fxtie.Rule("b", "a", weight=torch.square)


def x():
    return torch.randn(3, 4)


def series(model, calls, change):
    """Each call in several circumstances, twice; again after a change.

    Args:
        model: the model.
        calls: give arguments, positional and by keyword, maybe of the model.
        change: what is done to it then.
    """
    found = {}
    for stage in ("before", "after"):
        if stage == "after":
            if change is None:
                break
            seed(11)
            change(model)
        for training, grad, turn in itertools.product((False, True), (True, False), range(2)):
            model.train(training)
            for number, call in enumerate(calls):
                seed(7)
                args, kwargs = call(model) if call.__code__.co_argcount else call()
                with torch.set_grad_enabled(grad):
                    where = f"{stage}, call {number}, training {training}, grad {grad}, {turn}"
                    found[where] = outcome(model, args, kwargs)
    return found


def outcome(model, args, kwargs):
    model.zero_grad()
    try:
        output = model(*args, **kwargs)
        tensors = [t for t in flat(output) if t.requires_grad]
        if tensors:
            sum(t.square().mean() for t in tensors).backward()
    except Exception as error:  # both sides must raise
        return error, {}
    gradients = {
        name.replace("parametrizations.", "").replace(".original", ""): p.grad.clone()
        for name, p in model.named_parameters()
        if p.grad is not None
    }
    return [t.detach().clone() for t in flat(output)] + [type(output).__name__], gradients


def flat(value):
    if isinstance(value, torch.Tensor):
        return [value]
    if dataclasses.is_dataclass(value):
        value = [getattr(value, field.name) for field in dataclasses.fields(value)]
    if isinstance(value, types.SimpleNamespace):
        value = vars(value)
    if isinstance(value, dict):
        value = value.values()
    return [t for item in value for t in flat(item)] if not isinstance(value, int | str) else []


def check(make, expected, *calls, change=None, rule=RULE, raises=False):
    """Compare a model with its twin; see that tying left the model as it was."""
    calls = calls or (lambda: ((x(),), {}),)
    seed(0)
    untied = make()
    plan = fxtie.plan(untied, rule)
    twin, model, other = (copy.deepcopy(untied) for _ in range(3))
    references = series(twin_of(twin, plan.ties), calls, change)
    assert any(isinstance(found[0], Exception) for found in references.values()) == raises
    tied = fxtie.transform(model, plan)
    plain = fxtie.transform(other, plan, trace=False)
    report = fxtie.report(tied)
    assert ("kept" if any(not k.name for k in report.kept) else "graph") == expected, report.kept
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", fxtie.Outdated)
        # Plain objects are shared with the model that was tied: each runs from a state of its own.
        found = series(copy.deepcopy(tied), calls, change)
        unchanged = series(copy.deepcopy(model), calls, change)
        untraced = series(copy.deepcopy(plain), calls, change)
    for where, reference in references.items():
        assert_same(found[where], reference, where)
        assert_same(untraced[where], reference, f"{where}, trace=False")
    for where, reference in series(untied, calls, change).items():
        assert_same(unchanged[where], reference, f"{where}, the model itself")
    return report


def model(forward, base=Two, **attributes):
    """What makes a model with a forward, and attributes that are made for each."""

    def make():
        made = type("Model", (base,), {"forward": forward})()
        for name, value in attributes.items():
            setattr(made, name, value() if callable(value) else value)
        return made

    return make
