"""Editing a program: its signature, tensors of all kinds, tensors of several names."""

import pytest
import torch
from programs import Net, Shared, assert_same, targets
from torch import nn
from torch.export import export
from torch.export.graph_signature import InputKind

import fxtie
from fxtie import Rule
from fxtie.errors import PlanError

aten = torch.ops.aten


class Buffers(nn.Module):
    """Buffers of all kinds, and a tensor that is none."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(6, 6)
        self.register_buffer("scale", torch.rand(6))
        self.register_buffer("shift", torch.rand(6))
        self.register_buffer("transient", torch.rand(6), persistent=False)
        self.register_buffer("count", torch.zeros(()))
        self.constant = torch.rand(6)

    def forward(self, x):
        self.count.add_(1)
        return self.fc(x) * self.scale + self.shift * self.transient + self.constant + self.count


def test_signature_and_graph(program):
    before = str(program)
    rules = [Rule("fc_2", "fc_1", weight=torch.square), Rule("head", "fc_2")]
    tied = fxtie.transform(program, rules)
    assert str(program) == before, "the program that was given is not changed"
    assert all(tied.state_dict[name] is program.state_dict[name] for name in tied.state_dict)
    dropped = set(program.state_dict) - set(tied.state_dict)
    assert dropped == {"fc_2.weight", "fc_2.bias", "head.weight", "head.bias"}
    inputs = tied.graph_signature.input_specs
    assert dropped.isdisjoint(spec.target for spec in inputs)
    assert len(inputs) == len(program.graph_signature.input_specs) - 4
    (derived,) = tied.graph.find_nodes(op="call_function", target=aten.square.default)
    assert derived.name == "fc_2_weight"
    assert len(derived.users) == 3, "fc_2, head, and the output"
    first = next(node for node in tied.graph.nodes if node.op != "placeholder")
    assert first is derived, "derivations stand at the start"
    assert tied.graph_signature.user_outputs[1] == derived.name


@pytest.mark.filterwarnings("ignore:.*Attribute .* is being mutated")
def test_buffers(device):
    net, x = Buffers().to(device), torch.randn(3, 6, device=device)
    net.constant = net.constant.to(device)
    tied = fxtie.transform(
        export(net, (x,)), [Rule("transient", "scale"), Rule("shift", "scale", torch.sin)]
    )
    assert sorted(tied.state_dict) == ["count", "fc.bias", "fc.weight", "scale"]
    (spec,) = (s for s in tied.graph_signature.input_specs if s.kind == InputKind.CONSTANT_TENSOR)
    assert set(tied.constants) == {spec.target}, "the plain tensor stays, the buffer is gone"
    module = tied.module()
    expected = net.fc(x) * net.scale + net.scale.sin() * net.scale + net.constant
    for count in (1, 2):
        torch.testing.assert_close(module(x), expected + count)

    from_transient = fxtie.transform(export(net, (x,)), Rule("shift", "transient"))
    assert "transient" in from_transient.constants and "shift" not in from_transient.state_dict


def test_source_that_nothing_read(net, x):
    """A parameter that the forward doesn't read is no input yet."""
    net.unused = nn.Parameter(torch.randn(6, 6, device=x.device))
    program = export(net, (x,))
    tied = fxtie.transform(program, Rule("fc_2.weight", "unused"))
    assert "unused" in tied.graph_signature.parameters
    assert_same(tied.module()(x), fxtie.transform(net, Rule("fc_2.weight", "unused"))(x))
    unread = fxtie.transform(program, Rule("unused", "fc_2.weight"))
    assert "unused" not in unread.state_dict
    assert_same(unread.module()(x), net(x))


def test_without_data():
    """Rules are resolved on names and shapes: nothing needs the values."""
    with torch.device("meta"):
        net, x = Net().eval(), torch.empty(3, 6)
    tied = fxtie.transform(export(net, (x,)), Rule("fc_2", "fc_1", weight=torch.square))
    assert all(tensor.is_meta for tensor in tied.state_dict.values())
    assert tied.module()(x)[0].is_meta
    with torch._subclasses.FakeTensorMode():
        net, x = Net().eval(), torch.empty(3, 6)
    tied = fxtie.transform(export(net, (x,)), Rule("fc_2", "fc_1", weight=torch.square))
    assert targets(tied).count(aten.square.default) == 1


@pytest.mark.parametrize("strict", [False, True])
def test_shared_tensor_as_source(device, strict):
    net, x = Shared().to(device), torch.randn(3, 6, device=device)
    program = export(net, (x,), strict=strict)
    tied = fxtie.transform(program, Rule("re:fc_3|again", "fc_2", weight=torch.square))
    expected = fxtie.transform(net, Rule("fc_3", "fc_2", weight=torch.square))
    assert torch.equal(tied.module()(x), expected(x))
    with pytest.raises(PlanError, match=r"'fc_3.weight': the same tensor as 'again.weight'"):
        fxtie.transform(program, Rule("fc_3", "fc_2", weight=torch.square))


def test_shared_tensor_split(device):
    """One input stands for both names, so that the uses of one can't be told from the other's."""
    net, x = Shared().to(device), torch.randn(3, 6, device=device)
    program = export(net, (x,))
    with pytest.raises(PlanError, match=r"'fc_2.weight': the same tensor as 'fc_1.weight'") as e:
        fxtie.transform(program, Rule("fc_2.weight", "fc_3.weight", torch.square))
    assert "Derive them all alike" in str(e.value)
    assert "torch.export.export(fxtie.transform(model, rules)" in str(e.value)
    with pytest.raises(PlanError, match=r"the same tensor as 'fc_1.weight'"):
        fxtie.transform(program, Rule("fc_2.weight", "fc_1.weight", torch.square))
    alike = fxtie.transform(program, Rule("re:fc_[12].weight", "fc_3.weight", torch.square))
    assert sorted(alike.state_dict) == [
        "again.bias",
        "again.weight",
        "fc_1.bias",
        "fc_2.bias",
        "fc_3.bias",
        "fc_3.weight",
    ]
    weight = net.fc_3.weight.square()
    y = nn.functional.linear(x, weight, net.fc_1.bias)
    expected = net.fc_3(net.fc_3(nn.functional.linear(y, weight, net.fc_2.bias)))
    torch.testing.assert_close(alike.module()(x), expected)


def test_updated_tensors(device):
    """Batch norm in training updates its statistics, and a derived tensor can have no update."""
    net = nn.Sequential(nn.Linear(6, 6), nn.BatchNorm1d(6), nn.BatchNorm1d(6))
    x = torch.randn(3, 6, device=device)
    program = export(net.to(device).train(), (x,))
    for untied, rule, role in (
        (program, Rule("2.running_mean", "0.bias"), "'2.running_mean' is a target of the rules"),
        (
            program.run_decompositions(),
            Rule("0.bias", "1.running_mean"),
            "'1.running_mean' is a source of the rules",
        ),
    ):
        with pytest.raises(PlanError, match=f"{role}, and the program updates it. Tie the mod"):
            fxtie.transform(untied, rule)
        affine = Rule("2", "1", running_mean=None, running_var=None, num_batches_tracked=None)
        tied = fxtie.transform(untied, affine)
        tied.module()(x)
        assert torch.equal(tied.state_dict["1.num_batches_tracked"], torch.tensor(1).to(device))
        net[1].num_batches_tracked.zero_()
