"""Rule files: what they say, what is wrong and where, and that they come back as written."""

from __future__ import annotations

import json
import re
import textwrap
from importlib import resources
from pathlib import Path

import jsonschema
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import fxtie
from fxtie.errors import RuleError
from fxtie.rules import files as rule_files
from fxtie.rules.files import dump_rules, load_rules
from fxtie.rules.free import Entry
from fxtie.rules.reader import BANK_DTYPES, RESERVED
from fxtie.rules.rule import Rule, Tie
from fxtie.transforms import (
    ChannelScale,
    LowRank,
    Mix,
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
from fxtie.transforms.registry import register

SCHEMA = json.loads(resources.files("fxtie.rules").joinpath("rules.schema.json").read_text())


@register("tests.rule_files.Gain")
class Gain(nn.Module):
    """A learnable transform that doesn't depend on its target."""

    def __init__(self, start: float = 1.0) -> None:
        super().__init__()
        self.start = start
        self.gain = nn.Parameter(torch.tensor(start))

    def forward(self, source):
        return source * self.gain


@register("tests.rule_files.Wide")
class Wide(nn.Module):
    def __init__(self, *, limit: float | None = 1.0) -> None:
        super().__init__()
        self.limit = limit

    def forward(self, source):
        return source


def described(rules):
    """What rules say, as plain values: two lists that mean the same are equal."""
    modules: list[nn.Module] = []

    def index(module):
        if module not in modules:
            modules.append(module)
        return modules.index(module)

    def transform(value):
        if not isinstance(value, nn.Module):
            return value
        members = getattr(value, "transforms", None)
        state = {name: (t.shape, t.dtype) for name, t in value.state_dict().items()}
        # Without tensors each target gets one of its own: then it doesn't matter which it is.
        which = index(value) if state else None
        inner = repr(value) if members is None else tuple(map(transform, members))
        return which, inner, getattr(value, "start", None), state

    def source(value):
        if isinstance(value, str):
            return value
        if isinstance(value, Entry):
            return source(value.owner), value.name
        tensors = [
            value.get_parameter(n) if n not in value._buffers else value.get_buffer(n)
            for n in value.tensor_names()
        ]
        return index(value), [(t.shape, t.dtype, isinstance(t, nn.Parameter)) for t in tensors]

    def sources(rule):
        return [source(value) for value in rule.sources]

    return [
        (rule.targets, *sources(rule), transform(rule.transform))
        if isinstance(rule, Tie)
        else (
            [pattern.pattern for pattern in rule.targets],
            rule.buffers,
            *sources(rule),
            {name: transform(value) for name, value in rule.transforms.items()},
            rule.named_tensors,
            [pattern.pattern for pattern in rule.exclude],
            rule.count,
        )
        for rule in rules
    ]


def toml(tmp_path, text, name="rules.toml"):
    path = tmp_path / name
    path.write_text(text)
    return path


# --- What files say ---------------------------------------------------------------------------


WHOLE = """
[[rule]]
target = "decoder.*"
source = "encoder.{0}"
weight = { transform = "rot90", k = 1 }
bias = false
tensors = { in_proj_weight = "neg", in_proj_bias = false }
exclude = "decoder.3"
count = 3

[[rule]]
target = "head.weight"
source = "embedding.weight"
transform = "square"

[[rule]]
target = "mix"
source = ["a", "b"]
weight = "mean"
[rule.bias]
transform = "chain"
transforms = ["mean", { transform = "scale", s = 0.5 }]

[[rule]]
target = "positions"
source = []
weight = { transform = "chain", transforms = [{ shared = "gain" }, "tile"] }

[[rule]]
target = 're:conv_[1-4]'
source = { bank = "templates" }
weight = { transform = "Mix", n = 8 }
bias = false

[[rule]]
target = "fc_*"
source = "fc"
weight = { shared = "adapter" }
bias = { shared = "gain" }

[[rule]]
target = ["*.q", "*.k"]
source = ["{0 // 2 * 2}.qk", { tensors = "vera" }, { tensors = "vera", entry = "B" }]
weight = "mean"
buffers = true

[[rule]]
target = ["a.weight", "b.weight"]
source = [{ bank = "templates", entry = 3 }]
transform = "mean"

[bank.templates]
n = 8
shape = [4, 4, 3, 3]

[tensors.vera]
A = { shape = [2, 8], frozen = true }
B = { shape = [8, 2], dtype = "float64" }

[shared.adapter]
transform = { transform = "LowRank", rank = 2 }
shape = [4, 4]
dtype = "float64"

[shared.gain]
transform = { transform = "tests.rule_files.Gain", start = 2 }
"""


def whole_rules():
    gain = Gain(2.0)
    bank = fxtie.Bank(8, (4, 4, 3, 3))
    vera = fxtie.Tensors(A=torch.ones(2, 8), B=torch.ones(8, 2).double(), frozen=("A",))
    vera.given = ()  # as if they had been given by their shapes
    return [
        Rule(
            "decoder.*",
            "encoder.{0}",
            rot90(1),
            None,
            exclude="decoder.3",
            count=3,
            in_proj_weight=neg,
            in_proj_bias=None,
        ),
        Tie("head.weight", "embedding.weight", square),
        Rule("mix", ("a", "b"), mean(), chain(mean(), scale(0.5))),
        Rule("positions", None, chain(gain, tile())),
        Rule("re:conv_[1-4]", bank, Mix(8), None),
        Rule(
            "fc_*", "fc", LowRank(2).for_target(torch.empty(4, 4, dtype=torch.float64)), bias=gain
        ),
        Rule(("*.q", "*.k"), ("{0 // 2 * 2}.qk", vera, vera["B"]), mean(), buffers=True),
        Tie(("a.weight", "b.weight"), bank[3], mean()),
    ]


def test_a_file_says_all_that_a_rule_can_say(tmp_path):
    loaded = load_rules(toml(tmp_path, WHOLE))
    assert described(loaded) == described(whole_rules())


@pytest.mark.parametrize("name", ["rules.toml", "rules.json"])
def test_dumped_and_loaded(name, tmp_path):
    dump_rules(whole_rules(), tmp_path / name)
    assert described(load_rules(tmp_path / name)) == described(whole_rules())


def test_how_it_is_written(tmp_path):
    path = tmp_path / "rules.toml"
    gain = Gain()
    dump_rules(
        [
            Rule("decoder", "encoder", chain(rot90(1), scale(1e-7)), None),
            Rule("a", ("b", "c"), gain, in_proj_weight=same),
            Tie("x.weight", (), gain),
            Rule("*", fxtie.Bank(2, (3,)), Mix(2), exclude=["a.*", 're:"\\d'], count=2),
        ],
        path,
    )
    assert (
        path.read_text()
        == """\
[bank.bank]
n = 2
shape = [3]
dtype = "float32"

[shared.shared]
transform = { transform = "tests.rule_files.Gain", start = 1.0 }
dtype = "float32"

[[rule]]
target = "decoder"
source = "encoder"
weight = { transform = "chain", transforms = [{ transform = "rot90", k = 1 }, { transform = \
"scale", s = 1e-07 }] }
bias = false

[[rule]]
target = "a"
source = ["b", "c"]
weight = { shared = "shared" }
tensors = { in_proj_weight = "same" }

[[rule]]
target = "x.weight"
source = []
transform = { shared = "shared" }

[[rule]]
target = "*"
source = { bank = "bank" }
weight = { transform = "Mix", n = 2 }
exclude = ["a.*", "re:\\"\\\\d"]
count = 2
"""
    )


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


def test_the_form_that_is_documented(tmp_path):
    text = "".join(re.findall(r"(?m)^    .*\n", rule_files.__doc__))
    rules = load_rules(toml(tmp_path, textwrap.dedent(text)))
    assert [type(rule) for rule in rules] == [Rule, Tie, Rule, Rule, Rule]


def test_bytes_that_are_no_text(tmp_path):
    path = tmp_path / "rules.toml"
    path.write_bytes(b"a = 1\n# \xff\n")
    with pytest.raises(RuleError, match=r"rules\.toml:2: This is no text in UTF-8"):
        load_rules(path)


# --- What can't be written --------------------------------------------------------------------


class MyBank(fxtie.Bank):
    pass


def sharing_a_parameter():
    one, two = Gain(), Gain()
    two.gain = one.gain
    return [Rule("a", "b", one, one), Rule("c", "d", two, two)]


def grown():
    gain = Gain()
    gain.more = nn.Parameter(torch.ones(2))
    return Rule("a", "b", gain, gain)


@pytest.mark.parametrize(
    ("rules", "says"),
    [
        (lambda: Rule("a", "b", lambda w: w), "'a, weight': The transform <function"),
        (lambda: Rule("a", "b", in_proj_weight=torch.sigmoid), "'a, in_proj_weight': The transf"),
        (lambda: Tie("a.weight", "b.weight", torch.sigmoid), "'a.weight': The transform"),
        (lambda: Rule(lambda name, module: True, "b"), "code, not data. Use a name pattern"),
        (lambda: Rule("a", "b", exclude=lambda name, module: True), "code, not data"),
        (lambda: Rule("a", MyBank(1, (2,))), "no plain fxtie.Bank"),
        (grown, "can't be told from its registered name"),
        (sharing_a_parameter, "can't be told from its registered name"),
        (lambda: [], "list is empty"),
        (lambda: Rule("a", "b", Wide(limit=None)), "TOML can't say None"),
    ],
)
def test_what_is_no_data_is_refused(rules, says, tmp_path):
    path = toml(tmp_path, "old")
    with pytest.raises(RuleError) as caught:
        dump_rules(rules(), path)
    assert says in str(caught.value)
    assert path.read_text() == "old"


# --- The schema -------------------------------------------------------------------------------


def is_valid(data):
    return jsonschema.Draft202012Validator(SCHEMA).is_valid(data)


def test_the_schema_is_one():
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    defs = SCHEMA["$defs"]
    assert set(defs["dtype"]["enum"]) == set(BANK_DTYPES)
    assert set(defs["rule"]["properties"]["tensors"]["propertyNames"]["not"]["enum"]) == RESERVED


def test_the_schema_takes_what_is_written(tmp_path):
    path = tmp_path / "rules.json"
    dump_rules(whole_rules(), path)
    data = json.loads(path.read_text())
    jsonschema.validate(data, SCHEMA)
    path.write_text(json.dumps({"$schema": "rules.schema.json", **data}))
    assert len(load_rules(path)) == len(whole_rules())


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


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where the random files go, the last one over the others."""
    folder = tmp_path_factory.mktemp("rules")
    dump_rules(whole_rules(), folder / "whole.json")
    return folder


def load_or_fault(path):
    """The rules, or None for a RuleError with a position that is in the file."""
    try:
        return load_rules(path)
    except RuleError as error:
        found = re.match(re.escape(f"{path}:") + r"(\d+): ", str(error))
        assert found, error
        assert 1 <= int(found[1]) <= path.read_bytes().count(b"\n") + 1
        return None


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


@pytest.mark.parametrize(
    ("data", "valid"),
    [
        ({"rule": [{"target": "a", "source": "b"}]}, True),
        ({"rule": [{"target": "a", "source": [], "transform": "same"}]}, True),
        ({"rule": [{"target": "a", "source": {"bank": "x"}, "bias": False}]}, True),
        ({"rule": [{"target": "a", "source": "b", "weight": {"shared": "x"}}]}, True),
        ({"rule": []}, False),
        ({"rule": [{"target": "a"}]}, False),
        ({"rule": [{"target": "a", "sorce": "b"}]}, False),
        ({"rule": [{"target": "a", "source": "b", "weight": True}]}, False),
        ({"rule": [{"target": "a", "source": "b", "weight": {"k": 1}}]}, False),
        ({"rule": [{"target": "a", "source": "b", "count": 0}]}, False),
        ({"rule": [{"target": "a", "source": "b", "tensors": {"count": "same"}}]}, False),
        ({"rule": [{"target": "a", "source": {"bank": "x"}, "transform": "same"}]}, True),
        ({"rule": [{"target": "a", "source": {"bank": "x", "entry": 2}}]}, True),
        ({"rule": [{"target": "a", "source": {"bank": "x", "entry": "A"}}]}, False),
        ({"rule": [{"target": ["a", "b"], "source": ["c", {"tensors": "x", "entry": "A"}]}]}, True),
        ({"rule": [{"target": [], "source": "c"}]}, False),
        ({"rule": [{"target": "a", "source": "b", "buffers": 1}]}, False),
        ({"rule": [{"target": "a", "source": "b"}], "bank": {"x": {"n": 1}}}, False),
        ({"rule": [{"target": "a", "source": "b"}], "shared": {"x": {"shape": [1]}}}, False),
    ],
)
def test_the_schema_tells_right_from_wrong(data, valid):
    assert is_valid(data) is valid


# --- Round trips ------------------------------------------------------------------------------


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


@settings(max_examples=150, deadline=None)
@given(st.lists(RULES, min_size=1, max_size=4), st.sampled_from(["toml", "json"]))
def test_any_rules_come_back(folder, rules, kind):
    path: Path = folder / f"again.{kind}"
    dump_rules(rules, path)
    assert described(load_rules(path)) == described(rules)
