"""Which modules become regions and which are kept, and why."""

import functools

import pytest
import tied_forms
import torch
import torch.nn.functional as F
from oracle import assert_tied_equals_oracle
from tied_forms import Frozen, UntraceableRoot, check
from torch import fx, nn

import fxtie
from fxtie import Rule, transforms


@pytest.mark.parametrize("sign", [1, -1])
def test_an_untraceable_root_is_kept(sign):
    net = UntraceableRoot()
    rules = Rule("b.*", "a", transforms.flip(0))
    tied = check(net, rules, sign * torch.rand(4, 6))
    assert isinstance(tied, UntraceableRoot) and not isinstance(tied, fx.GraphModule)
    assert isinstance(tied.b, fx.GraphModule) and isinstance(tied.b, nn.Sequential)
    assert tied.kind == "untraceable" and len(tied.b) == 3
    (kept,) = fxtie.report(tied).kept
    assert kept.name == "" and kept.file == tied_forms.__file__ and "branches on" in kept.reason
    with pytest.raises(fxtie.CaptureError, match=r"tied_forms\.py:"):
        fxtie.transform(net, rules, strict=True)


def test_the_log_says_what_is_traced_and_kept_and_why(caplog):
    with caplog.at_level("DEBUG", logger="fxtie"):
        tied = fxtie.transform(UntraceableRoot(), Rule("b.*", "a", transforms.flip(0)))
    told = [record.getMessage() for record in caplog.records if record.name == "fxtie"]
    (kept,) = fxtie.report(tied).kept
    assert told[0].startswith("UntraceableRoot: ")
    assert told[1:3] == ["trace the root", f"keep {kept}"]
    assert told[-2:] == ["trace b", "made a graph of b"]


class UsesContext(nn.Module):
    def __init__(self, context):
        super().__init__()
        self.context = context
        self.inner, self.outer = nn.Linear(6, 6), nn.Linear(6, 6)

    def forward(self, x):
        if self.context == "no_grad":
            with torch.no_grad():
                x = self.inner(x)
        elif self.context == "autocast":
            with torch.autocast("cpu", torch.bfloat16):
                x = self.inner(x)
        elif self.context == "checkpoint":
            x = torch.utils.checkpoint.checkpoint(self.inner, x, use_reentrant=False)
        elif self.context == "is_grad_enabled":
            x = self.inner(x) if torch.is_grad_enabled() else -self.inner(x)
        elif self.context == "random":
            import random

            x = self.inner(x) if random.random() < 0.5 else -self.inner(x)
        elif self.context == "writes":
            self.last = x
            x = self.inner(x)
        return self.outer(x.float())


CONTEXTS = ["no_grad", "autocast", "checkpoint", "is_grad_enabled", "random", "writes"]


@pytest.mark.parametrize("context", CONTEXTS)
def test_what_a_graph_cannot_say_is_kept(context):
    net = nn.Sequential(nn.Linear(6, 6), UsesContext(context))
    x = torch.randn(4, 6)
    rules = [Rule("1.inner", "0", torch.neg), Rule("1.outer", "0", transforms.flip(0))]
    tied = check(net, rules, x)
    # Whether gradients are enabled is a question whose answer a guard can check.
    assert [k.name for k in fxtie.report(tied).kept] == ["1"] * (context != "is_grad_enabled")
    assert "last" not in vars(net[1])
    if context == "writes":
        tied(x)
        assert isinstance(tied[1].last, torch.Tensor)


class Hooked(nn.Module):
    def __init__(self):
        super().__init__()
        self.calls = []
        self.block = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 6))
        self.block.register_forward_hook(lambda *args: self.calls.append("block"))
        self.register_forward_pre_hook(lambda *args: self.calls.append("root"))

    def forward(self, x):
        return self.block(x)


def test_hooks_run_once_per_call():
    net = Hooked()
    tied = fxtie.transform(net, Rule("block.1", "block.0", torch.neg))
    assert net.calls == []
    tied(torch.randn(2, 6))
    assert tied.calls == ["root", "block"]
    assert tied.calls is net.calls, "what holds no module of the path is the model's own"


class Chooses(nn.Linear):
    """Chooses one of its methods as its forward, as some architectures do."""

    def __init__(self, *args):
        super().__init__(*args)
        self.forward = self.forward_doubled

    def forward_doubled(self, x):
        return F.linear(x, self.weight * 2, self.bias)


def test_a_forward_that_is_chosen_on_the_instance():
    net = nn.Sequential(nn.Linear(6, 6), Chooses(6, 6), nn.Sequential(Chooses(6, 6)))
    tied = check(net, Rule("re:1|2.0", "0", torch.neg), torch.randn(4, 6))
    assert not fxtie.report(tied).kept
    check(Chooses(6, 6), Rule("weight", "weight", torch.neg), torch.randn(4, 6))
    foreign = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 6))
    foreign[1].forward = functools.partial(F.linear, weight=foreign[1].weight)
    tied = fxtie.transform(foreign, Rule("1.bias", "0.bias"))
    assert [k.name for k in fxtie.report(tied).kept] == ["1"]


@pytest.mark.parametrize("frozen", ["", "norms", "norms.1", "norms.2"])
def test_training_flags_of_parts_are_honoured(frozen):
    net = Frozen()
    rules = [Rule("norms.1", "norms.0"), Rule("tail", "head", torch.neg)]
    plan = fxtie.plan(net, rules)
    tied = fxtie.transform(net, plan)
    x = torch.randn(8, 6)
    for model in (net, tied):
        model.train()
        model.get_submodule(frozen).eval()
    assert_tied_equals_oracle(net, tied, plan.ties, (x,), train=None)


def test_members_that_clash_with_graph_module():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.graph, self.code = nn.Linear(6, 6), nn.Linear(6, 6)

        def forward(self, x):
            return self.code(self.graph(x))

    tied = check(Net(), Rule("code", "graph", torch.neg), torch.randn(4, 6))
    assert "code, graph" in fxtie.report(tied).kept[0].reason
