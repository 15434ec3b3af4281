"""Patterns and what a rule refuses by itself."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import fxtie
from fxtie.rules.patterns import Pattern

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


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: fxtie.Rule(3, "a"), "callable (name, module) -> bool"),
        (lambda: fxtie.Rule("re:(", "a"), "regular expression"),
        (lambda: fxtie.Rule("a", "b", weight=2), "weight= of the rule for a"),
        (lambda: fxtie.Rule((), "b"), "one target or more"),
        (lambda: fxtie.Rule("a", "{0.real}"), "{0.real} is no group"),
        (lambda: fxtie.Rule("a", "{0 ** 2}"), "{0 ** 2} is no group"),
        (lambda: fxtie.Rule("a", "{__import__('os')}"), "is no group"),
        (lambda: fxtie.Rule("a", ("b", 3)), "A source is a dotted name"),
        (lambda: fxtie.Rule("a", "b", count=0), "positive int"),
        (lambda: fxtie.Rule("a", "b", exclude=3), "exclude= of the rule for a"),
        (lambda: fxtie.Bank(2.5, (3, 3)), "one template or more, not 2.5"),
        (lambda: fxtie.Rule("a", "b", count=True), "positive int"),
        (lambda: fxtie.Tie("a.weight", "b.weight", 3), "is a callable on tensors"),
        (lambda: fxtie.plan(torch.nn.Linear(1, 1), []), "list is empty"),
        (lambda: fxtie.plan(torch.nn.Linear(1, 1), "a"), "fxtie.Rule or fxtie.Tie"),
        (lambda: fxtie.plan(torch.nn.Linear(1, 1), ["a"]), "fxtie.Rule or fxtie.Tie"),
    ],
)
def test_rules_that_make_no_sense_are_refused(make, words):
    with pytest.raises(fxtie.RuleError) as info:
        make()
    assert words in str(info.value)


def test_repr_shows_what_was_typed():
    rule = fxtie.Rule("b.*", ("a", "c"), torch.add, None, exclude="b.0", in_proj_weight=torch.neg)
    assert repr(rule) == (
        "Rule('b.*', ('a', 'c'), weight=add, bias=None, in_proj_weight=neg, exclude=['b.0'])"
    )
