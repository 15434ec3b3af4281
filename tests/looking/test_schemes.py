"""Schemes: which block is derived from which is counted by hand, and one rule says it."""

import itertools

import pytest
import torch
from blocks import Blocks
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from vision import import_torchvision

import fxtie
from fxtie.looking.suggest import suggest


class Attention(nn.Module):
    """A block whose layers have the same shapes and different roles."""

    def __init__(self):
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(8, 8) for _ in "qkv")
        self.gate, self.up, self.down = nn.Linear(8, 16), nn.Linear(8, 16), nn.Linear(16, 8)


def tied(model: nn.Module, scheme: str) -> dict[str, str]:
    """Each target with its source."""
    return {tie.target: tie.sources[0] for tie in fxtie.plan(model, suggest(model, scheme)).ties}


def by_hand(model: nn.Module, source_of) -> dict[str, str]:
    """The same for `blocks.*`, by a function from a block's number to that of its source."""
    found = {}
    for name, _ in model.named_parameters():
        _, i, rest = name.split(".", 2)
        if source_of(int(i)) != int(i):
            found[name] = f"blocks.{source_of(int(i))}.{rest}"
    return found


SOURCES = {
    "repeat": lambda i: 0,
    "adjacent": lambda i: i // 2 * 2,
    "cycle 3": lambda i: i % 3,
    "cycle 1": lambda i: 0,
}
RULES = {
    "repeat": "Rule('blocks.*', 'blocks.0')",
    "adjacent": "Rule('blocks.*', 'blocks.{0 // 2 * 2}')",
    "cycle 3": "Rule('blocks.*', 'blocks.{0 % 3}')",
    "cycle 1": "Rule('blocks.*', 'blocks.{0 % 1}')",
}


@pytest.mark.parametrize("scheme", SOURCES)
def test_blocks(scheme):
    model = Blocks(7)
    found = suggest(model, scheme)
    assert list(map(repr, found.rules)) == [RULES[scheme]]
    assert [group.kind for group in found] == [scheme]
    assert tied(model, scheme) == by_hand(model, SOURCES[scheme])
    fxtie.verify(model, fxtie.transform(model, found), torch.randn(2, 8))


@settings(max_examples=30, deadline=None)
@given(
    st.sampled_from(["repeat", "adjacent", "cycle 2", "cycle 3"]),
    st.integers(4, 9),
    st.integers(0, 3),
    st.integers(1, 3),
    st.booleans(),
)
def test_numbers_that_start_anywhere(scheme, n, first, step, with_others):
    """Blocks by position in their row, whatever their numbers and what stands between them."""
    numbers = [first + step * i for i in range(n)]
    blocks = {str(i): nn.Sequential(nn.Linear(2, 2)) for i in numbers}
    if with_others:
        blocks |= {str(i): nn.Linear(3, 3) for i in range(numbers[-1]) if i not in numbers}
    model = nn.ModuleDict({"h": nn.ModuleDict(blocks)}).to("meta")
    name, _, k = scheme.partition(" ")
    at = {"repeat": lambda i: 0, "adjacent": lambda i: i // 2 * 2, "cycle": lambda i: i % int(k)}
    expected = {
        f"h.{numbers[i]}.0.{attr}": f"h.{numbers[at[name](i)]}.0.{attr}"
        for i in range(n)
        for attr in ("weight", "bias")
        if at[name](i) != i
    }
    assert tied(model, scheme).items() >= expected.items()
    found = suggest(model, scheme)
    assert found.saved == found.parameters - fxtie.plan(model, found).parameters_after


def test_several_rows_of_blocks_are_one_rule():
    model = nn.ModuleDict({f"layer{n}": Blocks(3 + n).blocks for n in (1, 2)})
    assert repr(suggest(model, "adjacent").rules) == "[Rule('layer*.*', 'layer{0}.{1 // 2 * 2}')]"
    repeat = "[Rule('layer*.*', 'layer{0}.0', exclude=['layer*.0'])]"
    assert repr(suggest(model, "repeat").rules) == repeat
    model = nn.ModuleDict({"encoder": Blocks(4), "decoder": Blocks(3)})
    assert list(map(repr, suggest(model, "repeat").rules)) == [
        "Rule('encoder.blocks.*', 'encoder.blocks.0')",
        "Rule('decoder.blocks.*', 'decoder.blocks.0')",
    ]


def test_the_first_block_may_be_of_another_kind():
    with torch.device("meta"):
        resnet = import_torchvision().models.resnet50(weights=None)
    assert list(map(repr, suggest(resnet, "cycle 2").rules)) == [
        "Rule('layer*.*', 'layer{0}.{(1 - 1) % 2 + 1}', exclude=['layer*.0'])"
    ]


def test_what_cannot_be_derived_is_left_out():
    model = Blocks(4)
    model.blocks[2].fc1.register_forward_hook(lambda *_: None)
    assert suggest(model, "repeat")[0].targets == ("blocks.1", "blocks.3")
    fxtie.transform(model, suggest(model, "repeat"))


# -- single layers --------------------------------------------------------------------------------


def test_embeddings():
    model = nn.ModuleDict(
        {"pos": nn.Embedding(9, 8), "tok": nn.Embedding(50, 8), "head": nn.Linear(8, 50)}
    )
    found = suggest(model, "embeddings")
    assert list(map(repr, found.rules)) == ["Rule('head', 'tok', bias=None)"]
    tied = fxtie.transform(model, found)
    assert torch.equal(tied["head"].weight, model["tok"].weight)


def coders(*sizes: int) -> nn.ModuleDict:
    encoder = [nn.Linear(a, b) for a, b in itertools.pairwise(sizes)]
    decoder = [nn.Linear(b, a) for a, b in itertools.pairwise(sizes)][::-1]
    return nn.ModuleDict({"encoder": nn.Sequential(*encoder), "decoder": nn.Sequential(*decoder)})


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(2, 9), min_size=3, max_size=5))
def test_dense_autoencoders(sizes):
    """Squares are mirrored too: names tell which layer is whose."""
    model = coders(*sizes).to("meta")
    n = len(sizes) - 1
    expected = {f"decoder.{n - 1 - i}.weight": f"encoder.{i}.weight" for i in range(n)}
    assert tied(model, "autoencoder") == expected


def test_convolutional_autoencoders():
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ConvTranspose2d(4, 1, 3))
    found = suggest(model, "autoencoder")
    assert list(map(repr, found.rules)) == ["Rule('1', '0', bias=None)"]


def test_values_of_the_tied_autoencoder():
    model = coders(6, 4, 2)
    tied = fxtie.transform(model, suggest(model, "autoencoder"))
    assert torch.equal(tied["decoder"][1].weight, model["encoder"][0].weight.T)


# -- conservative ---------------------------------------------------------------------------------


def test_roles_are_never_mixed():
    model = nn.ModuleDict({"blocks": nn.ModuleList(Attention() for _ in range(3))})
    for tree in (model, Attention()):
        for group in suggest(tree):
            for a, b in zip(group.targets, group.sources, strict=True):
                assert a.rpartition(".")[2] == b.rpartition(".")[2]
    assert len(suggest(Attention())) == 0
    for scheme in ("repeat", "adjacent", "cycle 2"):
        ties = tied(model, scheme).items()
        assert all(a.split(".")[2:] == b.split(".")[2:] for a, b in ties)


def test_encoders_and_decoders_of_transformers_are_no_autoencoders():
    with torch.device("meta"):
        model = nn.Transformer(8, 2, 2, 2, 16)
    assert {group.kind for group in suggest(model)} == {"repeated"}


# -- budgets --------------------------------------------------------------------------------------


def test_the_closest_blocks_go_first():
    model = Blocks(6)
    with torch.no_grad():
        for i, noise in ((1, 0.5), (2, 0.1), (3, 0.3), (4, 0.2), (5, 0.4)):
            for p, first in zip(
                model.blocks[i].parameters(), model.blocks[0].parameters(), strict=True
            ):
                p.copy_(first + noise * first.std(correction=0) * torch.randn_like(p))
    block = sum(p.numel() for p in model.blocks[0].parameters())
    found = suggest(model, "repeat", budget=3 * block)
    assert found[0].targets == ("blocks.2", "blocks.3", "blocks.4")
    assert fxtie.plan(model, found).parameters_after == 3 * block
    assert suggest(model, "repeat", budget=4 * block)[0].targets == ("blocks.2", "blocks.4")


@given(st.floats(0.35, 0.99))
@settings(max_examples=10, deadline=None)
def test_no_more_ties_than_it_takes(fraction):
    model = Blocks(5)
    found = suggest(model, budget=fraction)
    after = fxtie.plan(model, found).parameters_after
    assert after == found.parameters - found.saved <= fraction * found.parameters
    largest = max(layer.numel() for layer in model.parameters()) + 32
    assert after > fraction * found.parameters - largest


def test_by_size_where_there_are_no_values():
    model = nn.ModuleDict(
        {n * "a": nn.ModuleList(nn.Linear(n, n) for _ in range(3)) for n in (2, 9)}
    ).to("meta")
    (found,) = suggest(model, budget=0.9)
    assert found.targets == ("aaaaaaaaa.1",)


# -- what it shows --------------------------------------------------------------------------------


def test_rules_go_into_files(tmp_path):
    model = Blocks(5)
    fxtie.dump_rules(suggest(model, "cycle 2"), tmp_path / "rules.toml")
    assert repr(fxtie.load_rules(tmp_path / "rules.toml")) == "[Rule('blocks.*', 'blocks.{0 % 2}')]"


@pytest.mark.parametrize(
    "make, scheme, told",
    [
        (lambda: nn.Linear(2, 2), "repeat", r"repeated blocks: .* a Linear, has no children"),
        (lambda: Blocks(1), "adjacent", r"a Blocks, has 'blocks' \(Sequential\)"),
        (lambda: Blocks(3), "cycle 3", r"more than 3 .* is blocks.0…2: 3"),
        (lambda: Blocks(3), "cycle", r"A cycle has a length, as in 'cycle 3': 'cycle' has none"),
        (lambda: Blocks(3), "cycle 0", r"'cycle 0' has none"),
        (lambda: Blocks(3), "repeat 2", r"takes no argument, but '2' is given"),
        (lambda: Blocks(3), "repeet", r"no scheme 'repeet'. .* Closest names: 'repeat'"),
        (lambda: Blocks(3), 3, r"There is no scheme 3"),
        (lambda: Blocks(3), "autoencoder", r"lead back .* 'blocks' \(Sequential\)"),
        (
            lambda: nn.ModuleDict({"tok": nn.Embedding(5, 2), "head": nn.Linear(2, 4)}),
            "embeddings",
            r"'tok' \(Embedding, 5x2\), 'head' \(Linear, 4x2\)",
        ),
    ],
)
def test_schemes_that_do_not_apply(make, scheme, told):
    with pytest.raises(fxtie.FxtieError, match=told):
        suggest(make(), scheme)


@pytest.mark.parametrize(
    "budget, told",
    [
        (0, "not 0"),
        (True, "not True"),
        ("half", "not 'half'"),
        (0.01, r"gets down to 17 parameters: .* leave 600 of 1.7k"),
        (5000, r"has 1.7k parameters: it is within the budget of 5.0k"),
    ],
)
def test_budgets_that_cannot_be_met(budget, told):
    with pytest.raises(fxtie.FxtieError, match=told):
        suggest(Blocks(3), budget=budget)
