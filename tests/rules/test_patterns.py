"""Patterns: what they match, and the names that are made of it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fxtie.rules.patterns import Match, Pattern

EXPRESSIONS = st.recursive(
    st.integers(0, 9).map(str) | st.just("n"),
    lambda inner: st.tuples(inner, st.sampled_from(["+", "-", "*", "//", "%"]), inner).map(
        lambda parts: f"({parts[0]} {parts[1]} {parts[2]})"
    ),
    max_leaves=6,
)


@given(EXPRESSIONS, st.integers(0, 50))
def test_arithmetic_is_that_of_python(expression, n):
    expression = f"n + {expression}"  # a number that came first would be a wildcard's
    template = f"a.{{{expression}}}.b"
    match = Match((str(n),), {"n": str(n)})
    try:
        expected = eval(expression, {"n": n})
    except ZeroDivisionError:
        with pytest.raises(ValueError, match="divides by zero"):
            match.fill(template)
    else:
        assert match.fill(template) == f"a.{expected}.b"


NAMES = st.lists(st.text("abc01", min_size=1, max_size=3), min_size=1, max_size=4).map(".".join)


@pytest.mark.parametrize(
    ("pattern", "name", "groups"),
    [
        ("conv_2", "conv_2", ()),
        ("layer*.conv", "layer3.conv", ("3",)),
        ("*", "a", ("a",)),
        ("a.**", "a.b.c", ("b.c",)),
        ("a.**", "a", ("",)),
        ("**.c", "c", ("",)),
        ("**.c", "a.b.c", ("a.b",)),
        ("a.**.c", "a.c", ("",)),
        ("a.**.c", "a.x.y.c", ("x.y",)),
        ("**", "a.b", ("a.b",)),
        (r"re:layer(\d+)\.(.*)", "layer12.x.y", ("12", "x.y")),
    ],
)
def test_a_pattern_matches(pattern, name, groups):
    assert Pattern(pattern).match(name).groups == groups


@pytest.mark.parametrize(
    ("pattern", "name"),
    [
        ("conv_2", "conv_20"),
        ("conv.2", "convx2"),
        ("layer*", "layer1.conv"),
        ("*.c", "a.b.c"),
        ("a.**", "ab"),
        ("re:conv", "conv_1"),
    ],
)
def test_a_pattern_does_not_match(pattern, name):
    assert Pattern(pattern).match(name) is None


@given(NAMES)
def test_a_name_matches_itself_and_both_wildcards(name):
    assert Pattern(name).match(name).groups == ()
    assert Pattern("**").match(name).groups == (name,)
    starred = ".".join("*" for _ in name.split("."))
    assert Pattern(starred).match(name).groups == tuple(name.split("."))


@given(NAMES, NAMES)
def test_double_star_matches_a_name_and_whatever_is_inside(outer, inner):
    pattern = Pattern(f"{outer}.**")
    assert pattern.match(outer).groups == ("",)
    assert pattern.match(f"{outer}.{inner}").groups == (inner,)
    assert pattern.match(f"x{outer}.{inner}") is None


def test_sources_are_filled_in():
    match = Pattern("blocks.*.**").match("blocks.3.mlp.fc")
    assert match.fill("blocks.0.{1}") == "blocks.0.mlp.fc"
    assert Pattern("blocks.*.**").match("blocks.3").fill("blocks.0.{1}") == "blocks.0"
    assert Pattern(r"re:l(?P<n>\d)").match("l4").fill("k{n}") == "k4"
