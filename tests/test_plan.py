"""Rules against models: what they resolve to, and every fault in one message."""

import pytest
import torch
from torch import nn
from torch.nn.utils import prune

import fxtie
from fxtie import Rule, Tie, transforms


def chain_net(n: int = 4, **options) -> nn.Sequential:
    return nn.Sequential(*(nn.Linear(6, 6, **options) for _ in range(n)))


def tied_names(plan: fxtie.Plan) -> dict[str, tuple[str, ...]]:
    return {tie.target: tie.sources for tie in plan.ties}


def test_weight_and_bias_of_one_module():
    plan = fxtie.plan(chain_net(), Rule("1", "0", weight=torch.square))
    assert plan.ties == (
        Tie("1.weight", ("0.weight",), torch.square),
        Tie("1.bias", ("0.bias",), fxtie.same),
    )
    assert (plan.parameters, plan.parameters_after) == (4 * 42, 3 * 42)


def test_patterns_skip_their_own_source():
    plan = fxtie.plan(chain_net(), Rule("*", "1", bias=None))
    assert list(tied_names(plan)) == ["0.weight", "2.weight", "3.weight"]


def test_groups_reach_the_source():
    net = nn.ModuleDict({"a": chain_net(2), "b": chain_net(2)})
    plan = fxtie.plan(net, Rule("b.*", "a.{0}", bias=None))
    assert tied_names(plan) == {"b.0.weight": ("a.0.weight",), "b.1.weight": ("a.1.weight",)}


def test_a_whole_block_is_tied_with_double_star():
    net = nn.ModuleDict({"a": nn.Sequential(chain_net(2), nn.LayerNorm(6))})
    net["b"] = nn.Sequential(chain_net(2), nn.LayerNorm(6))
    plan = fxtie.plan(net, Rule("b.**", "a.{0}"))
    assert len(plan.ties) == 6
    assert tied_names(plan)["b.1.weight"] == ("a.1.weight",)


def test_callable_targets_exclude_and_count():
    net = chain_net()
    rule = Rule(lambda name, m: isinstance(m, nn.Linear), "0", bias=None, exclude="2", count=2)
    assert list(tied_names(fxtie.plan(net, rule))) == ["1.weight", "3.weight"]


def test_single_tensors_and_several_sources():
    plan = fxtie.plan(
        chain_net(),
        [Rule("2.weight", ("0.weight", "1.weight"), torch.add), Tie("3.bias", "0.bias")],
    )
    assert tied_names(plan) == {"2.weight": ("0.weight", "1.weight"), "3.bias": ("0.bias",)}


def test_tensors_of_containers():
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.gamma = nn.Parameter(torch.ones(3))

    net = nn.Module()
    net.blocks = nn.ModuleList(Block() for _ in range(3))
    plan = fxtie.plan(net, Rule("blocks.*.gamma", "blocks.0.gamma"))
    assert list(tied_names(plan)) == ["blocks.1.gamma", "blocks.2.gamma"]


def test_order_follows_dependencies():
    net = chain_net(4)
    plan = fxtie.plan(net, [Rule(str(i), str(i - 1), torch.neg, None) for i in (3, 1, 2)])
    assert [tie.target for tie in plan.ties] == ["1.weight", "2.weight", "3.weight"]


def test_long_chains_need_no_recursion():
    net = chain_net(3000)
    rules = [Rule(f"{i}.weight", f"{i - 1}.weight", torch.neg) for i in range(2999, 0, -1)]
    plan = fxtie.plan(net, rules)
    assert [tie.target for tie in plan.ties] == [f"{i}.weight" for i in range(1, 3000)]


def test_self_derived_tensors_stay_stored():
    plan = fxtie.plan(chain_net(), Rule("**", "{0}", weight=lambda w: w - w.mean()))
    assert all(tie.is_self_derived for tie in plan.ties)
    assert plan.parameters_after == plan.parameters
    assert len(plan.ties) == 4  # a bias as itself is no tie


def test_planning_touches_no_data():
    with torch.device("meta"):
        net = nn.Sequential(nn.Linear(100_000, 100_000), nn.Linear(100_000, 100_000))
    plan = fxtie.plan(net, Rule("1", "0", weight=torch.square))
    assert plan.parameters_after == 100_000 * 100_001


def test_each_transform_runs_once_per_shape():
    calls = []

    def counted(w):
        calls.append(tuple(w.shape))
        return -w

    fxtie.plan(chain_net(20), Rule("*", "0", counted, None))
    assert calls.count((6, 6)) == 1  # on fake tensors; a trace reads its source


def test_shared_modules_are_one_target():
    layer = nn.Linear(4, 4)
    net = nn.Sequential(nn.Linear(4, 4), layer, layer)
    assert len(fxtie.plan(net, Rule("*", "0")).ties) == 2
    with pytest.raises(fxtie.PlanError, match=r"another name of '1\.weight'"):
        fxtie.plan(net, [Rule("1.weight", "0.weight"), Tie("2.weight", "0.weight")])


def test_a_parameter_held_elsewhere_saves_nothing():
    net = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4))
    net[2].weight = net[1].weight
    plan = fxtie.plan(net, Rule("1.weight", "0.weight"))
    assert plan.parameters_after == plan.parameters
    plan = fxtie.plan(net, [Rule("1.weight", "0.weight"), Rule("2.weight", "0.weight")])
    assert plan.parameters_after == plan.parameters - 16


def test_print_is_a_table_with_a_total():
    text = str(fxtie.plan(chain_net(2), Rule("1", "0", transforms.scale(0.5))))
    assert text.splitlines() == [
        "target    sources    transform    shape      saved",
        "--------  ---------  -----------  -------  -------",
        "1.weight  0.weight   scale(0.5)   6x6           36",
        "1.bias    0.bias     same         6              6",
        "2 ties, parameters 84 -> 42 (50.0%)",
    ]


class WithHook(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 3)
        self.b.register_forward_hook(lambda module, args, out: out)
        self.c.weight.register_hook(lambda grad: grad)


def parametrized() -> nn.Module:
    net = chain_net(2)
    nn.utils.parametrizations.weight_norm(net[1])
    return net


def hook_computed() -> nn.Module:
    net = chain_net(2)
    prune.identity(net[0], "weight")
    return net


def float64_target() -> nn.Module:
    net = chain_net(2)
    net[1].double()
    return net


def raising(w):
    raise ZeroDivisionError("no good")


def augmented(w):
    w *= 2
    return w


FAULTS = {
    "unknown source": (chain_net(), Rule("1", "zero"), "no source module 'zero'"),
    "unknown source tensor": (chain_net(), Tie("1.weight", "0.wieght"), "'0.weight'"),
    "unknown target": (chain_net(), Rule("linear1", "0"), "matches nothing"),
    "unknown target tensor": (chain_net(), Tie("9.weight", "0.weight"), "target '9.weight' is not"),
    "only its source": (chain_net(1), Rule("*", "0"), "nothing but its own source"),
    "as itself": (chain_net(1), Rule("0", "0"), "derived from itself"),
    "count": (chain_net(), Rule("*", "0", count=2), "must match 2 targets and matches 3"),
    "missing group": (chain_net(), Rule("1", "{0}"), "asks for a group"),
    "two rules": (chain_net(), [Rule("1", "0"), Rule("*", "2")], "Two rules for one tensor"),
    "cycle": (
        chain_net(),
        [Rule("1", "0", torch.neg), Rule("0", "2", torch.neg), Rule("2", "1", torch.neg)],
        "1.weight <- 0.weight <- 2.weight <- 1.weight",
    ),
    "shape": (
        nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 2)),
        Rule("1", "0", bias=None),
        "gives shape (3, 2) from (3, 2), but '1.weight' has (2, 3)",
    ),
    "dtype": (float64_target(), Rule("1", "0"), "Add .to(torch.float64)"),
    "raises": (chain_net(), Rule("1", "0", raising), "ZeroDivisionError: no good"),
    "no tensor": (chain_net(), Rule("1", "0", lambda w: 3.0), "returns float, not a tensor"),
    "in place": (chain_net(), Rule("1", "0", lambda w: w.clamp_(0)), "w.clamp(0) instead of"),
    "in place, of a view": (chain_net(), Rule("1", "0", lambda w: w.T.neg_()), "in place"),
    "augmented assignment": (chain_net(), Rule("1", "0", augmented), "w = w * 2 instead of"),
    "hooks": (WithHook(), Rule("b", "a"), "module 'b' of the target 'b.weight' has hooks"),
    "tensor hooks": (WithHook(), Rule("c", "a"), "has tensor hooks"),
    "parametrized": (parametrized(), Rule("1", "0"), "'1.weight' is parametrized"),
    "hook-computed source": (hook_computed(), Tie("1.weight", "0.weight"), "stale value"),
    "not a module": (lambda x: x, Rule("1", "0"), "is a torch.nn.Module, not function"),
    "lazy": (nn.Sequential(nn.LazyLinear(3), nn.LazyLinear(3)), Rule("1", "0"), "Run the model"),
    "bias": (
        nn.Sequential(nn.Linear(3, 3, bias=False), nn.Linear(3, 3)),
        Rule("1", "0"),
        "Write bias=None",
    ),
    "keyword": (
        nn.Sequential(*(nn.MultiheadAttention(4, 2) for _ in range(2))),
        Rule("1", "0", in_proj=torch.neg),
        "none of its targets has a tensor 'in_proj'. They have bias, in_proj_bias, in_proj_weight",
    ),
    "nothing inside": (nn.Sequential(nn.ReLU(), nn.Linear(2, 2)), Rule("0", "1"), "has no tensors"),
    "all left out": (chain_net(), Rule("1", "0", None, None), "(bias=None; weight=None)"),
    "no number": (
        nn.ModuleDict({"a": nn.Linear(2, 2), "b": nn.Linear(2, 2)}),
        Rule("*", "{0 - 1}"),
        "the source for 'a': 'a' is no number, in {0 - 1}",
    ),
    "before the first": (chain_net(), Rule("*", "{0-1}"), "no source module '-1', of which '0'"),
    "exception": (
        chain_net(),
        [Rule("*", "0"), Rule("3", "2")],
        "If the one for 3 is the exception, write exclude='3' in Rule('*', '0').",
    ),
    "module as tensor": (chain_net(), Tie("1", "0.weight"), "is a module, not a tensor"),
    "tensor as module": (chain_net(), Rule("1", "0.weight"), "It is a tensor"),
}


@pytest.mark.parametrize("case", FAULTS)
def test_faults_are_told_and_the_model_is_unchanged(case):
    model, rules, words = FAULTS[case]
    before = list(model.state_dict()) if isinstance(model, nn.Module) else None
    with pytest.raises(fxtie.PlanError) as info:
        fxtie.transform(model, rules)
    assert words in str(info.value)
    if before is not None:
        assert list(model.state_dict()) == before


def test_all_faults_come_at_once():
    rules = [
        Rule("1", "zero"),
        Rule("two", "0"),
        Rule("2", "0", torch.sum),
        Rule("3.weight", "0.bias"),
    ]
    with pytest.raises(fxtie.PlanError) as info:
        fxtie.plan(chain_net(), rules[:2])
    assert len(info.value.faults) == 2
    with pytest.raises(fxtie.PlanError) as info:
        fxtie.plan(chain_net(), rules[2:])
    assert len(info.value.faults) == 2


def test_the_traceback_of_a_transform_is_kept():
    with pytest.raises(fxtie.PlanError) as info:
        fxtie.plan(chain_net(), Rule("1", "0", raising))
    assert isinstance(info.value.__cause__, ZeroDivisionError)


def test_closest_names_are_offered():
    net = nn.ModuleDict({"conv_1": nn.Conv2d(1, 1, 1), "conv_2": nn.Conv2d(1, 1, 1)})
    with pytest.raises(fxtie.PlanError, match=r"Closest names: .*'conv_2'"):
        fxtie.plan(net, Rule("conv2", "conv_1"))


def test_a_plan_holds_for_the_model_that_it_was_made_for():
    plan = fxtie.plan(chain_net(), Rule("1", "0"))
    other = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 8))
    for use in (fxtie.transform, fxtie.initialize, fxtie.fit):
        with pytest.raises(fxtie.FxtieError, match=r"Plan again|another model"):
            use(nn.Sequential(nn.Linear(6, 6)), plan)
    with pytest.raises(fxtie.PlanError, match=r"shape.*Plan again"):
        fxtie.transform(other, plan)
    hooked = chain_net()
    plan = fxtie.plan(hooked, Rule("1", "0"))
    hooked[1].register_forward_hook(lambda module, args, output: output + 1)
    with pytest.raises(fxtie.PlanError, match="has hooks"):
        fxtie.transform(hooked, plan)


def test_a_fault_of_many_targets_is_told_once():
    net = nn.Sequential(*(nn.Linear(4, 4) for _ in range(5)))
    with pytest.raises(fxtie.PlanError, match="asks for a group") as told:
        fxtie.plan(net, Rule("*", "{1}"))
    assert len(told.value.faults) == 1
