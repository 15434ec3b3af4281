"""Rules that reach every sharing scheme: whole modules, arithmetic, several sources and targets."""

import pytest
import torch
from attention import X6, Attention, split
from hypothesis import given
from hypothesis import strategies as st
from oracle import tied_and_compared as check
from torch import nn

import fxtie
from fxtie import Bank, Rule, Tensors, Tie, transforms

T = transforms


def tied_names(plan):
    return {tie.target: tie.sources for tie in plan.ties}


class Block(nn.Module):
    """A layer of a transformer, with statistics and a parameter of its own."""

    def __init__(self, width=8):
        super().__init__()
        self.attention = nn.MultiheadAttention(width, 2, batch_first=True)
        self.norm = nn.BatchNorm1d(width)
        self.mlp = nn.Sequential(nn.Linear(width, 16), nn.GELU(), nn.Linear(16, width))
        self.gamma = nn.Parameter(torch.ones(width))

    def forward(self, x):
        x = x + self.attention(x, x, x, need_weights=False)[0]
        x = self.norm(x.transpose(1, 2)).transpose(1, 2)
        return x + self.gamma * self.mlp(x)


class Stack(nn.Module):
    def __init__(self, n=4):
        super().__init__()
        self.layers = nn.ModuleList(Block() for _ in range(n))

    def forward(self, x):
        for layer in self.layers:
            x = layer(x)
        return x


X = torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(1))
# -- a module means all of it ---------------------------------------------------------------------


def test_every_parameter_of_a_module():
    model = Stack()
    tied = check(model, Rule("layers.*", "layers.0"), X)
    one = sum(p.numel() for p in model.layers[0].parameters())
    assert sum(p.numel() for p in tied.parameters()) == one
    assert "layers.1.attention.in_proj_weight" not in tied.state_dict()


def test_what_a_rule_says_of_names():
    rule = Rule("layers.*", "layers.0", weight=torch.neg, bias=None, gamma=torch.square)
    plan = fxtie.plan(Stack(2), rule)
    how = {tie.target.removeprefix("layers.1."): tie.transform for tie in plan.ties}
    assert how["mlp.0.weight"] is torch.neg
    assert how["norm.weight"] is torch.neg
    assert how["gamma"] is torch.square
    assert how["attention.in_proj_bias"] is fxtie.same
    assert "mlp.0.bias" not in how


def test_what_stays_stored_is_told():
    plan = fxtie.plan(Stack(2), Rule("layers.*", "layers.0", bias=None))
    assert plan.stored["layers.1.mlp.0.bias"] == "bias=None"
    assert "buffers=True" in plan.stored["layers.1.norm.running_mean"]
    assert not [name for name in plan.stored if name.startswith("layers.0.")]
    *_, biases, buffers, last = str(plan).splitlines()
    assert biases.startswith("stored: layers.1.attention.out_proj.bias, layers.1.norm.bias")
    assert biases.endswith("(bias=None)")
    assert buffers.startswith("stored: layers.1.norm.running_mean")
    assert buffers.endswith("(a buffer: buffers=True derives it too)")
    assert last == plan.summary()


def test_buffers_too():
    model = Stack(2)
    rule = Rule("layers.*", "layers.0", buffers=True)
    tied = fxtie.transform(model, rule)
    assert "layers.1.norm.running_mean" not in tied.state_dict()
    assert not fxtie.plan(model, rule).stored


@pytest.mark.parametrize("target", ["layers.1.**", "layers.1", "re:layers[.]1([.].*)?"])
def test_the_same_in_other_words(target):
    source = "layers.0.{0}" if "*" in target and "re" not in target else "layers.0"
    if target.startswith("re:"):
        source = "layers.0{0}"
    model = Stack(2)
    expected = tied_names(fxtie.plan(model, Rule("layers.1", "layers.0")))
    assert tied_names(fxtie.plan(model, Rule(target, source))) == expected


def test_a_tensor_goes_with_the_innermost_module_that_matches():
    model = nn.Sequential(nn.Sequential(nn.Linear(4, 4), nn.Sequential(nn.Linear(4, 4))))
    model.append(nn.Linear(4, 4))
    plan = fxtie.plan(model, Rule("0.**", "1"))
    assert {name: source[0] for name, source in tied_names(plan).items()} == {
        "0.0.weight": "1.weight",
        "0.0.bias": "1.bias",
        "0.1.0.weight": "1.weight",
        "0.1.0.bias": "1.bias",
    }


def test_what_is_excluded_inside():
    plan = fxtie.plan(Stack(3), Rule("layers.*", "layers.0", exclude=["**.mlp.*", "layers.2"]))
    targets = list(tied_names(plan))
    assert targets and not [name for name in targets if "mlp" in name or "layers.2" in name]


@given(
    st.recursive(st.just(None), lambda inner: st.lists(inner, min_size=1, max_size=3), max_leaves=6)
)
def test_nested_structures(shape):
    """Two modules of one structure are tied name by name, whatever it is."""

    def build(shape):
        if shape is None:
            return nn.Linear(2, 2, device="meta")
        return nn.Sequential(*map(build, shape))

    model = nn.ModuleDict({"a": build(shape), "b": build(shape)})
    plan = fxtie.plan(model, Rule("b", "a"))
    expected = {f"b.{n}": (f"a.{n}",) for n, _ in model["a"].named_parameters()}
    assert tied_names(plan) == expected
    assert plan.parameters_after * 2 == plan.parameters


# -- arithmetic on what matched -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("template", "sources"),
    [
        ("{0 // 2 * 2}", {1: 0, 3: 2, 5: 4}),  # MobileLLM: each layer twice, in turn
        ("{0 % 3}", {3: 0, 4: 1, 5: 2}),  # a cycle of three
        ("{0//3*3}", {1: 0, 2: 0, 4: 3, 5: 3}),
    ],
)
def test_layers_that_share(template, sources):
    model = nn.Sequential(*(nn.Linear(4, 4) for _ in range(6)))
    plan = fxtie.plan(model, Rule("*", template, bias=None))
    assert tied_names(plan) == {f"{t}.weight": (f"{s}.weight",) for t, s in sources.items()}
    check(model, Rule("*", template, weight=torch.neg), torch.randn(3, 4))


def test_each_from_the_one_before():
    model = nn.Sequential(*(nn.Linear(4, 4) for _ in range(4)))
    rule = Rule("*", "{0-1}", weight=torch.neg, exclude="0")
    assert tied_names(fxtie.plan(model, rule))["3.weight"] == ("2.weight",)
    check(model, rule, torch.randn(3, 4))


def test_named_groups():
    model = nn.ModuleDict({f"layer{i}": nn.Linear(2, 2) for i in range(6)})
    plan = fxtie.plan(model, Rule(r"re:layer(?P<n>[0-2])", "layer{n * 2 + 1}", exclude="layer1"))
    assert tied_names(plan)["layer2.weight"] == ("layer5.weight",)


# -- several sources ------------------------------------------------------------------------------


def test_its_own_stored_value_among_several_sources():
    model = nn.Sequential(*(nn.Linear(4, 4) for _ in range(3)))
    bank = Bank(2, (4, 4))
    rules = [
        Rule("0", ("0", bank), weight=lambda own, a, b: own + a * b),
        Rule("1", "0", weight=torch.neg),
        Tie("2.weight", ("2.weight", "1.weight"), torch.sub),
    ]
    tied = check(model, rules, torch.randn(3, 4))
    stored = {"0.weight", "0.bias", "2.weight", "2.bias"}
    assert {name for name in tied.state_dict() if "ties" not in name} == stored
    derived = tied[0].weight
    assert torch.equal(tied[1].weight, -derived)  # others read it derived
    assert torch.equal(derived, model[0].weight + bank.templates[0] * bank.templates[1])
    assert torch.equal(tied[2].weight, model[2].weight - tied[1].weight)


def test_its_own_value_in_a_forward_that_is_kept():
    class Kept(nn.Sequential):
        def forward(self, x):
            return super().forward(x) if x.sum() > 0 else super().forward(-x)

    model = Kept(nn.Linear(4, 4), nn.Linear(4, 4))
    tied = check(model, Tie("1.weight", ("1.weight", "0.weight"), torch.add), torch.randn(3, 4))
    assert fxtie.report(tied).kept
    with fxtie.derive_once(tied):
        assert torch.equal(tied[1].weight, model[1].weight + model[0].weight)


def test_tensors_that_a_rule_does_not_name_stay_where_same_can_not_be():
    model = nn.Sequential(*(nn.Linear(4, 4) for _ in range(3)))
    plan = fxtie.plan(model, Rule("2", ("0", "1"), weight=torch.add))
    assert list(tied_names(plan)) == ["2.weight"]
    assert "give bias= a function" in plan.stored["2.bias"]


# -- one transform, several targets ---------------------------------------------------------------


def test_rules_with_several_targets():
    model = nn.ModuleList(Attention(bias=True) for _ in range(2))

    class Both(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = model

        def forward(self, x):
            return self.layers[1](self.layers[0](x))

    rule = Rule(("layers.*.q", "layers.*.k", "layers.*.v"), "layers.{0}.qkv", weight=split)
    tied = check(Both(), rule, X6)
    assert torch.equal(tied.layers[1].k.weight, model[1].qkv.weight[6:12])
    plan = fxtie.plan(Both(), rule)
    assert "give bias= a function" in plan.stored["layers.0.q.bias"]
    check(Both(), Rule(rule_targets(rule), "layers.{0}.qkv", weight=split, bias=split), X6)


def rule_targets(rule):
    return tuple(map(str, rule.targets))


def test_a_rule_that_aligns_nothing_is_told_once():
    rule = Rule(("0.*", "1.*"), "2", weight=lambda w: (w, w))
    model = nn.Sequential(*(nn.Sequential(nn.Linear(2, 2)) for _ in range(2)), nn.Linear(2, 2))
    model[1] = nn.ModuleDict({"a": nn.Linear(2, 2)})
    with pytest.raises(fxtie.PlanError, match="nothing with the same wildcards") as told:
        fxtie.plan(model, rule)
    assert len(told.value.faults) == 1


def test_targets_that_do_not_match_the_same():
    model = nn.ModuleDict({"a": Attention(), "b": nn.Linear(6, 18)})
    model["b"].q = nn.Linear(6, 6)
    with pytest.raises(fxtie.PlanError, match=r"'\*\.q' matches 'b\.q', and '\*\.k' nothing"):
        fxtie.plan(model, Rule(("*.q", "*.k"), "{0}", weight=lambda w: w.chunk(2)))


# -- a transform for each match -------------------------------------------------------------------


def test_a_transform_for_each_match():
    model = nn.Sequential(*(nn.Conv2d(3, 3, 3, padding=1) for _ in range(4)))
    asked = []

    def rotated(i):
        asked.append(i)
        return T.rot90(int(i))

    tied = check(model, Rule("*", "0", weight=fxtie.each(rotated)), torch.randn(1, 3, 5, 5))
    assert sorted(set(asked)) == ["1", "2", "3"]
    assert torch.equal(tied[2].weight, model[0].weight.rot90(2, (2, 3)))


def test_named_groups_come_by_name():
    model = nn.ModuleDict({f"l{i}": nn.Linear(2, 2) for i in range(3)})
    rule = Rule(r"re:l(?P<n>[12])", "l0", weight=fxtie.each(lambda n: T.scale(int(n))))
    plan = fxtie.plan(model, rule)
    assert [step.transform_name for step in plan.steps][::2] == ["scale(1.0)", "scale(2.0)"]


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda i: 1 / 0, "raises for '1.weight', at ('1',): ZeroDivisionError"),
        (lambda i: None, "returns NoneType, no transform"),
        (lambda: None, "TypeError"),
    ],
)
def test_faults_of_each(make, words):
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    with pytest.raises(fxtie.PlanError) as told:
        fxtie.plan(model, Rule("*", "0", weight=fxtie.each(make)))
    assert words in str(told.value)


def test_each_is_no_data(tmp_path):
    with pytest.raises(fxtie.RuleError, match="is code, not data"):
        fxtie.dump_rules([Rule("*", "0", weight=fxtie.each(int))], tmp_path / "rules.toml")


def test_values_are_no_data(tmp_path):
    tensors = Tensors(A=torch.ones(2))
    with pytest.raises(fxtie.RuleError, match=r"The values of A in the fxtie\.Tensors 'tensors'"):
        fxtie.dump_rules([Rule("*", tensors)], tmp_path / "rules.toml")


# -- what it adds ---------------------------------------------------------------------------------


def test_what_a_tie_brings_is_counted():
    model = nn.Sequential(*(nn.Conv2d(8, 8, 3) for _ in range(4)))
    bank = Bank(2, (8, 8, 3, 3))
    plan = fxtie.plan(model, Rule("*", bank, T.Mix(2)))
    tied = fxtie.transform(model, plan)
    assert plan.parameters_after == sum(p.numel() for p in tied.parameters())
    assert sum(step.saved for step in plan.steps) == plan.parameters - plan.parameters_after
    gone = plan.parameters - plan.parameters_after
    assert fxtie.report(tied).bytes_saved == 4 * gone


def test_a_plan_that_makes_the_model_larger_says_so():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    plan = fxtie.plan(model, Rule("1", ("1", Bank(9, (4, 4))), weight=lambda own, *bank: own))
    assert str(plan).splitlines()[-1].endswith(": a larger model")
    assert plan.steps[0].saved == -9 * 16
