"""Files of rules: what they say, read and written again."""

from __future__ import annotations

import re
import textwrap
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from rule_files import WHOLE, Gain, described, toml, whole_rules
from torch import nn

import fxtie
from fxtie.errors import RuleError
from fxtie.rules import files as rule_files
from fxtie.rules.files import dump_rules, load_rules
from fxtie.rules.rule import Rule, Tie
from fxtie.transforms import (
    ChannelScale,
    LowRank,
    chain,
    flip,
    mean,
    neg,
    rot90,
    same,
    scale,
    square,
    tile,
)

# --- What files say ---------------------------------------------------------------------------


def test_a_file_says_all_that_a_rule_can_say(tmp_path):
    loaded = load_rules(toml(tmp_path, WHOLE))
    assert described(loaded) == described(whole_rules())


@pytest.mark.parametrize("name", ["rules.toml", "rules.json"])
def test_dumped_and_loaded(name, tmp_path):
    dump_rules(whole_rules(), tmp_path / name)
    assert described(load_rules(tmp_path / name)) == described(whole_rules())


def test_rules_of_a_file_tie_a_model(tmp_path):
    rules = load_rules(
        toml(
            tmp_path,
            """
            [shared.adapter]
            transform = { transform = "LowRank", rank = 1 }
            shape = [4, 4]

            [[rule]]
            target = "*"
            source = "0"
            weight = { shared = "adapter" }
            bias = false
            """,
        )
    )
    model = nn.Sequential(*(nn.Linear(4, 4) for _ in range(3)))
    tied = fxtie.transform(model, rules)
    learned = [name for name, _ in tied.named_parameters() if name.startswith("ties.")]
    assert len(learned) == 2  # one A and one B for both targets


def test_a_shared_chain_in_a_chain(tmp_path):
    path = toml(
        tmp_path,
        """
        [shared.learned]
        transform = { transform = "chain", transforms = ["tests.rule_files.Gain", "neg"] }
        [[rule]]
        target = "a"
        source = "b"
        weight = { transform = "chain", transforms = [{ shared = "learned" }, "square"] }
        bias = { shared = "learned" }
        """,
    )
    (rule,) = load_rules(path)
    weight, bias = rule.transforms["weight"], rule.transforms["bias"]
    assert weight.transforms == (*bias.transforms, square)


def test_the_suffix_decides(tmp_path):
    for call in (lambda p: load_rules(p), lambda p: dump_rules(Rule("a", "b"), p)):
        with pytest.raises(RuleError, match=re.escape("rules.yaml: A rule file ends in .toml or")):
            call(tmp_path / "rules.yaml")


def test_no_file(tmp_path):
    with pytest.raises(FileNotFoundError):
        load_rules(tmp_path / "rules.toml")


# --- What is wrong, and where -----------------------------------------------------------------


def test_the_form_that_is_documented(tmp_path):
    text = "".join(re.findall(r"(?m)^    .*\n", rule_files.__doc__))
    rules = load_rules(toml(tmp_path, textwrap.dedent(text)))
    assert [type(rule) for rule in rules] == [Rule, Tie, Rule, Rule, Rule]


def test_bytes_that_are_no_text(tmp_path):
    path = tmp_path / "rules.toml"
    path.write_bytes(b"a = 1\n# \xff\n")
    with pytest.raises(RuleError, match=r"rules\.toml:2: This is no text in UTF-8"):
        load_rules(path)


NAMES = st.text(st.characters(exclude_categories=["Cs"]), max_size=6).filter(
    lambda name: not name.startswith("re:")
)


BANKS = [fxtie.Bank(2, (3, 4)), fxtie.Bank(1, (1,)), fxtie.Bank(3, (2,), dtype=torch.bfloat16)]


SIZED = LowRank(1).for_target(torch.empty(2, 3))


LEARNED = [Gain(0.25), SIZED, chain(Gain(), tile())]


TRANSFORMS = st.recursive(
    st.one_of(
        st.sampled_from([same, square, neg, mean(), tile(), LowRank(2), ChannelScale(), *LEARNED]),
        st.builds(scale, st.floats(allow_nan=False, allow_infinity=False)),
        st.builds(rot90, st.integers()),
        st.builds(flip, st.integers()),
    ),
    # In a chain only one can take the shape of the target, and none before the chain does.
    lambda inner: (
        st.lists(st.one_of(inner, st.just(neg)), min_size=1, max_size=3)
        .filter(lambda members: sum("tile" in repr(member) for member in members) < 2)
        .filter(lambda members: SIZED not in members)
        .map(lambda members: chain(*members))
    ),
    max_leaves=3,
)


OPTIONAL = st.none() | TRANSFORMS


TEMPLATES = NAMES.map(lambda name: name.replace("{", "{{").replace("}", "}}"))
FREE = fxtie.Tensors(A=(2, 3), B=(4,), frozen="B")
SOURCES = st.one_of(
    TEMPLATES, st.sampled_from([*BANKS, BANKS[0][1], FREE, FREE["B"], "{0}", "{0 % 4}.a"])
)
TARGETS = st.one_of(NAMES, st.lists(NAMES, min_size=1, max_size=3, unique=True))
RULES = st.one_of(
    st.builds(Tie, TARGETS, st.lists(SOURCES, max_size=2).map(tuple), TRANSFORMS),
    st.builds(
        lambda target, source, weight, bias, buffers, exclude, count, tensors: Rule(
            target, source, weight, bias, buffers=buffers, exclude=exclude, count=count, **tensors
        ),
        st.one_of(TARGETS, st.just(r're:layer(\d+)\."')),
        st.one_of(SOURCES, st.lists(SOURCES, max_size=2)),
        TRANSFORMS,
        OPTIONAL,
        st.booleans(),
        st.lists(NAMES, max_size=2),
        st.none() | st.integers(1),
        st.dictionaries(st.sampled_from(["a", "in_proj_weight", "é "]), OPTIONAL, max_size=2),
    ),
)


@settings(max_examples=60, deadline=None)
@given(st.lists(RULES, min_size=1, max_size=4), st.sampled_from(["toml", "json"]))
def test_any_rules_come_back(folder, rules, kind):
    path: Path = folder / f"again.{kind}"
    dump_rules(rules, path)
    assert described(load_rules(path)) == described(rules)
