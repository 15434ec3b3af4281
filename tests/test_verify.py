"""The oracle itself: it passes what is right and finds what is wrong.

Most tests spoil a right tied model by a hook that works in one circumstance only.
"""

import collections
import copy
import dataclasses
import datetime
import functools
import random
import time
import types

import pytest
import torch
from oracle import compare
from torch import fx, nn

import fxtie
from fxtie import Rule
from fxtie.life.verifying.results import Vacuous

RULE = Rule("2", "0", torch.square)


def net(**options) -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 4, **options), nn.Tanh(), nn.Linear(4, 4, **options))


def inputs(**options):
    return torch.randn(3, 4, **options)


class Two(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)


def model_with(forward, **attributes):
    """A `Two` with a forward of its own."""
    model = type("Model", (Two,), {"forward": forward})()
    for name, value in attributes.items():
        setattr(model, name, value)
    return model


def tie(model):
    return fxtie.transform(model, Rule("b", "a", torch.square))


class Spoil:
    """A hook that changes what a model returns, or the model itself, when `when()` is true.

    deepcopy takes it and its count along.
    """

    def __init__(self, change, when=lambda module, calls: True):
        self.change, self.when, self.calls = change, when, 0

    def __call__(self, module, args, output):
        self.calls += 1
        return self.change(module, args, output) if self.when(module, self.calls) else None


def spoiled(tied, change, when=lambda module, calls: True):
    tied.register_forward_hook(Spoil(change, when))
    return tied


def add_gradient(tied, name, factor=1.0):
    """Spoil the gradient of a parameter, and nothing else."""

    def change(module, args, output):
        parameter = module.get_parameter(name)
        return output + factor * (parameter - parameter.detach()).sum()

    return spoiled(tied, change)


def finds(model, tied, message, *args, **options):
    with pytest.raises(fxtie.VerificationError, match=message) as caught:
        fxtie.verify(model, tied, *(args or (inputs(),)), **options)
    assert not isinstance(caught.value, Vacuous)


# -- what is right -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "dtype",
    [torch.float32, torch.float64, torch.bfloat16, torch.complex64],
    ids=str,
)
def test_a_right_model_passes(dtype):
    model = nn.Sequential(*(nn.Linear(4, 4, dtype=dtype) for _ in range(6)))
    tied = fxtie.transform(model, Rule("re:[1-5]", "0", torch.sin))
    fxtie.verify(model, tied, inputs(dtype=dtype))


def test_each_mode_and_circumstance_has_a_row():
    model = nn.Sequential(*net(), nn.BatchNorm1d(4))
    tied = fxtie.transform(model, RULE)
    proof = fxtie.verify(model, tied, inputs())
    assert isinstance(proof, fxtie.Verification)
    assert [(call.mode, call.call) for call in proof.calls] == [
        (mode, call)
        for mode in ("eval", "train")
        for call in ("first call", "second call", "no_grad")
    ]
    first, _, no_grad = proof.calls[:3]
    state = ("parameters", "buffers", "attributes")
    assert first.compared == ("outputs", "gradients", "inputs", *state)
    assert no_grad.compared == ("outputs", "inputs", *state)
    # The output, the input, 4 parameters, 3 buffers; 4 gradients.
    assert (first.tensors, no_grad.tensors) == (13, 9)
    assert first.output_error == 0 and first.gradient_error < 1e-5
    assert no_grad.gradient_error is None
    assert not proof.skipped
    lines = str(proof).splitlines()
    assert lines[0].split()[:3] == ["mode", "call", "compared"] and len(lines) == 8
    assert lines[-1].split()[:2] == ["train", "no_grad"] and lines[-1].split()[-2:] == ["0", "-"]


@pytest.mark.parametrize(
    "transform", [fxtie.transforms.LowRank(2), nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5))]
)
def test_learnable_transforms_are_compared(transform):
    model = net()
    tied = fxtie.transform(model, Rule("2", "0", weight=transform))
    fxtie.verify(model, tied, inputs())
    name = list(dict(tied.named_parameters()))[-1]
    assert name.startswith("ties.2_weight.")
    add_gradient(tied, name)
    finds(model, tied, f"the gradient of {name} in eval, first call: relative error")


def test_how_often_a_transform_runs_is_not_compared():
    class Counting(nn.Module):
        def __init__(self):
            super().__init__()
            self.gain, self.runs = nn.Parameter(torch.ones(())), 0

        def forward(self, weight):
            self.runs += 1
            return weight * self.gain

    def forward(self, x):
        return self.b(self.b(self.a(x))) if x.sum() < 1e9 else x

    model = model_with(forward)
    transform = Counting()
    tied = fxtie.transform(model, Rule("b", "a", weight=transform, bias=None))
    transform.runs = 0
    with torch.no_grad():
        tied(inputs())
    assert transform.runs == 2, "else there is nothing to see here"
    assert not fxtie.verify(model, tied, inputs()).skipped


def test_banks_are_compared():
    model = net()
    rule = Rule("re:[02]", fxtie.Bank(2, (4, 4)), weight=fxtie.transforms.Mix(2), bias=None)
    tied = fxtie.transform(model, rule)
    proof = fxtie.verify(model, tied, inputs())
    # 2 biases, 2 templates, the mixture of each target; output and input.
    assert len(list(tied.parameters())) == 6 and proof.calls[0].tensors == 14
    add_gradient(tied, "ties.bank.templates.1")
    finds(model, tied, r"the gradient of ties\.bank\.templates\.1 in eval, first call")


def test_the_transforms_of_a_model_tied_twice_are_compared():
    model = nn.Sequential(*net(), nn.Linear(4, 4))
    first = fxtie.transform(model, Rule("2", "0", weight=fxtie.transforms.LowRank(2)))
    again = fxtie.transform(first, Rule("3", "0", weight=fxtie.transforms.LowRank(3)))
    fxtie.verify(first, again, inputs())
    for name in ("ties.2_weight.B", "ties.3_weight.B"):
        wrong = add_gradient(copy.deepcopy(again), name)
        finds(first, wrong, f"the gradient of {name} in eval, first call: relative error")
    finds(model, again, r"differ before any call, in the parameter 2\.weight: it is missing")


def test_a_model_that_is_a_graph():
    model = fx.symbolic_trace(net())
    assert not fxtie.verify(model, fxtie.transform(model, RULE), inputs()).skipped


def test_sparse_gradients():
    model = nn.Sequential(nn.Embedding(5, 4, sparse=True), nn.Linear(4, 4), nn.Linear(4, 4))
    tied = fxtie.transform(model, Rule("2", "1", torch.square))
    fxtie.verify(model, tied, torch.tensor([1, 2, 2]))


# -- what is wrong, in one circumstance --------------------------------------------------------


def test_a_wrong_output_is_found():
    model = net()
    tied = fxtie.transform(model, RULE)
    (square,) = tied.graph.find_nodes(op="call_function", target=torch.square)
    square.target = torch.neg
    tied.recompile()
    finds(model, tied, "output 0 in eval, first call: relative error")
    with pytest.raises(fxtie.VerificationError, match="output 0 in eval"):
        fxtie.verify(model, tied, inputs())


def test_a_wrong_gradient_is_found():
    model = net()
    tied = fxtie.transform(model, RULE)
    (square,) = tied.graph.find_nodes(op="call_function", target=torch.square)
    with tied.graph.inserting_after(square):
        cut = tied.graph.call_method("detach", (square,))
    square.replace_all_uses_with(cut, lambda user: user is not cut)
    tied.recompile()
    finds(model, tied, r"gradient of 0\.weight in eval, first call: relative error")


def add_one(module, args, output):
    return output + 1


def double_gradients(module, args, output):
    return output * 2 - output.detach()


def count_batch(module, args, output):
    module[3].num_batches_tracked += 1


CIRCUMSTANCES = {
    "eval, first call": lambda module, calls: calls == 1,
    "eval, second call": lambda module, calls: calls == 2,
    "eval, no_grad": lambda module, calls: not torch.is_grad_enabled(),
    "train, first call": lambda module, calls: module.training,
    "train, second call": lambda module, calls: module.training and calls == 2,
}


CHANGES = [
    (add_one, "output 0"),
    (count_batch, r"the buffer 3\.num_batches_tracked"),
    (double_gradients, r"the gradient of \S+"),
]


@pytest.mark.parametrize(
    ("where", "change", "what"),
    [
        (where, *change)
        for where in CIRCUMSTANCES
        for change in (CHANGES[:2] if "no_grad" in where else CHANGES)
    ],
)
def test_a_difference_in_one_circumstance(where, change, what):
    model = nn.Sequential(*net(), nn.BatchNorm1d(4))
    tied = spoiled(fxtie.transform(model, RULE), change, CIRCUMSTANCES[where])
    finds(model, tied, f"oracle: {what} in {where}: relative error")


def test_a_gradient_on_one_side():
    model = net()

    def cut(module, args, output):
        return output.detach().requires_grad_()

    tied = spoiled(fxtie.transform(model, RULE), cut)
    finds(model, tied, r"the gradient of 0\.weight in eval, first call: only one side has a grad")


def test_a_gradient_where_there_should_be_next_to_none():
    def forward(self, x):
        return self.b(self.a(x)) + 0 * self.unused

    model = model_with(forward, unused=nn.Parameter(torch.ones(())))
    tied = tie(model)
    fxtie.verify(model, add_gradient(copy.deepcopy(tied), "unused", factor=1e-9), inputs())
    message = "the gradient of unused in eval, first call: relative error inf"
    finds(model, add_gradient(tied, "unused", factor=1e-3), message)


def test_gradients_of_inputs():
    model = net()

    def add_to_input(module, args, output):
        return output + (args[0] - args[0].detach()).sum()

    x = inputs(requires_grad=True)
    x.grad = torch.ones_like(x)
    frozen = net().requires_grad_(False)
    fxtie.verify(frozen, fxtie.transform(frozen, RULE), x)
    tied = spoiled(fxtie.transform(model, RULE), add_to_input)
    finds(model, tied, "the gradient of argument 0 in eval, first call: relative error", x)
    assert torch.equal(x.grad, torch.ones_like(x))


def test_inputs_that_have_no_gradients():
    model = model_with(lambda self, x, mask, n: self.b(self.a(x)).masked_fill(mask, 0.5) * n)
    mask = torch.eye(3, 4, dtype=torch.bool)
    fxtie.verify(model, tie(model), inputs(), mask, n=torch.tensor(2, dtype=torch.int8))


def test_inputs_that_are_changed():
    def forward(self, x, batch):
        y = self.b(self.a(x * 1))
        batch["seen"] = batch["x"].add_(1)
        return y

    model, batch = model_with(forward), {"x": torch.zeros(2)}
    tied = tie(model)
    fxtie.verify(model, tied, inputs(), batch=batch)
    assert batch.keys() == {"x"} and not batch["x"].any()

    def add_one_more(module, args, output):
        args[0].add_(1)

    spoiled(tied, add_one_more, lambda module, calls: calls == 2)
    message = "argument 0 after the call in eval, second call: relative error"
    finds(model, tied, message, inputs(), batch=batch)


def fail(module, args, output):
    raise LookupError("lost")


def test_an_error_on_one_side():
    model = net()
    tied = spoiled(fxtie.transform(model, RULE), fail, lambda module, calls: calls == 2)
    message = "the call in eval, second call: the tied model raises LookupError: lost, the oracle"
    finds(model, tied, message)
    with pytest.raises(fxtie.VerificationError) as caught:
        fxtie.verify(model, tied, inputs())
    assert isinstance(caught.value.__cause__, LookupError)


class Forces(Two):
    """Differentiates in its forward: impossible without gradients."""

    def forward(self, x):
        x = x.detach().requires_grad_()
        energy = self.b(self.a(x)).tanh().sum()
        (forces,) = torch.autograd.grad(energy, x, create_graph=True)
        return forces


def test_an_error_on_both_sides():
    model = Forces()
    proof = fxtie.verify(model, tie(model), inputs())
    assert proof.calls[2].compared[0] == "both raise RuntimeError"
    tied = spoiled(tie(model), fail, lambda module, calls: torch.is_grad_enabled())
    finds(model, tied, "the tied model raises LookupError: lost, the oracle returns")
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        fxtie.verify(model, tie(model), torch.randn(3, 5))


# -- autocast ----------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_autocast(dtype):
    model = nn.Sequential(*(nn.Linear(4, 4) for _ in range(4)))
    tied = fxtie.transform(model, Rule("re:[1-3]", "0", torch.sin))
    proof = fxtie.verify(model, tied, inputs(), autocast=dtype)
    name = str(dtype).removeprefix("torch.")
    assert [call.call for call in proof.calls[:2]] == [
        f"first call, autocast {name}",
        f"second call, autocast {name}",
    ]
    # The gradients of the uses add up in low precision: that it ran there.
    assert 1e-5 < proof.calls[0].gradient_error < 4 * torch.finfo(dtype).eps

    spoiled(tied, add_one, lambda module, calls: torch.is_autocast_enabled("cpu"))
    fxtie.verify(model, tied, inputs())
    finds(model, tied, f"output 0 in eval, first call, autocast {name}", autocast=dtype)


def test_the_backward_is_outside_of_autocast():
    seen = []

    def forward(self, x):
        y = self.b(self.a(x))
        if y.requires_grad:
            y.register_hook(lambda gradient: seen.append(torch.is_autocast_enabled("cpu")))
        return y

    model = model_with(forward)
    fxtie.verify(model, tie(model), inputs(), autocast=torch.bfloat16)
    assert seen and not any(seen)


def test_a_forward_that_has_an_argument_called_autocast():
    def forward(self, x, autocast=False):
        return self.b(self.a(x)) * (2 if autocast else 1)

    model = model_with(forward)
    tied = tie(model)
    fxtie.verify(model, tied, inputs(), True, autocast=torch.bfloat16)
    for wrong in (True, False, "bf16", torch.float64):
        with pytest.raises(fxtie.FxtieError, match="by position"):
            fxtie.verify(model, tied, inputs(), autocast=wrong)


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


def test_lists_of_weights():
    """An nn.LSTM lists its weights, which the tied one does not have."""

    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.LSTM(4, 4), nn.LSTM(4, 4)

        def forward(self, x):
            return self.b(self.a(x)[0])

    model = Twice()
    assert not fxtie.verify(model, tie_lstm(model), torch.randn(2, 3, 4)).skipped


def tie_lstm(model):
    return fxtie.transform(model, Rule("b", "a", weight_ih_l0=torch.sin))


# -- what was passed in ------------------------------------------------------------------------


def state_of(model):
    return {
        name: (tensor.clone(), tensor._version, tensor.requires_grad, tensor.grad)
        for name, tensor in (*model.named_parameters(), *model.named_buffers())
    } | {f"{name} mode": module.training for name, module in model.named_modules()}


def assert_same_state(found, expected):
    assert found.keys() == expected.keys()
    for name in found:
        if isinstance(found[name], bool):
            assert found[name] == expected[name], name
        else:
            assert torch.equal(found[name][0], expected[name][0]), name
            assert found[name][1:3] == expected[name][1:3], name
            assert found[name][3] is expected[name][3], name


def test_nothing_that_was_passed_in_is_changed():
    class Counter(nn.Module):
        def __init__(self):
            super().__init__()
            self.net, self.n, self.seen = nn.Sequential(*net(), nn.BatchNorm1d(4)), 0, []

        def forward(self, x):
            self.n += 1
            self.seen.append(x)
            return self.net(x)

    model = Counter()
    model.net[1].eval()
    model.net[0].weight.grad = gradient = torch.ones(4, 4)
    tied = fxtie.transform(model, Rule("net.2", "net.0", torch.square))
    x = inputs()
    before = state_of(model), state_of(tied), x.clone()
    fxtie.verify(model, tied, x)
    assert_same_state(state_of(model), before[0])
    assert_same_state(state_of(tied), before[1])
    assert torch.equal(x, before[2]) and x._version == 0
    assert torch.equal(gradient, torch.ones(4, 4)) and model.net[0].weight.grad is gradient
    assert (model.n, model.seen, tied.n, tied.seen) == (0, [], 0, [])


def test_a_copy_that_changes_the_original():
    def forward(self, x):
        self.count()
        return self.b(self.a(x))

    def count(counted):
        counted.n += 1

    model = model_with(forward, n=0)
    model.count = functools.partial(count, types.SimpleNamespace(n=0))
    fxtie.verify(model, tie(model), inputs())
    model.count = lambda: count(model)
    finds(model, tie(model), "A copy changes the attribute n of the .*model .*closure")


def test_a_copy_that_runs_the_original():
    """deepcopy does not copy what a closure refers to: neither side runs what it should."""

    def forward(self, x):
        return self.held(self.a(x))

    model = model_with(forward)
    model.held = lambda x: model.b(x)
    finds(model, tie(model), r" in eval, first call: .*A copy reaches .*b\.weight.*closure")

    model = model_with(forward)
    GLOBAL.append(model)  # a global is what even the pass does not follow
    model.held = lambda x: GLOBAL[-1].b(x)
    finds(model, tie(model), r"A copy uses b\.weight of the model, by something that copy\.deep")
    GLOBAL.clear()


GLOBAL = []


def test_a_transform_that_closes_over_a_parameter():
    """No copy has a parameter of its own there, so that its gradient is not compared."""
    model = net()
    model[1].gate = gate = nn.Parameter(torch.ones(()))
    gate.grad = gradient = torch.zeros(())
    tied = fxtie.transform(model, Rule("2", "0", lambda w: w * gate))
    proof = fxtie.verify(model, tied, inputs())
    assert list(proof.skipped) == ["the gradient of 1.gate"]
    assert gate.grad is gradient and not gradient.any()


def test_models_that_differ_before_any_call():
    model = net()
    tied = fxtie.transform(model, RULE)
    other = copy.deepcopy(tied)
    other[0].weight.data += 1
    finds(model, other, r"differ before any call, in the parameter 0\.weight: relative error")
    # Stored tensors are the model's own, so that one that was trained is verified as it is.
    tied[0].weight.data += 1
    fxtie.verify(model, tied, inputs())


def test_a_copied_model_has_lost_its_lambdas():
    model = net()
    tied = fxtie.transform(model, Rule("2", "0", lambda w: w * 2))
    assert not fxtie.verify(model, tied, inputs()).skipped
    proof = fxtie.verify(model, copy.deepcopy(tied), inputs())
    assert list(proof.skipped) == ["the graph of 2.weight's transform"]


def test_random_generators_are_as_before():
    numpy = pytest.importorskip("numpy")
    net = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5), nn.Linear(4, 4))
    tied = fxtie.transform(net, fxtie.Rule("2", "0", torch.neg))
    x = torch.randn(8, 4)

    def draw():
        return torch.rand(1).item(), random.random(), numpy.random.rand()

    for generator in (torch.manual_seed, random.seed, numpy.random.seed):
        generator(5)
    expected = draw()
    for generator in (torch.manual_seed, random.seed, numpy.random.seed):
        generator(5)
    fxtie.verify(net, tied, x)
    assert draw() == expected


def test_each_call_draws_other_random_numbers():
    """Else a tied model that returns its last output again would pass."""
    seen = []

    def forward(self, x):
        seen.append(float(torch.rand(())))
        return self.b(self.a(x))

    model = model_with(forward)
    fxtie.verify(model, tie(model), inputs())
    assert len(set(seen[:6])) == 3


# -- what proves nothing -----------------------------------------------------------------------


def test_a_comparison_that_proves_nothing_is_refused():
    model = net()
    tied = fxtie.transform(model, Rule("2", "0", lambda w: w * 0, lambda b: b * 0))
    with pytest.raises(Vacuous):
        fxtie.verify(model, tied, torch.randn(3, 4))


@pytest.mark.parametrize(
    ("factor", "message"),
    [
        (0.0, "all gradients vanish"),
        (1e-9, "near zero or constant"),
        (float("nan"), "not finite"),
        (float("inf"), "not finite"),
    ],
)
def test_outputs_that_prove_nothing(factor, message):
    model = model_with(lambda self, x: self.b(self.a(x)) * factor)
    tied = tie(model)
    with pytest.raises(Vacuous, match=f"In eval, .*{message}"):
        fxtie.verify(model, tied, inputs())
    with pytest.raises(Vacuous, match=message):
        compare(model, tied, fxtie.report(tied).plan.ties, (inputs(),), train=False)


def test_a_difference_comes_before_what_proves_nothing():
    model = model_with(lambda self, x: self.b(self.a(x)) * 0.0)
    finds(model, spoiled(tie(model), add_one), "output 0 in eval, first call")


def test_gradients_that_are_not_finite():
    def forward(self, x):
        y = self.b(self.a(x))
        return y + (y * 0).sqrt()

    model = model_with(forward)
    with pytest.raises(Vacuous, match="gradients are not finite"):
        fxtie.verify(model, tie(model), inputs())


def test_what_is_no_tied_model():
    with pytest.raises(fxtie.FxtieError, match="tied model"):
        fxtie.verify(net(), net(), inputs())
