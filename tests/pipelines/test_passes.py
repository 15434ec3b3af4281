"""TiePass run again, after another, and on what its rules do not fit."""

import pytest
import torch
from compat.nets import ConvNet, Net
from torch import fx, nn
from torch.fx.passes.infra.pass_manager import PassManager

import fxtie
from fxtie import Rule
from fxtie import transforms as T
from fxtie.errors import FxtieError, PlanError
from fxtie.pipelines.passes import TiePass


@pytest.fixture
def conv_net(device):
    return ConvNet().to(device).eval()


@pytest.fixture
def x(device):
    return torch.randn(2, 3, 8, 8, device=device)


RULE = Rule("conv_3", "conv_2", weight=torch.sin)


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
