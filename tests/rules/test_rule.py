"""What a rule refuses by itself, and how it is printed."""

import pytest
import torch

import fxtie


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
        (lambda: fxtie.Rule("a", "b", count=True), "positive int"),
        (lambda: fxtie.Tie("a.weight", "b.weight", 3), "is a callable on tensors"),
        (lambda: fxtie.each(3), "fxtie.each takes a function"),
        (lambda: fxtie.Tie((), "a"), "is a tensor's name, or several, not ()"),
        (lambda: fxtie.Tie(("a", "a"), "b"), "the same target twice"),
        (lambda: fxtie.Tie("a", 3), "a fxtie.Bank, fxtie.Tensors or a tensor of these, not int: 3"),
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
