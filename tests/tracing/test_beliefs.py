"""What a trace could be led to believe: forwards against their twins, before and after changes."""

import collections
import copy
import dataclasses
import pickle
import types
import typing

import pytest
import torch
import torch.nn.functional as F
from compared import RULE, check, model, x
from elsewhere import Two
from test_source_code import defined
from torch import nn
from torch.nn.modules.module import register_module_forward_hook

import fxtie

# -- what it reads, wherever the code does --------------------------------------------------------


def in_a_comprehension(self, x):
    return self.b(self.a(x)) * sum([n for n in self.numbers if n > self.limit])


def more_numbers(model):
    model.numbers = (1, 2, 3)


def a_lower_limit(model):
    model.limit = 0


@pytest.mark.parametrize("change", [more_numbers, a_lower_limit])
def test_each_part_of_a_comprehension(change):
    check(model(in_a_comprehension, numbers=(1, 2), limit=1), "graph", change=change)


def asks_a_tensor_for_its_shape(self, x):
    return self.b(self.a(x)) * self.extra.shape[0]


def asks_whether_it_is_there(self, x):
    return self.b(self.a(x)) * (2 if self.extra is not None else 3)


def asks_whether_it_is_a_tensor(self, x):
    return self.b(self.a(x)) * (2 if isinstance(self.extra, torch.Tensor) else 3)


def longer(model):
    model.extra = nn.Parameter(torch.ones(7))


def gone(model):
    model.extra = None


def asks_for_the_attribute(self, x):
    return self.b(self.a(x)) * (self.extra if hasattr(self, "extra") else 3)


def asks_with_a_default(self, x):
    return self.b(self.a(x)) * getattr(self, "extra", 3)


def deleted(model):
    del model.extra


@pytest.mark.parametrize("kind", [nn.Parameter, torch.clone])
@pytest.mark.parametrize(
    ("forward", "change"),
    [
        (asks_a_tensor_for_its_shape, longer),
        (asks_whether_it_is_there, gone),
        (asks_whether_it_is_a_tensor, gone),
        (asks_for_the_attribute, deleted),
        (asks_with_a_default, deleted),
    ],
)
def test_questions_about_a_stored_tensor(forward, change, kind):
    report = check(model(forward, extra=lambda: kind(torch.ones(4))), "graph", change=change)
    assert not report.missed


def asks_whether_it_has_more(self, x):
    return self.b(self.a(x)) * (2 if hasattr(self, "more") else 3)


@pytest.mark.parametrize(
    "register",
    [
        lambda model: model.register_parameter("more", None),
        lambda model: model.register_buffer("more", torch.ones(4)),
        lambda model: model.register_module("more", nn.Tanh()),
    ],
)
def test_what_is_registered_later(register):
    check(model(asks_whether_it_has_more), "graph", change=register)


@pytest.mark.parametrize(
    "expression", ["(2 if hasattr(x, 'extra') else 3)", "getattr(x, 'extra', 2)"]
)
def test_what_a_traced_value_may_not_have(expression):
    function = defined(f"def f(self, x):\n  return self.b(self.a(x)) * {expression}\n")
    check(model(function), "kept")


class Steps:
    def both(self, x):
        return self.b(self.a(x))


def calls_by_the_class(self, x):
    return Steps.both(self, x)


def test_a_method_called_by_its_class():
    check(model(calls_by_the_class), "graph")


NAN = float("nan")


def looks_for_a_value(self, x):
    return self.b(self.a(x)) * (2 if self.value in self.values else 3)


def another_nan(model):
    model.value = float("nan")


def another_zero(model):
    model.value = complex(-0.0, 0)


def reads_the_text(self, x):
    return self.b(self.a(x)) * len(str(self.value))


@pytest.mark.parametrize(
    ("forward", "value", "change"),
    [(looks_for_a_value, NAN, another_nan), (reads_the_text, 0j, another_zero)],
)
def test_values_that_are_equal_and_not_alike(forward, value, change):
    check(model(forward, value=value, values=(value,)), "graph", change=change)


def adds_a_tensor(self, x):
    return self.b(self.a(x)) + self.extra


def test_a_plain_tensor_that_is_replaced_stays_in_the_graph():
    tied = fxtie.transform(model(adds_a_tensor, extra=lambda: torch.ones(4))(), RULE)
    before = tied(torch.ones(1, 4))
    tied.extra = torch.zeros(4)
    torch.testing.assert_close(tied(torch.ones(1, 4)), before - 1)
    assert not fxtie.report(tied).missed


@dataclasses.dataclass
class Notes:
    last: object = None

    def __setitem__(self, key, value):
        self.last = value


def writes_to_what_it_has_made(self, x):
    notes = Notes()
    notes[0] = self.a(x)
    return self.b(notes.last)


def test_items_of_an_object_of_the_users():
    check(model(writes_to_what_it_has_made), "kept")


def merges(self, x):
    options = {"scale": 2}
    options.update(self.options)
    return self.b(self.a(x)) * options["scale"]


def merges_pairs(self, x):
    options = {"scale": 2}
    options.update([(name, value) for name, value in self.options.items()])
    return self.b(self.a(x)) * options["scale"]


def extends(self, x):
    names = []
    names.extend(self.options)
    return self.b(self.a(x)) * len(names)


def more_options(model):
    model.options.update(scale=3)


@pytest.mark.parametrize("forward", [merges, merges_pairs, extends])
def test_a_dict_that_is_merged(forward):
    check(model(forward, options=lambda: {"shift": 1}), "graph", change=more_options)


def appends_to_the_longest(self, x):
    longest = max(self.tables)
    longest.append(3)
    return self.b(self.a(x)) * len(longest)


def changes_what_it_iterates(self, x):
    numbers = [1, 2]
    backwards = reversed(numbers)
    numbers[0] = 5
    return self.b(self.a(x)) * sum(backwards)


@pytest.mark.parametrize(
    ("forward", "expected"), [(appends_to_the_longest, "kept"), (changes_what_it_iterates, "graph")]
)
def test_whose_a_list_is(forward, expected):
    check(model(forward, tables=lambda: [[1], [2]]), expected)


CONTENTS = {
    "a key of a dict": ("(2 if 'n' in self.held else 3)", dict, lambda held: held.update(n=1)),
    "an element of a set": ("(2 if 1 in self.held else 3)", set, lambda held: held.add(1)),
    "a slice of a list": ("sum(self.held[:2])", lambda: [1, 2, 3], lambda held: held.reverse()),
    "the length of a list": ("len(self.held)", lambda: [1], lambda held: held.append(1)),
    "the truth of a list": ("(2 if self.held else 3)", list, lambda held: held.append(1)),
    "the greatest of a list": ("max(self.held)", lambda: [1, 2], lambda held: held.append(3)),
}


@pytest.mark.parametrize("name", CONTENTS)
def test_what_a_container_holds(name):
    expression, held, change = CONTENTS[name]
    function = defined(f"def f(self, x):\n  return self.b(self.a(x)) * {expression}\n")
    check(model(function, held=held), "graph", change=lambda model: change(model.held))


def makes_a_list(self, x):
    for layer in nn.ModuleList(self.layers):
        x = layer(x)
    return self.b(self.a(x))


def makes_a_sequence(self, x):
    return self.b(self.a(nn.Sequential(self.named)(x)))


def reverses_the_list(model):
    model.layers.reverse()


def reverses_the_dict(model):
    model.named.move_to_end("tanh")


class Lists(Two):
    def __init__(self):
        super().__init__()
        tanh, exp = nn.Tanh(), nn.Softplus()
        self.blocks, self.layers = nn.ModuleList([tanh, exp]), [tanh, exp]
        self.named = collections.OrderedDict(tanh=tanh, exp=exp)


@pytest.mark.parametrize(
    ("forward", "change"),
    [(makes_a_list, reverses_the_list), (makes_a_sequence, reverses_the_dict)],
)
def test_a_container_of_modules_that_it_makes(forward, change):
    check(model(forward, Lists), "graph", change=change)


def test_an_added_layer_is_told():
    """Not so where a wrapper of torch's takes a layer's place."""
    tied = fxtie.transform(model(makes_a_list, Lists)(), RULE)
    tied.layers.append(nn.ReLU())
    with pytest.warns(fxtie.Outdated, match="layers"):
        tied(x())


def test_hooks_for_all_modules():
    tied, seen = fxtie.transform(model(adds_a_tensor, extra=lambda: torch.ones(4))(), RULE), []
    tied(x())
    handle = register_module_forward_hook(lambda module, args, output: seen.append(module))
    try:
        tied(x())
    finally:
        handle.remove()
    assert tied.b in seen and fxtie.report(tied).missed


# -- arguments and errors ----------------------------------------------------------------------


def refuses(self, x):
    if x.dim() != 2:
        raise ValueError(f"{x.dim()} dimensions")
    return self.b(self.a(x))


def test_errors_are_those_of_the_user():
    tied = fxtie.transform(model(refuses)(), RULE)
    assert not fxtie.report(tied).kept
    with pytest.raises(ValueError, match="3 dimensions"):
        tied(torch.randn(1, 3, 4))


def with_scale(self, x, scale=(1, 1)):
    return self.b(self.a(x)) * scale[0] * scale[1]


def by_keyword(self, x, *, scale=2.0):
    return self.b(self.a(x)) * scale


def by_position(self, x, /):
    return self.b(self.a(x))


@pytest.mark.parametrize(
    ("forward", "calls"),
    [
        (with_scale, [lambda: ((x(), (torch.ones(4), 2)), {}), lambda: ((x(), (1, 1)), {})]),
        (by_keyword, [lambda: ((x(), 2.0), {}), lambda: ((x(),), {"scale": 2.0})]),
        (by_position, [lambda: ((), {"x": x()}), lambda: ((x(),), {})]),
    ],
)
def test_signatures(forward, calls):
    raises = forward is not with_scale
    check(model(forward), "graph", *calls, raises=raises)


def test_annotations_of_all_kinds():
    Function = typing.Callable[[int], int]

    def forward(self, x: typing.Annotated[torch.Tensor, "b c"], f: Function | None = None):
        return self.b(self.a(x))

    check(model(forward), "graph")


FAULTY = {
    "division": lambda self, x: self.b(self.a(x)) * (1 / len(self.items)),
    "maximum": lambda self, x: self.b(self.a(x)) * max(self.items),
    "number": lambda self, x: self.b(self.a(x)) * float("no"),
    "index": lambda self, x: self.b(self.a(x)) * [1, 2][len(self.items) + 2],
}


@pytest.mark.parametrize("name", FAULTY)
def test_code_that_raises_when_it_is_tied(name):
    fill = (lambda model: model.items.append(2)) if name in ("division", "maximum") else None
    check(model(FAULTY[name], items=list), "kept", change=fill, raises=True)


@dataclasses.dataclass(slots=True)
class Slotted:
    y: torch.Tensor
    z: torch.Tensor


def slotted(self, x):
    return Slotted(self.b(self.a(x)), x)


def one_container_twice(self, x):
    outputs = [self.b(self.a(x))]
    return outputs, outputs


def hands_on(self, x, log):
    outputs = []
    log.append(outputs)
    outputs.append(1)
    return self.b(self.a(x)) * len(log[-1])


@pytest.mark.parametrize(
    ("forward", "expected", "call"),
    [
        (slotted, "graph", lambda: ((x(),), {})),
        (one_container_twice, "kept", lambda: ((x(),), {})),
        (hands_on, "kept", lambda: ((x(), []), {})),
    ],
)
def test_containers_that_go_elsewhere(forward, expected, call):
    check(model(forward), expected, call)


# -- copies and pickles ------------------------------------------------------------------------

CONFIG = types.SimpleNamespace(scale=2)
CONSTANT = torch.ones(4)
ACTIVATIONS = {"double": lambda x: x * 2}


class Configured(Two):
    def forward(self, x):
        return self.b(self.a(x)) * CONFIG.scale


class Activated(Two):
    def forward(self, x):
        return ACTIVATIONS["double"](self.b(self.a(x)))


def test_a_copy_sees_what_is_outside_of_the_model(monkeypatch):
    tied = fxtie.transform(Configured(), RULE)
    copied, given = copy.deepcopy(tied), x()
    before = copied(given)
    monkeypatch.setattr(CONFIG, "scale", 3)
    with pytest.warns(fxtie.Outdated):
        assert torch.allclose(copied(given), before * 1.5)


def test_a_copy_has_tensors_of_its_own():
    def forward(self, x):
        return self.b(self.a(x)) * self.tensors[0] + CONSTANT

    tied, given = fxtie.transform(model(forward, tensors=lambda: [torch.ones(4)])(), RULE), x()
    copied, before = copy.deepcopy(tied), tied(given)
    copied.tensors[0].zero_()
    assert torch.equal(tied(given), before)
    assert torch.equal(copied(given), CONSTANT.expand(3, 4))
    CONSTANT.add_(1)
    assert torch.equal(copied(given), CONSTANT.expand(3, 4))
    assert not (fxtie.report(copied).missed or fxtie.report(copied).kept)


@pytest.mark.parametrize("make", [Configured, Activated])
def test_a_pickled_graph_holds_for_what_can_be_found_again(make):
    tied = fxtie.transform(make(), RULE)
    assert not fxtie.report(tied).kept
    again, given = pickle.loads(pickle.dumps(tied)), x()
    with pytest.warns(fxtie.Outdated, match="was not pickled"):
        assert torch.equal(again(given), tied(given))


def test_a_pickled_graph_goes_on():
    class_level = fxtie.transform(model_at_module_level(), RULE)
    again, given = pickle.loads(pickle.dumps(class_level)), x()
    assert torch.equal(again(given), class_level(given))
    assert not fxtie.report(again).missed


class Plainly(Two):
    def forward(self, x):
        return F.relu(self.b(self.a(x)))


def model_at_module_level():
    return Plainly()


FACTOR = 2.0


def scaled(weight):
    return weight * FACTOR


def per_row(weight):
    return weight / weight.shape[0]


def test_transforms_follow_what_they_read(monkeypatch):
    tied = fxtie.transform(Plainly(), fxtie.Rule("b", "a", weight=scaled, bias=None))
    monkeypatch.setitem(globals(), "FACTOR", 5.0)
    assert torch.equal(tied.b.weight, tied.a.weight * 5)
    given = x()
    with pytest.warns(fxtie.Outdated):
        assert torch.equal(tied(given), type(tied)._fxtie_made.user.forward(tied, given))


def test_transforms_follow_the_shape_of_their_source():
    tied = fxtie.transform(Plainly(), fxtie.Rule("b", "a", weight=per_row, bias=None))
    tied.a.weight = nn.Parameter(torch.randn(8, 4))
    assert torch.equal(tied.b.weight, tied.a.weight / 8)
