"""`fxtie.TiePass` among other passes."""

import pytest
import torch
from compat.nets import Net, rules
from oracle import assert_tied_equals_oracle
from torch import fx, nn
from torch.fx.experimental.optimization import fuse
from torch.fx.passes.infra.pass_base import PassResult
from torch.fx.passes.infra.pass_manager import PassManager

import fxtie
from fxtie import Rule
from fxtie import transforms as T
from fxtie.errors import FxtieError, PlanError
from fxtie.pipelines.passes import TiePass

compat = pytest.mark.compat


class ConvNet(nn.Module):
    """What torch.fx can trace and `fuse` can fold: two pairs of convolution and batch norm."""

    def __init__(self):
        super().__init__()
        self.conv_1, self.bn_1 = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.conv_2, self.bn_2 = nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.conv_3 = nn.Conv2d(8, 8, 3, padding=1)
        for bn in (self.bn_1, self.bn_2):
            bn.running_mean.uniform_(-1, 1)
            bn.running_var.uniform_(0.5, 2)

    def forward(self, x):
        x = torch.tanh(self.bn_1(self.conv_1(x)))
        return self.conv_3(torch.tanh(self.bn_2(self.conv_2(x))))


@pytest.fixture
def conv_net(device):
    return ConvNet().to(device).eval()


RULE = Rule("conv_3", "conv_2", weight=torch.sin)


def lint_graph(module):
    if isinstance(module, fx.GraphModule):
        module.graph.lint()


def fold(module):
    return PassResult(fuse(module), True)


def calls(module):
    return [str(node.target) for node in module.graph.nodes if node.op == "call_module"]


@compat("PassManager", "TiePass on a plain module and on a traced GraphModule; checks, lint")
@pytest.mark.parametrize("traced", [False, True])
def test_pass_manager(conv_net, x, traced):
    model = fx.symbolic_trace(conv_net) if traced else conv_net
    manager = PassManager([TiePass(RULE)], run_checks_after_each_pass=True)
    manager.add_checks(lint_graph)
    result = manager(model)
    assert result.modified
    assert isinstance(result.graph_module, fx.GraphModule)
    assert "conv_3.weight" not in dict(result.graph_module.named_parameters())
    ties = fxtie.report(result.graph_module).plan.ties
    for train in (False, True):
        assert_tied_equals_oracle(model, result.graph_module, ties, (x,), train=train)


@compat("PassManager", "a second run changes nothing, and a run until nothing changes ends")
def test_second_run(net, x):
    apply = TiePass(rules())
    first = apply(net)
    again = apply(first.graph_module)
    assert first.modified and not again.modified
    assert again.graph_module is first.graph_module
    runs = []

    def note(module):
        runs.append(module)
        return PassResult(module, False)

    result = PassManager([TiePass(rules()), note], steps=5)(net)
    assert result.modified and len(runs) == 2


@pytest.mark.parametrize(
    "rule",
    [
        lambda device: Rule("conv_2", "conv_2", weight=T.standardize()),
        lambda device: Rule(
            "re:conv_[23]", fxtie.Bank(2, (8, 8, 3, 3), device=device), weight=T.Mix(2), bias=None
        ),
        lambda device: Rule("conv_*", "conv_2", weight=torch.sin, exclude=["conv_1"]),
    ],
    ids=["self-derived", "bank", "pattern"],
)
def test_second_run_by_rule(conv_net, rule):
    apply = TiePass(rule(conv_net.conv_1.weight.device))
    first = apply(conv_net)
    assert first.modified
    again = apply(first.graph_module)
    assert not again.modified and again.graph_module is first.graph_module


def test_a_second_pass_ties_on(conv_net, x):
    """Other rules on a tied model are another pass, as `transform` of a tied model."""
    first, second = TiePass(RULE), TiePass(Rule("bn_2", "bn_1"))
    result = PassManager([first, second], steps=3)(conv_net)
    assert result.modified
    both = fxtie.transform(conv_net, [RULE, Rule("bn_2", "bn_1")])
    assert torch.equal(result.graph_module(x), both(x))


def test_partly_done(conv_net):
    done = TiePass(RULE)(conv_net).graph_module
    with pytest.raises(FxtieError, match=r"derived already: conv_3.bias, conv_3.weight\. Give"):
        TiePass([RULE, Rule("bn_2", "bn_1")])(done)


def test_rules_that_do_not_fit(conv_net):
    with pytest.raises(PlanError, match="conv_9"):
        TiePass(Rule("conv_9", "conv_2"))(conv_net)
    done = TiePass(RULE)(conv_net).graph_module
    with pytest.raises(PlanError, match="conv_9"):
        TiePass(Rule("conv_9", "conv_2"))(done)


def test_root_that_is_kept(x, device):
    """A model without a graph of its own goes through as well."""

    class Kept(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = Net()

        def forward(self, x):
            with torch.no_grad():
                return self.net(x)

    result = TiePass(Rule("net.conv_2", "net.conv_1"))(Kept().to(device))
    assert result.modified and not isinstance(result.graph_module, fx.GraphModule)


@compat("fx.experimental.optimization.fuse", "conv-bn folding before tying")
def test_fuse_before(conv_net, x):
    expected = fxtie.transform(fuse(conv_net), RULE)
    manager = PassManager([fold, TiePass(RULE)], run_checks_after_each_pass=True)
    manager.add_checks(lint_graph)
    tied = manager(conv_net).graph_module
    assert calls(tied) == ["conv_1", "conv_2"]
    assert torch.equal(tied(x), expected(x))
    assert_tied_equals_oracle(fuse(conv_net), tied, fxtie.report(tied).plan.ties, (x,), train=False)


@compat("fx.experimental.optimization.fuse", "conv-bn folding after tying: of what is no source")
def test_fuse_after(conv_net, x):
    rule = Rule("conv_2", "conv_3", weight=torch.sin)
    manager = PassManager([TiePass(rule), fold], run_checks_after_each_pass=True)
    manager.add_checks(lint_graph)
    tied = fxtie.transform(conv_net, rule)
    folded = manager(conv_net).graph_module
    assert calls(folded) == ["conv_1", "bn_2", "conv_3"]
    torch.testing.assert_close(folded(x), tied(x))


@compat("fx.experimental.optimization.fuse", "conv-bn folding after tying: a source is left alone")
@pytest.mark.parametrize("no_trace", [False, True])
def test_fuse_source_after(conv_net, x, no_trace):
    """Its weight, if the batch norm were folded into it, would change what is derived from it."""
    tied = fxtie.transform(conv_net, RULE)
    folded = fuse(tied, no_trace=no_trace)
    assert calls(folded) == ["conv_1", "conv_2", "bn_2"]
    torch.testing.assert_close(folded(x), tied(x))


@compat("fx.experimental.optimization.fuse", "conv-bn folding of the materialised model")
def test_fuse_materialized(conv_net, x):
    tied = fxtie.transform(conv_net, RULE)
    folded = fuse(fxtie.materialize(tied))
    assert calls(folded) == ["conv_1", "conv_2", "conv_3"]
    torch.testing.assert_close(folded(x), tied(x))
