"""What a trace could be led to believe: forwards against their twins, before and after changes."""

import dataclasses
import typing

import pytest
import torch
from compared import check, model, x
from test_source_code import defined

# -- what it reads, wherever the code does --------------------------------------------------------


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


# -- arguments and errors ----------------------------------------------------------------------


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
