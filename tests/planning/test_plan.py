"""A plan as a whole: every fault of every module of `planning`, and the model it holds for."""

import pytest
import torch
from chain_net import chain_net, raising
from torch import nn
from torch.nn.utils import prune

import fxtie
from fxtie import Rule, Tie


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
    "before the first": (chain_net(), Rule("*", "{0-1}"), "no source module '-1' for '0'"),
    "exception inside": (
        nn.Sequential(chain_net(2), chain_net(2)),
        [Rule("1.1", "0.0"), Rule("1", "0")],
        "If the one for 1.1 is the exception, write exclude='1.1' in Rule('1', '0').",
    ),
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
