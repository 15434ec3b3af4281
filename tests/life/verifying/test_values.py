"""Outputs and attributes of any type, compared by their parts."""

import collections
import dataclasses
import datetime
import random
import time
import types

import pytest
import torch
from spoiling import add_one, finds, inputs, spoiled, tie
from torch import nn
from two_linears import model_with

import fxtie
from fxtie.life.verifying.results import Vacuous

# -- values of any kind ------------------------------------------------------------------------


Pair = collections.namedtuple("Pair", "first second")


@dataclasses.dataclass
class Counted:
    value: torch.Tensor
    calls: int = 1


class Slotted:
    __slots__ = ("value",)

    def __init__(self, value):
        self.value = value


def everything(self, x):
    y = self.b(self.a(x))
    return {
        "y": y,
        "number": 1,
        "float": 0.0,
        "text": "a",
        "none": None,
        "list": [Pair(y * 2, 2)],
        "data": Counted(y * 3),
        "slots": Slotted(y * 4),
        "law": torch.distributions.Normal(y * 5, 1.0),
        "nan": torch.tensor([float("nan"), 0.0]),
        "zero": torch.zeros(2),
        "set": {(1, 2)},
        "date": datetime.date(2020, 1, 1),
        "random": random.Random(3),
        "owner": self,
    }


def put(key, value):
    def change(output):
        output[key] = value(output[key]) if callable(value) else value

    return change


def negative_zero(output):
    output["zero"][1] = -0.0


def deep(output):
    output["list"][0] = output["list"][0]._replace(second="2")


def inside_dataclass(output):
    output["data"].calls = 2


def inside_slots(output):
    output["slots"].value = output["slots"].value + 1


def inside_object(output):
    output["law"].loc = output["law"].loc + 1


def other_order(output):
    output["y"] = output.pop("y")


def advance(output):
    output["random"].random()


CHANGES_OF_OUTPUTS = [
    (put("number", 2), r"the output\['number'\] in eval, first call: 2, not 1\."),
    (put("number", True), r"\['number'\] .*: bool, not int"),
    (put("float", -0.0), r"\['float'\] .*: -0\.0, not 0\.0"),
    (put("text", "b"), r"\['text'\] .*: 'b', not 'a'"),
    (put("none", 0), r"\['none'\] .*: int, not NoneType"),
    (put("list", tuple), r"\['list'\] .*: tuple, not list"),
    (put("list", []), r"\['list'\] .*: 0 items, not 1 items"),
    (deep, r"\['list'\]\[0\]\.second .*: str, not int"),
    (inside_dataclass, r"\['data'\]\.calls .*: 2, not 1"),
    (inside_slots, r"output 3 \(\['slots'\]\.value\) .*: relative error"),
    (inside_object, r"\(\['law'\]\.loc\) .*: relative error"),
    (put("y", lambda y: y.detach()), r"output 0 \(\['y'\]\) .*: its requires_grad is False, not"),
    (put("y", lambda y: y.double()), r"output 0 .*: its dtype is torch.float64, not torch.float32"),
    (put("y", lambda y: y[:2]), r"output 0 .*: its shape is"),
    (put("nan", torch.zeros(2)), r"\(\['nan'\]\) .*: relative error nan"),
    (negative_zero, r"\(\['zero'\]\) .*: other signs of zeros"),
    (put("set", {(1, 3)}), r"\['set'\] .*: \{\(1, 3\)\}, not \{\(1, 2\)\}"),
    (put("date", datetime.date(2020, 1, 2)), r"\['date'\]\S* in eval, first call"),
    (advance, r"\['random'\].* in eval"),
    (put("owner", lambda owner: owner.a), r"\['owner'\] .*: a, not the root"),
    (put("new", 1), r"the output in eval, first call: the keys 'y', .*, not the keys 'y'"),
    (other_order, r"the output in eval, first call: the keys 'number', .*, not the keys 'y'"),
]


@pytest.mark.parametrize(("change", "message"), CHANGES_OF_OUTPUTS)
def test_outputs_of_any_kind(change, message):
    model = model_with(everything)
    tied = tie(model)
    assert fxtie.verify(model, tied, inputs()).calls[0].tensors > 6 + 4

    def spoil(module, args, output):
        change(output)
        return output

    finds(model, spoiled(tied, spoil), message)


def test_an_output_without_tensors_proves_nothing():
    model = model_with(lambda self, x: self.b(self.a(x)).sum().item())
    with pytest.raises(Vacuous, match="In eval, the output holds no tensor"):
        fxtie.verify(model, tie(model), inputs())


# -- plain attributes --------------------------------------------------------------------------


def counting(self, x):
    self.n += 1
    self.notes.counts["calls"].append(self.n)
    self.last = (x, self.n)
    return self.b(self.a(x)) * self.n


def counting_model():
    notes = types.SimpleNamespace(counts={"calls": []})
    return model_with(counting, n=0, notes=notes, last=None)


def set_number(module):
    module.n += 1


def set_nested(module):
    module.notes.counts["calls"][-1] = 7


def set_tensor(module):
    module.last = (module.last[0] + 1, module.last[1])


def set_new(module):
    module.new = 1


def remove(module):
    del module.last


def set_inner(module):
    module.a.training = not module.training


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (set_number, "the attribute n in eval, second call: 3, not 2"),
        (set_nested, r"the attribute notes\.counts\['calls'\]\[1\] in eval, second call: 7, not 2"),
        (set_tensor, r"the attribute last\[0\] in eval, second call: relative error"),
        (set_new, "the attribute new in eval, second call: it is new"),
        (remove, "the attribute last in eval, second call: it is missing"),
        (set_inner, r"the attribute a\.training in eval, second call: True, not False"),
    ],
)
def test_plain_attributes(change, message):
    model = counting_model()
    tied = tie(model)
    proof = fxtie.verify(model, tied, inputs())
    assert "attributes" in proof.calls[0].compared and not proof.skipped

    def spoil(module, args, output):
        change(module)

    finds(model, spoiled(tied, spoil, lambda module, calls: calls == 2), message)


def test_attributes_of_parts_that_are_not_registered():
    def forward(self, x):
        self.hidden[0].seen += 1
        return self.hidden[0](self.b(self.a(x)))

    hidden = nn.Linear(4, 4)
    hidden.seen = 0
    model = model_with(forward, hidden=[hidden])
    tied = tie(model)
    fxtie.verify(model, tied, inputs())

    def spoil(module, args, output):
        module.hidden[0].seen += 1

    finds(model, spoiled(tied, spoil), r"the attribute hidden\[0\]\.seen in eval, .*: 2, not 1")


def test_attributes_that_no_two_runs_share():
    def forward(self, x):
        self.time = time.perf_counter_ns()
        return self.b(self.a(x))

    model = model_with(forward)
    tied = tie(model)
    proof = fxtie.verify(model, tied, inputs())
    assert proof.skipped == {"the attribute time": "differs between two runs of the oracle"}
    assert str(proof).endswith(
        "Not compared: the attribute time differs between two runs of the oracle."
    )
    finds(model, spoiled(tied, add_one), "output 0 in eval, first call")


def test_outputs_that_no_two_runs_share():
    generator = random.Random(0)
    model = model_with(lambda self, x: self.b(self.a(x)) * generator.uniform(1, 2))
    with pytest.raises(Vacuous, match="two runs of the oracle differ as well, in output 0 in eval"):
        fxtie.verify(model, tie(model), inputs())


def test_attributes_that_differ_before_the_first_call():
    model = counting_model()
    tied = tie(model)
    tied.note = "set by the user"
    fxtie.verify(model, tied, inputs())
    tied.n = 5
    finds(model, tied, r"output 0 in eval.* Before the first call, the attribute n differs: 5, not")
    model = model_with(lambda self, x: self.b(self.a(x)), n=0)
    tied = tie(model)
    tied.n = 5
    proof = fxtie.verify(model, tied, inputs())
    assert proof.skipped == {"the attribute n": "differs before the first call (5, not 0)"}
