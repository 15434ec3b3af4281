"""Faults of rule files, each with its line and key."""

from __future__ import annotations

import json

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rule_files import SCHEMA, WHOLE, load_or_fault, toml

from fxtie.errors import RuleError
from fxtie.rules.files import load_rules

# --- What is wrong, and where -----------------------------------------------------------------


RULE = '[[rule]]\ntarget = "a"\nsource = "b"\n'


@pytest.mark.parametrize(
    ("text", "line", "says"),
    [
        ("[[rule]]\ntarget =", 2, "Invalid value"),
        ("[[rule]\n\n", 1, "Expected ']]'"),
        ('[[rule]]\n\ntarget = "a', 3, "Unterminated string"),
        ("a = " + "[" * 5000, 1, "nested too deeply"),
        ("a = " + "9" * 5000, 1, "Exceeds the limit"),
        ("", 1, "The key 'rule' is missing"),
        ("rule = []", 1, "rule: A list of one or more rules is needed here, not []"),
        ("rule = 3", 1, "rule: A list of one or more rules"),
        ("rule = [3]", 1, "rule[0]: A table is needed here, not 3"),
        ("\n[[rules]]\n", 2, "rules: There is no such key. Closest names: 'rule'"),
        ('[[rule]]\ntarget = "a"\n', 1, "rule[0]: The key 'source' is missing"),
        (RULE + "\nwieght = 'abs'", 5, "rule[0].wieght: There is no such key. Closest names: 'wei"),
        (RULE + "weight = 'sqare'", 4, "rule[0].weight: There is no transform named 'sqare'. Clos"),
        (RULE + "weight.transform = 'rot90'\nweight.q = 1", 4, "has no argument 'q'. It takes 'k'"),
        (
            RULE + "# a comment\n\n[rule.weight]\ntransform = 'rot90'",
            6,
            "argument 'k' of transform",
        ),
        (
            '[[rule]]\ntarget = "a"\nsource = [\n"b",\n{ bank = "x", ntry = 1 }]',
            3,
            "rule[0].source[1].ntry: There is no such key. Closest names: 'entry'.",
        ),
        (RULE + "weight = true", 4, "A transform is written as its name"),
        (RULE + "weight = { shared = 'x' }", 4, "There is no shared transform 'x'"),
        (RULE + "weight = { shared = [] }", 4, "There is no shared transform []"),
        (RULE + "tensors = { count = 'abs' }", 4, "rule[0].tensors.count: This is a key of the"),
        (RULE + "tensors = 3", 4, "A table of names"),
        (RULE + "count = 0", 4, "A positive integer is needed here, not 0"),
        (RULE + "count = true", 4, "A positive integer"),
        (RULE + 'exclude = [\n"a",\n"re:(",\n]', 4, "regular expression"),
        (RULE + "transform = false", 4, "A transform is written as its name"),
        (RULE + "transform = 'abs'\nweight = 'abs'", 5, "There is no such key. Those here are ta"),
        (RULE + RULE.replace('"a"', "[]"), 5, "rule[1].target: A string is needed here, not []"),
        (RULE + "[[rule]]\ntarget = 're:['\nsource = {}", 5, "regular expression"),
        ("[[rule]]\ntarget = 'a'\nsource = { bank = 'x' }", 3, "There is no bank 'x'"),
        ("[bank.x]\nn = 0\nshape = []\n" + RULE, 2, "bank.x.n: A positive integer"),
        ("[bank.x]\nn = 1\n" + RULE, 1, "bank.x: The key 'shape' is missing"),
        ("[bank.x]\nn = 1\nshape = [1]\n" + RULE, 1, "bank.x: No rule uses it"),
        ("[bank.x]\nn = 1\nshape = [-1]\n" + RULE, 3, "A shape is a list of integers"),
        ("[bank.x]\nn = 1\nshape = [1]\ndtype='float31'\n" + RULE, 4, "Closest names: 'float32'"),
        ("[bank.x]\nn = 1\nshape = [99999999999, 99999999999]\n" + RULE, 1, "can't be made"),
        ("[shared.x]\ntransform = 'abs'\n" + RULE, 1, "has nothing to learn"),
        ("[shared.x]\ntransform = 'tile'\nshape = [4]\n" + RULE, 1, "has nothing to learn"),
        ("[shared.x]\ntransform = {transform = 'LowRank', rank = 1}\n" + RULE, 1, "Add the shape"),
        (
            "[shared.x]\ntransform = {transform = 'LowRank', rank = 9}\nshape = [4, 4]\n" + RULE,
            1,
            "can't be fitted to (4, 4)",
        ),
        (
            "[shared.x]\ntransform = 'tests.rule_files.Gain'\nshape = [4, 4]\n" + RULE,
            1,
            "doesn't depend on its target",
        ),
        ("[shared.x]\ntransform = {shared = 'x'}\n" + RULE, 2, "There is no shared transform 'x'"),
    ],
)
def test_errors_name_the_line_and_the_key(text, line, says, tmp_path):
    path = toml(tmp_path, text)
    with pytest.raises(RuleError) as caught:
        load_rules(path)
    assert_one_says(caught.value, f"{path}:{line}: ", says)


def assert_one_says(error, where, what):
    assert any(line.startswith(where) and what in line for line in str(error).split("\n"))


@pytest.mark.parametrize(
    ("text", "line", "says"),
    [
        ("", 1, "Expecting value"),
        ('{\n"rule": [\n}', 3, "Expecting value"),
        ("[" * 100_000, 1, "nested too deeply"),
        ("\n[]", 1, "A table is needed here, not []"),
        ('{"rule": [{\n"target": "a",\n"sorce":\n"b"}]}', 3, "Closest names: 'source'"),
        ('{"rule": [{\n"target": "a",\n"target": "b"}]}', 3, "The key 'target' is there twice"),
        ('{\n"rule": [{},\n[{}],\n {"a": [1, {"b": 2}]}]}', 4, "rule[2].a: There is no such key"),
    ],
    ids=range(7),
)
def test_errors_in_json_too(text, line, says, tmp_path):
    path = toml(tmp_path, text, "rules.json")
    with pytest.raises(RuleError) as caught:
        load_rules(path)
    assert_one_says(caught.value, f"{path}:{line}: ", says)


def test_every_fault_at_once_in_the_order_of_the_lines(tmp_path):
    path = toml(tmp_path, RULE + "wait = 1\ncount = 0\n" + RULE + "weight = 'x'\n[[rule]]")
    with pytest.raises(RuleError) as caught:
        load_rules(path)
    lines = [int(line.split(":")[1]) for line in str(caught.value).split("\n")]
    assert lines == [4, 5, 9, 10, 10]


def test_only_the_first_faults_are_told(tmp_path):
    path = toml(tmp_path, RULE.replace("target", "tarjet") * 50)
    with pytest.raises(RuleError) as caught:
        load_rules(path)
    *told, last = str(caught.value).split("\n")
    assert [int(line.split(":")[1]) for line in told[:3]] == [2, 1, 5]
    assert len(told) == 20 and last == "and 80 more faults"


# --- The schema -------------------------------------------------------------------------------


def places(value):
    """Every place in nested JSON, as the container and the key."""
    if isinstance(value, dict | list):
        for key in list(value) if isinstance(value, dict) else range(len(value)):
            yield value, key
            yield from places(value[key])


# Numbers stay small: a bank of a million templates is a right one, and takes its time.
VALUES = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(-2, 9),
        st.floats(),
        st.text(max_size=3),
        st.sampled_from(["same", "rot90", "LowRank", "re:(", "templates", "gain", "float32"]),
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(
            st.one_of(
                st.sampled_from(
                    ["rule", "bank", "shared", "target", "source", "weight", "tensors", "transform"]
                ),
                st.sampled_from(["n", "k", "rank", "shape", "dtype", "count", "exclude", "s"]),
                st.text(max_size=2),
            ),
            inner,
            max_size=4,
        ),
    ),
    max_leaves=6,
)


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_any_json_is_rules_or_a_fault_and_the_schema_agrees(folder, data):
    content = json.loads((folder / "whole.json").read_text())
    if data.draw(st.booleans()):
        content = data.draw(VALUES)
    else:
        for _ in range(data.draw(st.integers(1, 2))):
            container, key = data.draw(st.sampled_from(list(places(content))))
            if data.draw(st.booleans()):
                container[key] = data.draw(VALUES)
            else:
                del container[key]
    path = folder / "any.json"
    path.write_text(json.dumps(content, indent=data.draw(st.sampled_from([None, 1]))))
    if load_or_fault(path) is not None:
        jsonschema.validate(content, SCHEMA)


@settings(max_examples=300, deadline=None)
@given(
    st.one_of(
        st.binary(max_size=40),
        st.text(st.sampled_from('[]{}="\'\n .,#ab1\\_-+:"'), max_size=40).map(str.encode),
        st.tuples(
            st.integers(0, len(WHOLE)),
            st.integers(0, 30),
            st.one_of(
                st.binary(max_size=4),
                st.text(st.sampled_from("[]{}=\"'\n .,#"), max_size=6).map(str.encode),
            ),
        ).map(lambda cut: WHOLE[: cut[0]].encode() + cut[2] + WHOLE[cut[0] + cut[1] :].encode()),
    )
)
def test_any_text_is_rules_or_a_fault(folder, content):
    for name in ("any.toml", "any.json"):
        (folder / name).write_bytes(content)
        load_or_fault(folder / name)


@pytest.mark.parametrize("depth", [50, 500, 800, 900, 950, 990, 5000])
def test_any_depth_is_a_fault(depth, folder):
    for name, before in (("deep.toml", "rule = "), ("deep.json", '{"rule": ')):
        (folder / name).write_text(before + "[" * depth + "]" * depth + "}" * ("json" in name))
        assert load_or_fault(folder / name) is None
