"""`fxtie.TiePass` among other passes."""

import pytest
import torch
from compat.nets import ConvNet, rules
from oracle import assert_tied_equals_oracle
from torch import fx
from torch.fx.experimental.optimization import fuse
from torch.fx.passes.infra.pass_base import PassResult
from torch.fx.passes.infra.pass_manager import PassManager

import fxtie
from fxtie import Rule
from fxtie.pipelines.passes import TiePass

compat = pytest.mark.compat


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
