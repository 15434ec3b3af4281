"""rules.schema.json agrees with what is read and written."""

from __future__ import annotations

import json

import jsonschema
import pytest
from rule_files import SCHEMA, whole_rules

from fxtie.rules.files import dump_rules, load_rules
from fxtie.rules.reader import BANK_DTYPES, RESERVED


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
