"""Deployment: ONNX, AOTInductor and TorchScript, of the tied, the frozen and the plain model."""

import zipfile
from collections import Counter

import pytest
import torch
from compat.nets import Net, resnet, rules
from torch import nn
from torch.export import export

import fxtie
from fxtie import Rule
from fxtie.pipelines.freeze import freeze

compat = pytest.mark.compat

FORMS = {
    "tied": lambda tied: tied,
    "frozen": freeze,
    "materialised": fxtie.materialize,
}


@pytest.fixture(params=["net", "resnet"])
def model(request, device):
    """A tied model with one `sin`, and an input."""
    if request.param == "net":
        model, tied_by, size = Net(), rules(), 8
    else:
        model, size = resnet(), 32
        tied_by = Rule("layer1.1.conv2", "layer1.0.conv2", weight=torch.sin)
    tied = fxtie.transform(model.to(device).eval(), tied_by)
    if request.param == "net":
        for parameter in tied.ties.parameters():
            nn.init.normal_(parameter, std=0.3)  # a fresh one adds nothing
    return tied, torch.randn(2, 3, size, size, device=device)


# --- ONNX -------------------------------------------------------------------------------------


@compat("ONNX", "torch.onnx.export(dynamo=True), run", "onnx", "onnxruntime", "onnxscript", "torch")
@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize("form", ["tied", "frozen"])  # a materialised model is a plain one
def test_onnx(model, form):
    onnxruntime = pytest.importorskip("onnxruntime", reason="ONNX needs fxtie[onnx]")
    pytest.importorskip("onnxscript", reason="ONNX needs fxtie[onnx]")
    tied, x = model
    check_onnx(onnxruntime, FORMS[form](tied), (x,), tied, 1 if form == "tied" else 0)


@compat("ONNX", "of a frozen program", "onnx", "onnxruntime", "onnxscript", "torch")
@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize("model", ["net"], indirect=True)
def test_onnx_of_a_program(model):
    onnxruntime = pytest.importorskip("onnxruntime", reason="ONNX needs fxtie[onnx]")
    pytest.importorskip("onnxscript", reason="ONNX needs fxtie[onnx]")
    tied, x = model
    check_onnx(onnxruntime, freeze(export(tied, (x,))), (), tied, 0, x)


def check_onnx(onnxruntime, exported, args, tied, sines, x=None):
    x = args[0] if x is None else x
    # Unoptimised: constants that the exporter itself would fold are counted too.
    program = torch.onnx.export(exported, args, dynamo=True, optimize=False, verbose=False)
    operators = Counter(node.op_type for node in program.model_proto.graph.node)
    assert operators["Sin"] == sines
    session = onnxruntime.InferenceSession(
        program.model_proto.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    (given,) = session.get_inputs()
    (found,) = session.run(None, {given.name: x.cpu().numpy()})
    torch.testing.assert_close(torch.from_numpy(found), tied(x).cpu(), rtol=1e-3, atol=1e-4)


# --- AOTInductor ------------------------------------------------------------------------------


@pytest.mark.slow
@compat("AOTInductor", "aoti_compile_and_package, aoti_load_package, run")
@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize("form", ["tied", "frozen"])
def test_aot_inductor(tied, x, tmp_path, form):
    check_aot_inductor(form, tied, x, tmp_path)


@pytest.mark.slow
@compat("AOTInductor", "aoti_compile_and_package, aoti_load_package, run")
@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize("model", ["resnet"], indirect=True)
def test_aot_inductor_of_resnet(model, tmp_path):
    check_aot_inductor("tied", *model, tmp_path)


def check_aot_inductor(form, tied, x, tmp_path):
    program = export(tied, (x,))
    if form == "frozen":
        program = freeze(program)
    path = torch._inductor.aoti_compile_and_package(
        program, package_path=str(tmp_path / "model.pt2")
    )
    loaded = torch._inductor.aoti_load_package(path)
    torch.testing.assert_close(loaded(x), tied(x), rtol=1e-3, atol=1e-4)
    if x.device.type == "cpu":
        assert ("sin(" in kernels(path)) == (form == "tied")


def kernels(path):
    """The source of the kernels in a package for the CPU."""
    with zipfile.ZipFile(path) as package:
        names = [name for name in package.namelist() if name.endswith(".kernel.cpp")]
        return "".join(package.read(name).decode() for name in names)


# --- TorchScript ------------------------------------------------------------------------------


@compat("TorchScript", "torch.jit.trace, save and load")
# A learnable transform checks the shape of its source, which is constant.
@pytest.mark.parametrize("form", FORMS)
def test_trace(model, tmp_path, form):
    tied, x = model
    traced = torch.jit.trace(FORMS[form](tied), (x,))
    path = str(tmp_path / "traced.pt")
    torch.jit.save(traced, path)
    loaded = torch.jit.load(path)
    assert torch.equal(loaded(x), tied(x))
    sines = loaded.inlined_graph.findAllNodes("aten::sin")
    assert len(sines) == (1 if form == "tied" else 0)
    wide = torch.cat([x, x])
    torch.testing.assert_close(loaded(wide), tied(wide))
