"""Operations on values: Python's own are computed and guarded, those of the user's stop a trace."""

import collections
import dataclasses
import enum
import functools
import typing

import pytest
from compared import check, model
from test_source_code import defined

OFFSET = 1


class Size(typing.NamedTuple):
    height: int
    width: int

    def __add__(self, other):
        return Size(self.height + OFFSET, self.width + OFFSET)

    def __len__(self):
        return OFFSET

    def __getitem__(self, index):
        return OFFSET

    def __str__(self):
        return "x" * OFFSET


class Computed(collections.namedtuple("Computed", ["height"])):
    @property
    def height(self):
        return OFFSET


class Partial(tuple):
    __len__ = functools.partialmethod(lambda self, number: number, OFFSET)


class Made(tuple):
    _fields = ("height",)

    def __new__(cls, height):
        return super().__new__(cls, (height * OFFSET,))


class Text(str):
    def __len__(self):
        return OFFSET

    def __iter__(self):
        return iter(range(OFFSET))


class Proxy:
    @property
    def __class__(self):
        return int if OFFSET else str


class Plain(typing.NamedTuple):
    height: int
    width: int


class Mode(enum.Enum):
    ON = 1

    def __str__(self):
        return "x" * OFFSET


Mode.__str__.__module__ = "enums"  # which is no file of Python's


class Kind(enum.Enum):
    ONE = 1


class Valued(enum.Enum):
    ONE = 1

    @property
    def value(self):
        return OFFSET


class Equal:
    def __eq__(self, other):
        return OFFSET == 1


class Hashed:
    """Found where the number is that `OFFSET` says."""

    def __hash__(self):
        return hash(OFFSET)

    def __eq__(self, other):
        return other == OFFSET

    def __index__(self):
        return OFFSET


class Counted(type):
    def __bool__(cls):
        return OFFSET == 1

    def __or__(cls, other):
        return OFFSET

    def __eq__(cls, other):
        return OFFSET == 1

    __hash__ = type.__hash__

    @property
    def size(cls):
        return OFFSET


class Known(metaclass=Counted):
    size = 2


class Scaled:
    scale = 2


@dataclasses.dataclass(init=False)
class OwnInit:
    scale: int

    def __init__(self, scale):
        self.scale = scale * OFFSET


class Twice:
    def __get__(self, instance, owner):
        return instance and instance.__dict__["scale"]

    def __set__(self, instance, value):
        instance.__dict__["scale"] = (value, value)


@dataclasses.dataclass
class OwnField:
    scale: int = Twice()


@dataclasses.dataclass
class OwnArgument:
    scale: int
    other: dataclasses.InitVar[int]


class Negative:
    def __new__(cls, number):
        return -number * OFFSET


class Registry:
    entries: typing.ClassVar = {"two": 2}

    def __class_getitem__(cls, name):
        return cls.entries[name]


OPERATORS = {
    "addition of a tuple": ("(self.size + (1, 2))[0]", Size(1, 2), "kept"),
    "length of a tuple": ("len(self.size)", Size(1, 2), "kept"),
    "item of a tuple": ("self.size[1]", Size(1, 2), "kept"),
    "truth of a tuple": ("(2 if self.size else 3)", Size(1, 2), "kept"),
    "text of a tuple": ("len(f'{self.size}')", Size(1, 2), "kept"),
    "text of an enum": ("len(f'{self.size}')", Mode.ON, "kept"),
    "item of a class": ("self.size['two']", lambda: Registry, "kept"),
    "item of an enum": ("self.size['ONE'].value", lambda: Kind, "graph"),
    "name of an enum": ("len(self.size.name)", Kind.ONE, "graph"),
    "value of an enum": ("self.size.value", Valued.ONE, "graph"),
    "equality to an item": ("[self.size, 2].index(2)", Equal, "kept"),
    "equality": ("(2 if self.size == None else 3)", Equal, "kept"),
    "a class as key": ("sorted((2, 1), key=self.size)[0]", lambda: Negative, "kept"),
    "a key": ("{0: 2, 1: 3}[self.size]", Hashed, "kept"),
    "a key that is asked for": ("{0: 2, 1: 3}.get(self.size, 4)", Hashed, "kept"),
    "a key in a tuple": ("{(0,): 2, (1,): 3}.get((self.size,), 4)", Hashed, "kept"),
    "a key among others": ("self.size.get(1, 4)", lambda: {Hashed(): 2}, "kept"),
    "an index": ("(2, 3)[self.size]", Hashed, "kept"),
    "an end": ("sum((2, 3)[: self.size])", Hashed, "kept"),
    "an element": ("(2 if 1 in self.size else 3)", lambda: {Hashed()}, "kept"),
    "keys of a dict that is merged": ("len(dict(self.size, a=1))", lambda: {Hashed(): 2}, "kept"),
    "a place": ("[2, 3].pop(self.size)", Hashed, "kept"),
    "a start": ("[*enumerate((2, 3), self.size)][0][0]", Hashed, "kept"),
    "truth of a class": ("(2 if self.size else 3)", lambda: Known, "kept"),
    "union of classes": ("(self.size | 3)", lambda: Known, "kept"),
    "equality of classes": ("(2 if self.size == int else 3)", lambda: Known, "kept"),
    "attribute of a class": ("self.size.size", lambda: Known, "kept"),
    "a field of a tuple": ("self.size.height", Computed(2), "kept"),
    "length by a partial method": ("len(self.size)", Partial((1, 2)), "kept"),
    "making a tuple": ("self.size(2)[0]", lambda: Made, "kept"),
    "length of a text": ("len(self.size)", Text("ab"), "kept"),
    "characters of a text": ("len([c for c in self.size])", Text("ab"), "kept"),
    "class of an object": ("(2 if isinstance(self.size, int) else 3)", Proxy, "kept"),
    "class of an object, read": ("(2 if self.size.__class__ is int else 3)", Proxy, "kept"),
    "a part of what is formatted": ("len('{0.scale}'.format(self.size))", lambda: Scaled, "kept"),
    "making a dataclass": ("self.size(2).scale", lambda: OwnInit, "kept"),
    "an argument that is no field": ("self.size(2, 3).scale", lambda: OwnArgument, "kept"),
    "the greatest list": ("max([[1, 2], [2, 3]])[0]", None, "graph"),
    "a plain tuple": ("(self.size + (1, 2))[0] * len(self.size)", Plain(2, 2), "graph"),
    "a plain enum": ("len(f'{self.size}')", Kind.ONE, "graph"),
    "a tuple of Python's": ("(2 if sys.version_info >= (3, 10) else 3)", None, "graph"),
}


@pytest.mark.parametrize("name", OPERATORS)
def test_operators_of_the_users(name):
    expression, size, expected = OPERATORS[name]
    function = defined(f"import sys\ndef f(self, x):\n  return self.b(self.a(x)) * {expression}\n")
    check(model(function, size=size), expected)


def test_a_field_that_a_descriptor_sets():
    def forward(self, x):
        return OwnField(self.b(self.a(x)))

    check(model(forward), "kept")


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


@pytest.mark.parametrize("operator", ["in", "not in"])
def test_whether_a_value_is_in_another(operator):
    forward = defined(
        f"def f(self, x):\n  return self.b(self.a(x)) * (2 - (x[0, 0] {operator} x.relu()))\n"
    )
    check(model(forward), "graph")


def test_a_list_that_is_joined_of_two_is_the_codes_own():
    def forward(self, x):
        first = [self.a(x)]
        found = first + [x]  # noqa: RUF005 (two lists are joined)
        found.append(x * 2)
        return self.b(sum(found))

    check(model(forward), "graph")
