"""Forwards that a tracer gets wrong without a word, unless it looks out for them.

Each is compared with the oracle; the model that was tied must go on working, its caches included.
"""

import enum
import functools
import threading
import types

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint
from two_linears import RULE, Two, check, model_with

import fxtie
from fxtie import Rule

# -- state outside of the call -----------------------------------------------------------------


def test_a_cache_gets_the_tensors_that_belong_there():
    cache = {}

    def positions(n):
        if n not in cache:
            cache[n] = torch.arange(n).float()
        return cache[n]

    def forward(self, x):
        return self.b(self.a(x) + positions(4))

    (kept,) = check(model_with(forward)).kept
    assert kept.reason == "writes to a dict that it has not made"
    assert type(cache[4]) is torch.Tensor


def keep_in_object(self, x):
    self.notes.last = (x, [x * 2])
    return self.b(self.a(x))


def keep_in_nested_list(self, x):
    self.notes.all.append(x)
    return self.b(self.a(x))


def keep_in_lru_cache(self, x):
    return self.b(self.a(x)) + _bias_of(self)


@functools.lru_cache
def _bias_of(model):
    return model.a.bias * 2


@pytest.mark.parametrize(
    ("forward", "reason"),
    [
        (keep_in_object, "sets an attribute: self.notes.last"),
        (keep_in_nested_list, "writes to a list that it has not made"),
        (keep_in_lru_cache, "calls _bias_of"),
    ],
)
def test_traced_values_stay_nowhere(forward, reason):
    notes = types.SimpleNamespace(all=[], last=None)
    model = model_with(forward, notes=notes)
    (kept,) = check(model).kept
    assert kept.reason == reason
    assert kept.file == forward.__code__.co_filename
    assert all(type(value) is torch.Tensor for value in notes.all)
    assert notes.last is None or type(notes.last[0]) is torch.Tensor
    _bias_of.cache_clear()


# -- questions that no proxy can answer --------------------------------------------------------


class Mode(enum.Enum):
    PLAIN, DOUBLE = 1, 2


def by_identity(self, x, mode):
    return self.b(self.a(x)) * (2 if mode is True or mode is Mode.DOUBLE or mode == "double" else 1)


@pytest.mark.parametrize("mode", [True, Mode.DOUBLE, "double", None])
def test_flags_run_the_users_forward(mode):
    check(model_with(by_identity), torch.randn(3, 4), mode)


def test_looking_a_value_up_is_kept():
    def forward(self, x, mode):
        return self.b(self.a(x)) * {"double": 2}.get(mode, 1)

    (kept,) = check(model_with(forward), torch.randn(3, 4), "double").kept
    assert kept.reason == "looks up a value that is known only when it runs"


def test_an_optional_key_of_a_dict_input_is_kept():
    def forward(self, batch):
        x, shift = batch["x"], batch.get("shift")
        return self.b(self.a(x if shift is None else x + shift))

    (kept,) = check(model_with(forward), {"x": torch.randn(3, 4)}).kept
    assert kept.reason == "asks whether a value that is known only when it runs is None"


def test_defaults_that_a_graph_cannot_hold():
    def forward(self, x, seen=[]):  # noqa: B006 (on purpose)
        seen.append(1)
        return self.b(self.a(x))

    (kept,) = check(model_with(forward)).kept
    assert "default argument" in kept.reason


def test_a_stop_that_the_code_catches():
    def forward(self, x):
        try:
            with torch.no_grad():
                shift = self.a.weight.sum()
        except Exception:
            shift = 0.0
        return self.b(self.a(x)) + shift

    (kept,) = check(model_with(forward)).kept
    assert kept.reason == "has a statement that a graph can't hold: try:"


# -- calls that lose something in a graph ------------------------------------------------------


def test_checkpointed_forwards_against_the_oracle():
    def forward(self, x):
        return checkpoint(self.b, checkpoint(self.a, x, use_reentrant=False), use_reentrant=False)

    (kept,) = check(model_with(forward)).kept
    assert kept.name == ""


def test_dtypes_are_asked_for_at_each_call():
    def forward(self, x):
        return self.b(self.a(x.to(self.a.weight.dtype)))

    tied = fxtie.transform(model_with(forward), RULE).double()
    assert tied(torch.randn(3, 4)).dtype == torch.float64


# -- outputs and members -----------------------------------------------------------------------


def test_a_child_that_is_called_self():
    """As in the attention of BERT: its call is no variable `self` of the generated code."""

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.self, self.first, self.last = (nn.Linear(4, 4) for _ in range(3))

        def forward(self, x):
            return self.last(self.self(self.first(x)))

    net = Net()
    tied = fxtie.transform(net, Rule("last", "first", torch.square))
    assert "self_ = self.self(" in tied.code
    fxtie.verify(net, tied, torch.randn(2, 4))


# -- other threads, other tools ----------------------------------------------------------------


def test_other_threads_run_models_while_one_is_traced():
    net, errors, done = Two(), [], threading.Event()
    expected = net(torch.ones(1, 4))

    def run():
        while not done.is_set():
            with torch.no_grad():
                found = net(torch.ones(1, 4))
            net.note = "written"
            if type(found) is not torch.Tensor or not torch.equal(found, expected):
                errors.append(found)

    threads = [threading.Thread(target=run) for _ in range(2)]
    for thread in threads:
        thread.start()
    for _ in range(5):
        check(Two())
    done.set()
    for thread in threads:
        thread.join()
    assert not errors


def test_two_threads_tie_at_once():
    failures = []

    def tie():
        try:
            assert not check(Two()).kept
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=tie) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
@pytest.mark.parametrize("make", [torch.jit.script, lambda m: torch.jit.trace(m, torch.ones(1, 4))])
def test_parts_in_torchscript(make):
    def forward(self, x):
        x = self.b(self.a(x))
        return self.scripted(x * 2 if self.scripted.training else x)

    model = model_with(forward, scripted=make(nn.Sequential(nn.Linear(4, 4))))
    assert not check(model).kept
    assert fxtie.plan(model, RULE).steps[0].saved == 16


class OwnFlag(Two):
    is_training = True

    @property
    def training(self):
        return self.is_training

    @training.setter
    def training(self, value):
        self.__dict__["is_training"] = value

    def forward(self, x):
        x = self.b(self.a(x))
        return x * 2 if self.training else x


@pytest.mark.parametrize("inner", [False, True])
def test_a_flag_of_its_own_keeps_a_forward(inner):
    model = nn.Sequential(OwnFlag(), nn.Linear(4, 4)) if inner else OwnFlag()
    prefix = "0." if inner else ""
    report = check(model, rule=Rule(f"{prefix}b", f"{prefix}a", weight=torch.square))
    assert [kept.reason for kept in report.kept] == ["has a `training` flag of its own"]


def test_a_forward_that_was_replaced_on_the_root():
    model = Two()
    model.forward = types.MethodType(lambda self, x: self.b(self.a(x)) * 3, model)
    (kept,) = fxtie.report(fxtie.transform(model, RULE)).kept
    assert kept.reason == "has a forward that was replaced on the instance"


def test_items_are_set():
    def forward(self, x):
        x = self.b(self.a(x)) * 1
        y = x
        x[:, 0] = 0
        x[1:, 1:] += y[:-1, :-1] * 2
        return y * self.a.weight[0]

    assert not check(model_with(forward)).kept


def test_attributes_are_changed_or_set():
    def forward(self, x):
        x = self.b(self.a(x)) * 1
        turned = x.T
        turned += 1
        return x * self.a.weight[0].sum()

    assert not check(model_with(forward)).kept

    def setting(self, x):
        x = self.b(self.a(x)) * 1
        x.data *= 2
        return x * self.a.weight[0].sum()

    (kept,) = check(model_with(setting)).kept
    assert kept.reason == "sets an attribute: x.data *= 2"


def test_tensors_made_inside_that_take_traced_values():
    def forward(self, x):
        table = torch.full((3, 4), -1.0)
        F.relu(table[0], inplace=True)
        table[1:] = self.b(self.a(x))[1:]
        return table * self.a.weight[0]

    assert not check(model_with(forward)).kept

    def reading(self, x):
        table = torch.zeros(3, 4)
        first = table[0]
        table[0] = self.b(self.a(x))[0]
        return self.a(x) * float(first.detach().sum())

    assert not check(model_with(reading)).kept


def starred(x):
    return [row * 2 for row in [*x]]


def starred_arguments(x):
    return (lambda a, *b: b)(*x)


@pytest.mark.parametrize("take", [list, starred, starred_arguments])
def test_other_iteration_is_kept(take):
    report = check(model_with(lambda self, x: torch.stack(list(take(self.b(self.a(x)))))))
    assert len(report.kept) == 1
