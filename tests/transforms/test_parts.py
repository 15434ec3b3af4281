"""Transforms that return several tensors, one for each of their targets."""

import pytest
import torch
from attention import X6, Attention, split
from oracle import tied_and_compared as check
from torch import nn

import fxtie
from fxtie import Tensors, Tie
from fxtie.transforms.parts import Part


class Counting:
    """A transform that counts the calls with real tensors, and which a graph can't hold."""

    def __init__(self):
        self.calls = 0

    def __call__(self, w):
        self.calls += type(w) in (torch.Tensor, nn.Parameter)
        return w.chunk(3)


class Hyper(nn.Module):
    """A network that makes the weights of others."""

    def __init__(self):
        super().__init__()
        self.net = nn.Linear(6, 12)

    def forward(self, w):
        return tuple(
            self.net(w.reshape(3, 6, 6)[i]).reshape(2, 36)[:1].reshape(6, 6) for i in range(3)
        )


@pytest.mark.parametrize(
    "make", [lambda: split, Counting, Hyper], ids=["graph", "opaque", "module"]
)
def test_several_targets(make):
    model = Attention()
    names = ("q.weight", "k.weight", "v.weight")
    tied = check(model, Tie(names, "qkv.weight", make()), X6)
    assert set(tied.state_dict()) >= {"qkv.weight", "out.weight"}
    assert not set(names) & set(tied.state_dict())


class KeptAttention(Attention):
    def forward(self, x):
        return super().forward(x) if x.sum() > -1e9 else x


@pytest.mark.parametrize("cls", [Attention, KeptAttention], ids=["graph", "kept"])
@pytest.mark.parametrize("grad", [True, False])
def test_it_runs_once_in_a_call(cls, grad):
    counting = Counting()
    model = cls()
    names = ("q.weight", "k.weight", "v.weight")
    tied = fxtie.transform(model, Tie(names, "qkv.weight", counting))
    assert bool(fxtie.report(tied).kept) is (cls is KeptAttention)
    before = counting.calls
    with torch.set_grad_enabled(grad):
        tied(X6)
    assert counting.calls - before == 1


def test_its_ops_stand_in_the_graph_once():
    tied = fxtie.transform(
        Attention(), Tie(("q.weight", "k.weight"), "qkv.weight", lambda w: w.chunk(3)[:2])
    )
    assert sum("chunk" in str(node.target) for node in tied.graph.nodes) == 1


@pytest.mark.parametrize("cls", [Attention, KeptAttention], ids=["graph", "kept"])
def test_one_random_draw_for_all_targets(cls):
    model = cls()
    names = ("q.weight", "k.weight")
    draw = Tie(names, "v.weight", lambda w: (z := w * torch.rand(()), z))
    other = Tie(("qkv.weight", "out.weight"), (), lambda: (torch.rand(18, 6), torch.rand(6, 18)))
    tied = fxtie.transform(model, [draw, other])
    with fxtie.derive_once(tied):
        assert torch.equal(tied.q.weight, tied.k.weight)
    if cls is Attention:
        assert sum(node.target is torch.rand for node in tied.graph.nodes) == 3


@pytest.mark.parametrize(
    ("transform", "words"),
    [
        (torch.neg, "returns Tensor, not a tuple"),
        (lambda w: w.chunk(3)[:2], "returns 2 tensors"),
        (lambda w: w.chunk(2), "gives shape (9, 6)"),
        (lambda w: (w[:6], w[:6], 3), "returns int, not a tensor"),
        (lambda w: w.clamp_(0).chunk(3), "changes its source in place"),
    ],
)
def test_faults_of_several_targets(transform, words):
    with pytest.raises(fxtie.PlanError) as told:
        fxtie.plan(Attention(), Tie(("q.weight", "k.weight", "v.weight"), "qkv.weight", transform))
    assert words in str(told.value)


def test_several_targets_of_a_transform_that_branches_on_values():
    def signed(w):
        return w.chunk(3) if w.sum() > 0 else (-w).chunk(3)

    model = Attention()
    tie = Tie(("q.weight", "k.weight", "v.weight"), "qkv.weight", signed)
    for sign in (1, -1):
        with torch.no_grad():
            model.qkv.weight.copy_(sign * model.qkv.weight.abs())
        tied = check(model, tie, X6)
        assert torch.equal(tied.k.weight, model.qkv.weight.abs()[6:12])


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("once", [False, True])
def test_gradients_of_several_targets(recompute, once):
    model = Attention()
    tie = Tie(("q.weight", "k.weight", "v.weight"), "qkv.weight", lambda w: (w * 2).tanh().chunk(3))
    reference = fxtie.transform(model, tie, trace=False)
    tied = fxtie.transform(model, tie, recompute=recompute)
    reference(X6).square().sum().backward()
    expected = {name: p.grad for name, p in reference.named_parameters()}
    model.zero_grad()
    with fxtie.derive_once(tied) if once else torch.enable_grad():
        tied(X6).square().sum().backward()
    for name, parameter in tied.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[name])


def test_copies_saves_and_materializes(tmp_path):
    import copy
    import pickle

    pytest.importorskip("safetensors")
    model = Attention()
    names = ("q.weight", "k.weight", "v.weight")
    tensors = Tensors(A=(18, 6), scale=torch.full((), 2.0), frozen="scale")
    tie = Tie(names, ("qkv.weight", tensors), chunks)
    tied = fxtie.transform(model, tie)
    expected = tied(X6)
    for other in (copy.deepcopy(tied), pickle.loads(pickle.dumps(tied)), fxtie.materialize(tied)):
        assert torch.equal(other(X6), expected)
    fxtie.save(tied, tmp_path / "tied.safetensors")
    loaded = fxtie.load(tmp_path / "tied.safetensors", Attention())
    assert torch.equal(loaded(X6), expected)
    assert sorted(loaded.state_dict()) == sorted(tied.state_dict())


@fxtie.register("tests.sharing.chunks")
def chunks(w, A, scale):
    return (w + scale * A).chunk(3)


def test_exported_programs():
    model = Attention()
    tie = Tie(("q.weight", "k.weight", "v.weight"), "qkv.weight", split)
    tied = fxtie.transform(model, tie)
    program = fxtie.transform(torch.export.export(model, (X6,)), tie)
    torch.testing.assert_close(program.module()(X6), tied(X6))
    assert "q.weight" not in program.state_dict


def test_compiled():
    tie = Tie(("q.weight", "k.weight", "v.weight"), "qkv.weight", split)
    tied = fxtie.transform(Attention(), tie)
    compiled = torch.compile(tied, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(X6), tied(X6))


def test_a_part_is_one_of_the_results():
    w = torch.arange(6.0)
    part = Part(split, 1, ("q.weight", "k.weight", "v.weight"))
    assert torch.equal(part(w), w[2:4]) and repr(part) == "split[1]"
