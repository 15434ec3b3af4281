"""What suggest returns: a sequence of suggestions, their totals, plain data."""

import json

from blocks import Blocks
from suggested import Language, check
from torch import nn

import fxtie
from fxtie.looking.suggest import suggest
from fxtie.rules.reader import read_rules


def test_unrelated_weights_are_called_so():
    model = Blocks(4)
    assert "unrelated" in str(suggest(model, "repeat"))
    assert suggest(model, "repeat")[0].closeness.is_unrelated
    model.load_state_dict(fxtie.untied_state_dict(fxtie.transform(model, suggest(model, "repeat"))))
    assert "unrelated" not in str(suggest(model, "repeat"))


def test_nothing_to_suggest():
    found = suggest(nn.Linear(2, 2))
    assert (len(found), found.rules, found.saved) == (0, [], 0)
    assert str(found) == "no two layers go together: nothing to suggest"


def test_plain_data():
    model = Blocks()
    data = json.loads(json.dumps(suggest(model).to_dict()))
    assert data["parameters"]["before"] == sum(p.numel() for p in model.parameters())
    first = data["suggestions"][0]
    assert (first["kind"], first["chosen"], first["block"]) == ("repeated", True, "blocks.*")
    (rule,), _ = read_rules({"rule": first["rules"]})
    assert repr(rule) == repr(suggest(model)[0].rules[0])


def test_suggestions_are_a_sequence():
    found = suggest(Blocks())
    assert found[0] is next(iter(found))
    assert len(found[:2]) == 2


def test_ties_that_are_there_already_are_told_and_not_doubled():
    assert suggest(Language()).known == ()
    net = nn.ModuleList([Language() for _ in range(5)])
    for part in net:
        part.head.weight = part.embed.weight
    found = suggest(net)
    known = [(f"{i}.head.weight", f"{i}.embed.weight") for i in range(5)]
    assert [(tie.target, *tie.sources) for tie in found.known] == known
    assert found.to_dict()["known"] == [[*pair] for pair in known]
    assert not any("head" in target or "embed" in target for one in found for target in one.targets)
    told = ", ".join(" = ".join(pair) for pair in known[:3])
    assert f"tied already: {told}, … 2 more" in str(found)


def test_tiles_are_a_last_resort():
    net = nn.Sequential(nn.Linear(8, 16), nn.Linear(16, 4), nn.Linear(4, 16), nn.Linear(16, 8))
    chosen = [group for group in check(net) if group.chosen]
    assert {group.kind for group in chosen} == {"transposed"}
    assert any(group.kind == "tiled" for group in suggest(net))
