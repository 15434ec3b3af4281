"""Tying programs of `torch.export`: the second front end."""

import pytest
import torch
from oracle import assert_tied_equals_oracle
from programs import Shared, assert_same, decomposition, reloaded, targets
from torch import nn
from torch.export import Dim, export

import fxtie
from fxtie import Rule
from fxtie import transforms as T
from fxtie.errors import FxtieError, PlanError

aten = torch.ops.aten


def scaled_sum(a, b):
    return (a + b) / a.norm()


def without_gradient(a):
    """Brings a body of its own to a program that isn't decomposed."""
    with torch.no_grad():
        norm = a.norm()
    return a.t() * norm


RULES = {
    "plain": [Rule("fc_2", "fc_1", weight=torch.square)],
    "same": [Rule("fc_2", "fc_1")],
    "chain": [Rule("fc_3", "fc_2", weight=torch.sin), Rule("fc_2", "fc_1", weight=T.transpose())],
    "several sources": [Rule("fc_3", ("fc_1", "fc_2"), weight=scaled_sum, bias=None)],
    "self-derived": [Rule("fc_1", "fc_1", weight=T.standardize(), bias=None)],
    "learnable": [Rule("fc_2", "fc_1", weight=T.LowRank(2))],
    "an output": [Rule("head", "fc_1", weight=torch.cos)],
    "patterns": [Rule("fc_*", "fc_1", weight=torch.neg, exclude=["fc_1"])],
}


def test_no_grad(net, x):
    """`no_grad` in a transform stays in a program that can train. Decomposing drops it."""
    plan = fxtie.plan(net, Rule("fc_2.weight", "fc_1.weight", without_gradient))
    tied = fxtie.transform(export(net, (x,)), plan)
    assert_tied_equals_oracle(net, tied.module(), plan.ties, (x,), train=None)
    decomposed = tied.run_decompositions()
    untied = export(fxtie.transform(net, plan), (x,)).run_decompositions()
    gradients = []
    for program in (tied, decomposed, untied):
        module = program.module()
        module(x)[0].square().sum().backward()
        gradients.append(module.fc_1.weight.grad.clone())
        module.zero_grad()  # the programs share their parameters
    assert not torch.allclose(gradients[0], gradients[1])
    torch.testing.assert_close(gradients[1], gradients[2])


@pytest.mark.parametrize(
    ("name", "decomposed"),
    [*((name, False) for name in RULES), ("chain", True), ("learnable", True), ("an output", True)],
)
def test_equals_the_oracle(net, x, device, program, name, decomposed):
    """And the numbers of the first front end, bit for bit."""
    plan = fxtie.plan(net, RULES[name])
    for module in plan.modules.values():
        for parameter in module.parameters():
            nn.init.normal_(parameter)  # a fresh LowRank adds nothing
    program = decomposition(device) if decomposed else program
    tied = fxtie.transform(program, plan)
    tied.graph.lint()
    tied.validate()
    assert tied.dialect == program.dialect
    module, options = tied.module(), {"train": None, "exact": not decomposed, "untraced": False}
    assert_tied_equals_oracle(net, module, plan.ties, (x,), **options)
    expected, found = fxtie.transform(net, plan), module(x)
    assert sorted(tied.state_dict) == sorted(expected.state_dict())
    if not decomposed:
        assert_same(found, expected(x))
    assert_same(reloaded(tied).module()(x), found)
    assert_same(torch.export.unflatten(tied)(x), found)


def test_one_derivation_for_equal_ones(program):
    tied = fxtie.transform(program, Rule("re:fc_[23]", "fc_1", weight=torch.square))
    assert targets(tied).count(aten.square.default) == 1


def test_bank(net, x, program):
    """Parameters that rules bring come in as inputs, like those of the model."""
    bank = fxtie.Bank(2, (6, 6), device=x.device)
    plan = fxtie.plan(net, Rule("re:fc_[23]", bank, weight=T.Mix(2), bias=None))
    tied = fxtie.transform(program, plan)
    names = [name for name in tied.state_dict if name.startswith("ties.")]
    assert sorted(names) == [
        "ties.bank.templates.0",
        "ties.bank.templates.1",
        "ties.fc_2_weight.weights",
        "ties.fc_3_weight.weights",
    ]
    assert set(names) <= set(tied.graph_signature.parameters)
    module = tied.module()
    found, expected = module(x)[0], fxtie.transform(net, plan)(x)[0]
    assert torch.equal(found, expected)
    found.sum().backward()
    assert all(module.get_parameter(name).grad.norm() > 0 for name in names)


def test_rules_one_after_the_other(net, x, program):
    """A tied program, saved and loaded, is a program that can be tied."""
    first = Rule("fc_2", "fc_1", weight=T.LowRank(2))
    second = Rule("head", "fc_3", weight=T.LowRank(2))
    once = fxtie.transform(program, first)
    twice = fxtie.transform(reloaded(once), second)
    assert {"ties.fc_2_weight.A", "ties.head_weight.A"} <= set(twice.state_dict)
    both = fxtie.transform(fxtie.transform(net, first), second)
    both.load_state_dict(twice.state_dict)
    assert_same(twice.module()(x), both(x))


def test_program_of_a_tied_model(net, x):
    tied = fxtie.transform(net, Rule("fc_2", "fc_1", weight=torch.square))
    both = fxtie.transform(export(tied, (x,)), Rule("fc_3", "head", weight=torch.sin))
    assert {aten.square.default, aten.sin.default} <= set(targets(both))
    expected = fxtie.transform(tied, Rule("fc_3", "head", weight=torch.sin))
    assert_same(both.module()(x), expected(x))


def test_dynamic_shapes(net, x):
    program = export(net, (x,), dynamic_shapes=({0: Dim("batch", min=2, max=9)},))
    tied = fxtie.transform(program, Rule("fc_2", "fc_1", weight=torch.square))
    assert tied.range_constraints == program.range_constraints
    wide = torch.randn(7, 6, device=x.device)
    expected = fxtie.transform(net, Rule("fc_2", "fc_1", weight=torch.square))
    assert_same(tied.module()(wide), expected(wide))
    with pytest.raises(AssertionError, match="Guard failed"):
        tied.module()(torch.cat([wide, wide]))


class Outer(nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, *args):
        return self.inner(*args)


def test_call_signatures_that_are_kept(x, device):
    """Modules that `unflatten` would call by their own arguments alone."""
    net = nn.Sequential(nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 6))).to(device)
    program = export(net, (x,), preserve_module_call_signature=("0",))
    with pytest.raises(PlanError, match=r"keeps the call signature of '0'.*Export without"):
        fxtie.transform(program, Rule("0.1", "0.0", weight=torch.cos))


def test_control_flow(device):
    """The body of a `torch.cond` reads derived tensors too."""

    class Branching(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc_1, self.fc_2 = nn.Linear(6, 6), nn.Linear(6, 6)

        def forward(self, x):
            x = self.fc_1(x)
            return torch.cond(x.sum() > 0, lambda x: self.fc_2(x), lambda x: x - 1, (x,))

    net = Branching().to(device)
    rules = Rule("fc_2", "fc_1", weight=without_gradient)
    example = torch.ones(3, 6, device=device)
    tied = fxtie.transform(export(net, (example,), strict=True), rules)
    assert "fc_2.weight" not in tied.state_dict
    for x in (example, -example):
        weight, bias = without_gradient(net.fc_1.weight), net.fc_1.bias
        y = net.fc_1(x)
        expected = nn.functional.linear(y, weight, bias) if y.sum() > 0 else y - 1
        torch.testing.assert_close(tied.module()(x), expected)


def test_user_defined_op(net, x, device, program):
    with torch.library._scoped_library("fxtie_test", "DEF") as library:
        library.define("double(Tensor x) -> Tensor")
        library.impl("double", lambda x: x * 2, "CompositeExplicitAutograd")
        library.impl("double", torch.empty_like, "Meta")
        double = torch.ops.fxtie_test.double
        torch.library.register_autograd(double.default, lambda ctx, grad: grad * 2, lib=library)
        rule = Rule("fc_2", "fc_1", weight=double)
        plan = fxtie.plan(net, rule)
        for untied in (program, decomposition(device)):
            tied = fxtie.transform(untied, plan)
            assert targets(tied).count(double.default) == 1
            exact = untied.dialect == "TRAINING"
            assert_tied_equals_oracle(net, tied.module(), plan.ties, (x,), train=None, exact=exact)


def test_frozen_parameters(net, x):
    """A derived tensor carries gradients if its sources do; a program exported without has none."""
    net.requires_grad_(False)
    tied = fxtie.transform(export(net, (x,)), Rule("fc_2", "fc_1", weight=torch.square))
    assert not tied.module()(x)[0].requires_grad
    with torch.no_grad():
        program = export(net.requires_grad_(), (x,))
    tied = fxtie.transform(program, Rule("fc_2", "fc_1", weight=torch.square))
    assert_same(tied.module()(x), fxtie.transform(export(net, (x,)), RULES["plain"]).module()(x))


# --- Faults -----------------------------------------------------------------------------------


def test_names_that_are_not_there(program):
    with pytest.raises(PlanError, match=r"fc_9") as e:
        fxtie.transform(program, [Rule("fc_9", "fc_1"), Rule("fc_2", "fc_11")])
    assert len(e.value.faults) == 2, "all at once"
    assert "'fc_1'" in str(e.value), "the closest name"


def test_callable_pattern(program):
    def is_linear(name, module):
        return isinstance(module, nn.Linear)

    for rule in (Rule(is_linear, "fc_1"), Rule("fc_*", "fc_1", exclude=[is_linear])):
        with pytest.raises(PlanError, match="an exported program has their names only"):
            fxtie.transform(program, rule)


def test_updated_transform(x, program, device):
    class Norm(nn.BatchNorm1d):
        """A learnable transform with statistics of its own."""

    rule = Rule("fc_2.weight", "fc_1.weight", Norm(6).to(x.device))
    for untied in (program, decomposition(device)):
        with pytest.raises(PlanError, match="of a learnable transform is updated when it runs"):
            fxtie.transform(untied, rule)


def branching(weight):
    return weight if weight.sum() > 0 else -weight


def test_opaque_transform(program):
    """What can't be exported is named, with the reason why it could not be traced either."""
    rule = Rule("fc_2", "fc_1", weight=branching)
    with pytest.raises(FxtieError, match="The transforms can't be exported") as e:
        fxtie.transform(program, rule)
    assert "'fc_2.weight': branching can't be traced" in str(e.value)
    assert e.value.__cause__ is not None


def test_closed_over_tensor(net, x, program):
    """A transform that torch.fx can't hold may still be one that torch.export can."""
    scale = torch.rand(6, device=x.device)
    rule = Rule("fc_2", "fc_1", weight=lambda w: w * scale)
    tied = fxtie.transform(program, rule)
    assert_same(tied.module()(x), fxtie.transform(net, rule)(x))
    assert any(tensor is scale or torch.equal(tensor, scale) for tensor in tied.constants.values())
    assert_same(reloaded(tied).module()(x), tied.module()(x))


def test_values_read_into_python(program):
    def scaled(weight):
        return weight / weight.norm().item()

    with pytest.raises(FxtieError, match="values"):
        fxtie.transform(program, Rule("fc_2", "fc_1", weight=scaled))


def test_plan_of_another_model(x, program):
    plan = fxtie.plan(Shared().to(x.device), Rule("again.weight", "fc_1.weight", torch.square))
    with pytest.raises(FxtieError, match=r"The plan was made for another model: 'again.weight'"):
        fxtie.transform(program, plan)
