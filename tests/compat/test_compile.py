"""`torch.compile` of tied models: one graph, no more recompiles than untied, the same numbers.

Breaks and recompiles don't depend on the backend. Where these are counted, it is the cheapest.
"""

import copy

import pytest
import torch
import torch._dynamo as dynamo
from compat.checks import Case, assert_close, assert_equals_oracle
from compat.nets import CASES, Net, rules
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch._dynamo.utils import counters

import fxtie
from fxtie import Rule

compat = pytest.mark.compat
# torch looks at it where it goes on after a break, of whatever model:
resumes = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")


@pytest.fixture(autouse=True)
def _fresh():
    dynamo.reset()
    yield
    dynamo.reset()


@pytest.fixture
def steady():
    """A context in which a recompile raises."""
    return dynamo.config.patch(error_on_recompile=True)


def compiled(module, **options):
    return torch.compile(module, **{"backend": "aot_eager", "fullgraph": True, **options})


@compat("torch.compile", "fullgraph=True, in eval and train: outputs and gradients (AOTAutograd)")
@pytest.mark.parametrize("train", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize("case", CASES, indirect=True)
def test_one_graph(case, train):
    assert_equals_oracle(case, compiled(case.tied), train=train)


def test_long_chain():
    """Dynamo follows calls by calls of its own, so reads inside of reads soon were too deep."""
    model = nn.Sequential(*(nn.Linear(4, 4) for _ in range(21)))
    rules = [Rule(str(i + 1), str(i), weight=torch.sin) for i in range(20)]
    case = Case(model, fxtie.transform(model, rules), torch.randn(2, 4))
    assert_equals_oracle(case, compiled(case.tied), train=True)


def test_a_source_that_is_read_twice_is_derived_once():
    class Last(nn.Sequential):
        def forward(self, x):
            return nn.functional.linear(x, self._modules["2"].weight)

    model = Last(*(nn.Linear(4, 4, bias=False) for _ in range(3)))
    ties = [
        fxtie.Tie("1.weight", "0.weight", torch.sin),
        fxtie.Tie("2.weight", ("1.weight", "1.weight"), torch.add),
    ]
    graphs = []
    tied = fxtie.transform(model, ties, trace=False)
    x = torch.randn(2, 4)
    found = torch.compile(tied, backend=lambda graph, _: graphs.append(graph) or graph)(x)
    (graph,) = graphs
    assert [node.target for node in graph.graph.nodes].count(torch.sin) == 1
    assert torch.equal(found, tied(x))


def test_a_root_of_torchs_own_class_without_a_graph():
    """Dynamo begins with no code of torch's; it compiled each derived attribute by itself."""
    model = nn.Sequential(*(nn.Linear(4, 4) for _ in range(12)))
    rules = [Rule(str(i), "0", weight=torch.sin) for i in range(1, 12)]
    case = Case(model, fxtie.transform(model, rules, trace=False), torch.randn(2, 4))
    assert_equals_oracle(case, compiled(case.tied), train=True)


@pytest.mark.slow
@compat("torch.compile", "Inductor, fullgraph=True, dynamic=True, in eval and train: the same")
@pytest.mark.parametrize("case", ["net"], indirect=True)  # resnet: see AOTInductor
def test_inductor(case, steady):
    case = Case(case.model.double(), case.tied.double(), case.x.double())  # errors are no noise
    call = compiled(case.tied, backend="inductor", dynamic=True)
    for train in (False, True):
        assert_equals_oracle(case, call, train=train, tolerance=1e-10)
        with steady:
            wider = case._replace(x=torch.randn(6, *case.x.shape[1:]).to(case.x))
            assert_equals_oracle(wider, call, train=train, tolerance=1e-10)


# --- Breaks and recompiles --------------------------------------------------------------------


def work(module, shape, device, **options):
    """What compiling costs: frames, breaks and their reasons, in two modes and several sizes."""
    dynamo.reset()
    counters.clear()
    backend = CompileCounterWithBackend("eager")
    call = torch.compile(module, backend=backend, **options)
    frames = []
    for train in (False, True, False):
        module.train(train)
        for batch in (4, 5, 6):  # not 3, the number of channels
            call(torch.randn(batch, *shape[1:], device=device))
            frames.append(backend.frame_count)
    return frames, dict(counters["graph_break"])


@compat("torch.compile", "no graph break and no recompile more than the untied model, at any size")
def test_no_more_work(case, device):
    shape = case.x.shape
    expected, breaks = work(copy.deepcopy(case.model), shape, device, fullgraph=True)
    assert work(case.tied, shape, device, fullgraph=True) == (expected, breaks)
    assert expected == [1, 2, 2, 3, 3, 3, 3, 3, 3] and not breaks


@compat("torch.compile", "dynamic=True: as many graphs as the untied model")
def test_dynamic(net, tied, x, device):
    expected, breaks = work(copy.deepcopy(net), x.shape, device, dynamic=True, fullgraph=True)
    assert work(tied, x.shape, device, dynamic=True, fullgraph=True) == (expected, breaks)
    assert expected[:6] == [1, 1, 1, 2, 2, 2] and not breaks


class Broken(Net):
    """A forward that goes by values: the compiler has to break it, and fxtie keeps it."""

    def forward(self, x, shift=None):
        x = torch.tanh(self.conv_2(torch.tanh(self.conv_1(self.stem(x)))))
        if x.mean() > 100:
            x = x / 100
        return self.fc_2(torch.tanh(self.fc_1(self.conv_3(x).mean((2, 3)))))


@resumes
@compat("torch.compile", "a forward with graph breaks has as many as before")
def test_breaks_stay(device):
    net = Broken().to(device)
    tied = fxtie.transform(net, rules())
    expected = work(copy.deepcopy(net), (2, 3, 8, 8), device)
    assert expected[0][0] > 1, "one frame before the break, one after it"
    assert work(tied, (2, 3, 8, 8), device) == expected


@compat("torch.compile", "calls with other optional arguments than captured")
def test_optional_argument(net, tied, x, device):
    """They run the user's own forward on derived attributes, in one graph as well."""
    shift = torch.randn(8, device=device)
    counts = []
    for module in (copy.deepcopy(net), tied):
        dynamo.reset()
        backend = CompileCounterWithBackend("eager")
        call = compiled(module, backend=backend)
        call(x)
        call(x, shift)
        call(x, 2 * shift)
        call(x)
        counts.append(backend.frame_count)
        torch.testing.assert_close(call(x, shift), module(x, shift))
        assert not torch.allclose(call(x, shift), call(x))
    assert counts[0] == counts[1] == 2


# --- Values that change -----------------------------------------------------------------------


@compat("torch.compile", "a training loop: no recompile after steps, loads and changes of values")
def test_training(tied, x, steady):
    other = copy.deepcopy(tied).train()
    tied.train()
    call = compiled(tied)
    optimizers = [torch.optim.SGD(module.parameters(), 0.1) for module in (tied, other)]
    first = call(x).detach()
    other(x)
    with steady:
        for _ in range(3):
            for module, optimizer in zip((call, other), optimizers, strict=True):
                optimizer.zero_grad()
                module(x).square().sum().backward()
                optimizer.step()
        torch.testing.assert_close(call(x), other(x))
        assert not torch.allclose(call(x), first, rtol=1e-2)
        state = {name: value * 1.5 for name, value in tied.state_dict().items()}
        call.load_state_dict({f"_orig_mod.{name}": value for name, value in state.items()})
        other.load_state_dict(state)
        torch.testing.assert_close(call(x), other(x))


@compat("torch.compile", "after to_empty and load_state_dict of a model tied on the meta device")
@pytest.mark.parametrize("name", ["net", "kept root"])
@pytest.mark.parametrize("assign", [False, True], ids=["copied", "assigned"])
def test_from_meta(name, assign, device):
    make, rules, shape = CASES[name]
    with torch.device("meta"):
        tied = fxtie.transform(make(), rules())
    model = make().to(device).eval()
    loaded = fxtie.transform(model, rules())  # for values of what the rules learn
    for parameter in loaded.ties.parameters():
        nn.init.normal_(parameter, std=0.3)
    checkpoint = copy.deepcopy({**model.state_dict(), **loaded.state_dict()})  # of the untied model
    if not assign:
        tied.to_empty(device=device)
    tied.load_state_dict(checkpoint, assign=assign)
    assert not any(tensor.is_meta for tensor in (*tied.parameters(), *tied.buffers()))
    case = Case(model, tied, torch.randn(shape, device=device))
    assert_equals_oracle(case, compiled(tied, backend="eager"), train=False)


# --- Ways to compile --------------------------------------------------------------------------


@compat("torch.compile", "transform(..., compile={...}) hands its arguments on")
def test_compile_argument(net, x):
    backend = CompileCounterWithBackend("eager")
    call = fxtie.transform(
        net, rules(), compile={"backend": backend, "fullgraph": True, "dynamic": False}
    )
    for size in (2, 3, 4):
        call(x[:1].expand(size, -1, -1, -1))
    assert backend.frame_count == 3, "dynamic=False compiles for each size"
    torch.testing.assert_close(call(x), fxtie.transform(net, rules())(x))
    assert fxtie.report(call).targets == fxtie.report(fxtie.transform(net, rules())).targets


@compat("torch.compile", "a function that sets the mode and calls the model, fullgraph=True")
def test_mode_is_set_in_compiled_code(tied, x):
    @torch.compile(backend="eager", fullgraph=True)
    def evaluate(x):
        tied.eval()
        return tied(x)

    tied = fxtie.transform(tied.train(), Rule("norm", "norm", bias=torch.sin))
    found = evaluate(x)
    assert not tied.training
    torch.testing.assert_close(found, tied(x))


@resumes
@compat("torch.compile", "Module.compile() in place, of the whole and of a kept part")
def test_in_place(net, tied, x):
    backend = CompileCounterWithBackend("aot_eager")
    expected = tied(x)
    tied.gate.compile(backend=backend, fullgraph=True)
    torch.testing.assert_close(tied(x), expected)
    assert backend.frame_count == 1
    tied.compile(backend=backend, fullgraph=True)
    assert_equals_oracle(Case(net, tied, x), train=False)
    assert backend.frame_count == 2


@compat("torch.compile", "Module.compile() in place of a layer whose forward stands in a graph")
@pytest.mark.xfail(
    strict=True, reason="the graph holds what the layer computes and does not call it: no effect"
)
def test_in_place_of_an_opened_layer(tied, x):
    backend = CompileCounterWithBackend("eager")
    tied.conv_2.compile(backend=backend)
    tied(x)
    assert backend.frame_count == 1


@compat("torch.compile", "copy.deepcopy of a model that was compiled in place")
def test_copy_of_compiled(tied, x):
    tied.compile(backend="eager", fullgraph=True)
    expected = tied(x)
    again = copy.deepcopy(tied)
    torch.nn.init.zeros_(tied.conv_1.weight)
    assert torch.equal(again(x), expected) and not torch.allclose(tied(x), expected)


@compat("torch.compile", "under autocast, fullgraph=True")
@pytest.mark.parametrize("train", [False, True], ids=["eval", "train"])
def test_autocast(case, device, train):
    def context():
        return torch.autocast(device.type, torch.bfloat16)

    call = compiled(case.tied, backend="eager")
    tolerance = torch.finfo(torch.bfloat16).eps
    assert_equals_oracle(case, call, train=train, tolerance=tolerance, context=context)


@compat("torch.compile", "transform(..., recompute=True)")
def test_recompute(net, x):
    tied = fxtie.transform(net, rules(), recompute=True)
    for train in (False, True):
        assert_equals_oracle(Case(net, tied, x), compiled(tied), train=train)


@compat("torch.compile", "derive_once around calls of a compiled model")
def test_derive_once(case):
    call = compiled(case.tied, backend="eager")
    for part in case.x.chunk(2):
        call(part).square().sum().backward()
    expected = {name: p.grad.clone() for name, p in case.tied.named_parameters()}
    case.tied.zero_grad()
    with fxtie.derive_once(case.tied):
        for part in case.x.chunk(2):
            call(part).square().sum().backward()
    assert_close({name: p.grad for name, p in case.tied.named_parameters()}, expected)


@resumes
@compat("torch.compile", "a transform that fxtie can't trace stays a call, which is compiled")
def test_opaque_transform(net, x):
    def scaled(weight):
        return weight * (2.0 if weight.mean() > 10 else 0.5)

    tied = fxtie.transform(net, Rule("conv_2", "conv_1", weight=scaled))
    assert_equals_oracle(Case(net, tied, x), compiled(tied, fullgraph=False), train=False)


class Doubled(nn.Sequential):
    def forward(self, x):
        return super().forward(x * 2)


class Halved(nn.Sequential):
    def forward(self, x):
        return super().forward(x / 2)


@pytest.mark.parametrize("recompute", [False, True])
def test_dynamo_counts_each_class_by_itself(recompute):
    """It limits how often it compiles one code object, and each class is compiled anew."""
    dynamo.reset()
    x = torch.randn(2, 4)
    with dynamo.config.patch(recompile_limit=1):
        for cls in (Doubled, Halved):
            net = cls(*(nn.Linear(4, 4) for _ in range(3)))
            tied = fxtie.transform(net, Rule("2", "0", weight=torch.square), recompute=recompute)
            compiled = torch.compile(tied, backend="eager", fullgraph=True)
            torch.testing.assert_close(compiled(x), tied(x))
