"""torch.export: of tied models, and rules on exported programs."""

import functools

import pytest
import torch
import torch._dynamo.exc
from compat.nets import Net, resnet, rules
from oracle import assert_tied_equals_oracle
from programs import reloaded
from torch import nn
from torch.export import Dim, export

import fxtie
from fxtie import Rule

compat = pytest.mark.compat
aten = torch.ops.aten

NO_STRICT_EXPORT = pytest.mark.xfail(
    torch.__version__ < "2.10",
    raises=torch._dynamo.exc.InternalTorchDynamoError,
    reason="torch 2.9's torch.export(strict=True) calls the constructor of the user's class "
    "without its arguments. Tie the exported program instead",
)
STRICT = pytest.param(True, marks=NO_STRICT_EXPORT)


class KeptRoot(nn.Module):
    """A root that torch.fx can't trace and torch.export can: it branches on a shape."""

    def __init__(self):
        super().__init__()
        self.net = Net()

    def forward(self, x):
        if x.shape[-1] % 2:
            x = nn.functional.pad(x, (0, 1))
        return self.net(x)


class Case:
    """An untied model, its plan, inputs, the op of one of its transforms, and its programs.

    To export takes long, so that tests share them; none may change a program.
    """

    op = aten.sin.default

    def __init__(self, model, rules, x):
        self.model, self.x = model.to(x.device).eval(), x
        self.plan = fxtie.plan(self.model, rules)
        for module in self.plan.modules.values():
            for parameter in module.parameters():
                nn.init.normal_(parameter, std=0.3)  # a fresh one adds nothing
        self.tied = fxtie.transform(self.model, self.plan)

    def _export(self, model, **options):
        batch = Dim("batch", min=2, max=64)
        return export(model, (self.x,), dynamic_shapes=({0: batch},), **options)

    @functools.cached_property
    def program(self):
        """Of the untied model."""
        return self._export(self.model)

    @functools.cache  # noqa: B019 (cases stay)
    def tied_program(self, strict):
        return self._export(self.tied, strict=strict)

    def assert_equal_to_tied(self, module):
        """For the shape that was exported and for another one."""
        for x in (self.x, torch.cat([self.x, self.x])):
            assert torch.equal(module(x), self.tied(x))


@functools.cache
def made(name, device):
    if name == "resnet":
        x = torch.randn(2, 3, 32, 32, device=device)
        rule = Rule("layer1.1.conv2", "layer1.0.conv2", weight=torch.sin)
        return Case(resnet(), rule, x)
    x = torch.randn(2, 3, 8, 8, device=device)
    if name == "net":
        return Case(Net(), rules(), x)
    inside = [
        Rule("net.conv_2", "net.conv_1", weight=torch.sin),
        Rule("net.gate.fc_2", "net.gate.fc_1", weight=torch.neg),
    ]
    model = KeptRoot()
    if name != "kept root":
        inside.pop()
        model.net.gate = nn.Identity()
    return Case(model, inside, x)


@pytest.fixture(params=["net", "kept root", "resnet"])
def case(request, device):
    return made(request.param, device)


def count(program, target):
    return len(program.graph.find_nodes(op="call_function", target=target))


def gradients(module, x):
    """In the order of the names."""
    _, parameters = zip(*sorted(module.named_parameters()), strict=True)
    return torch.autograd.grad(module(x).square().sum(), parameters)


@compat("torch.export", "rules on an ExportedProgram: verifier, lint, outputs, gradients")
@pytest.mark.parametrize("decomposed", [False, True])
def test_tie_program(case, decomposed):
    program = case.program.run_decompositions() if decomposed else case.program
    tied = fxtie.transform(program, case.plan)
    tied.validate()
    tied.graph.lint()
    assert count(tied, case.op) == 1
    derived = {tie.target for tie in case.plan.ties}
    assert derived.isdisjoint(tied.state_dict)
    assert derived.isdisjoint(spec.target for spec in tied.graph_signature.input_specs)
    module = tied.module()
    if decomposed:  # without `no_grad`, which a decomposed program can't have
        torch.testing.assert_close(module(case.x), case.tied(case.x))
    else:
        case.assert_equal_to_tied(module)
        assert_tied_equals_oracle(case.model, module, case.plan.ties, (case.x,), train=None)


@compat("torch.export", "unflatten, save and load of a program that was tied")
def test_tied_program_elsewhere(case):
    tied = fxtie.transform(case.program, case.plan)
    case.assert_equal_to_tied(torch.export.unflatten(tied))
    case.assert_equal_to_tied(reloaded(tied).module())


@compat("torch.export", "export of a tied model, strict and not; dynamic batch; decompositions")
@pytest.mark.parametrize("strict", [False, STRICT])
def test_export_tied(case, strict):
    program = case.tied_program(strict)
    assert count(program, case.op) == 1
    assert program.state_dict.keys() == case.tied.state_dict().keys()
    module = program.module()
    case.assert_equal_to_tied(module)
    for found, expected in zip(
        gradients(module, case.x), gradients(case.tied, case.x), strict=True
    ):
        torch.testing.assert_close(found, expected)
    decomposed = program.run_decompositions()
    assert count(decomposed, case.op) == 1
    torch.testing.assert_close(decomposed.module()(case.x), case.tied(case.x))


@compat("torch.export", "save and load of an exported tied model, strict and not")
@pytest.mark.parametrize("strict", [False, STRICT])
def test_save_exported_tied(case, strict):
    case.assert_equal_to_tied(reloaded(case.tied_program(strict)).module())


@compat("torch.export", "unflatten of an exported tied model")
def test_unflatten_exported_tied(case):
    case.assert_equal_to_tied(torch.export.unflatten(case.tied_program(False)))


@compat("torch.export", "unflatten of a strict export, `no_grad` in a module in a module")
@pytest.mark.xfail(
    strict=True,
    raises=RuntimeError,
    reason="torch.export(strict=True) doesn't note in which module a `no_grad` stands, so that "
    "unflatten fails on the untied model as well. Export without strict=True",
)
@pytest.mark.parametrize("case", ["kept root"], indirect=True)
@pytest.mark.parametrize("is_tied", [False, True])
def test_unflatten_strict_export_with_no_grad(case, is_tied):
    module = case.tied if is_tied else case.model
    program = export(module, (case.x,), strict=True)
    torch.testing.assert_close(torch.export.unflatten(program)(case.x), module(case.x))


@compat("torch.export", "unflatten of a tied model's strict export, of a kept root too")
@pytest.mark.parametrize("case", ["resnet", "kept root, no `no_grad`"], indirect=True)
@NO_STRICT_EXPORT
def test_unflatten_strict_export(case):
    program = case.tied_program(True)
    stacks = [node.meta.get("nn_module_stack", {}) for node in program.graph.nodes]
    assert not any("__dict__" in name for stack in stacks for name, _ in stack.values())
    case.assert_equal_to_tied(torch.export.unflatten(program))


@compat("torch.export", "training mode: batch norm and dropout of either front end")
def test_training(device):
    net = Net(dropout=0.5).to(device).train()
    x = torch.randn(4, 3, 8, 8, device=device)
    plan = fxtie.plan(net, rules())
    tied = fxtie.transform(net, plan)
    ways = (export(tied, (x,)), fxtie.transform(export(net, (x,)), plan))
    outputs = []
    for program in ways:
        module = program.module()
        torch.manual_seed(1)
        outputs.append(module(x))
        assert torch.equal(module.state_dict()["norm.num_batches_tracked"].cpu(), torch.tensor(1))
        module.load_state_dict(tied.state_dict())
        tied.norm.reset_running_stats()
    torch.manual_seed(1)
    for output in outputs:
        assert torch.equal(output, outputs[0])


@compat("torch.export", "an optional argument that is given")
@pytest.mark.parametrize("strict", [False, STRICT])
def test_optional_argument(net, tied, x, strict):
    """The captured graph is for calls without it; the program is for this call."""
    shift = torch.randn(2, 8, device=x.device)
    assert not torch.equal(tied(x, shift), tied(x))
    for args, kwargs in (((x, shift), {}), ((x,), {"shift": shift})):
        program = export(tied, args, kwargs, strict=strict)
        assert torch.equal(program.module()(*args, **kwargs), tied(x, shift))


class Options(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc_1, self.fc_2 = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x, scale=1.0, shift=0.0):
        return self.fc_2(self.fc_1(x)) * scale + shift


@compat("torch.export", "keyword arguments in any order, and that leave one out")
@pytest.mark.parametrize("names", [("shift",), ("shift", "scale"), ("scale", "x")])
@pytest.mark.parametrize("strict", [False, STRICT])
def test_keyword_arguments(device, strict, names):
    tied = fxtie.transform(Options().to(device), Rule("fc_2", "fc_1", weight=torch.sin))
    x, *others = torch.randn(3, 2, 4, device=device)
    kwargs = {name: x if name == "x" else others.pop() for name in names}
    args = () if "x" in names else (x,)
    program = export(tied, args, kwargs, strict=strict)
    torch.testing.assert_close(program.module()(*args, **kwargs), tied(*args, **kwargs))


@compat("torch.export", "keyword arguments that leave one out, tied as a program")
def test_keyword_arguments_of_a_program(device):
    net, rule = Options().to(device), Rule("fc_2", "fc_1", weight=torch.sin)
    x, shift = torch.randn(2, 4, device=device), torch.randn(4, device=device)
    program = fxtie.transform(export(net, (x,), {"shift": shift}), rule)
    expected = fxtie.transform(net, rule)(x, shift=shift)
    torch.testing.assert_close(program.module()(x, shift=shift), expected)
