"""Tools on graphs: which ops give the same when they run again, and pickling."""

import io

import pytest
import torch
import torch.nn.functional as F
from torch import fx, nn
from two_linears import Two

import fxtie
from fxtie import Rule
from fxtie.tied.recompute import Remember
from fxtie.tracing.graphs import changed_in_place, repeats

RANDOM = {
    "F.dropout": lambda w: F.dropout(w, 0.5, True),
    "torch.dropout": lambda w: torch.dropout(w, 0.5, True),
    "F.dropout2d": lambda w: F.dropout2d(w[None, None], 0.5, True)[0, 0],
    "F.alpha_dropout": lambda w: F.alpha_dropout(w, 0.5, True),
    "F.feature_alpha_dropout": lambda w: F.feature_alpha_dropout(w, 0.5, True),
    "F.rrelu": lambda w: F.rrelu(w, 0.1, 0.9, True),
    "torch.rrelu": lambda w: torch.rrelu(w, 0.1, 0.9, True),
    "torch.normal": lambda w: torch.normal(w, 0.1),
    "torch.bernoulli": lambda w: w * torch.bernoulli(torch.sigmoid(w)),
    "bernoulli": lambda w: w * torch.sigmoid(w).bernoulli(),
    "uniform_": lambda w: w + torch.empty_like(w).uniform_(),
    "normal_": lambda w: w + torch.zeros_like(w).normal_(),
    "exponential_": lambda w: w + torch.zeros_like(w).exponential_(),
    "torch.poisson": lambda w: w + torch.poisson(w.abs()),
    "torch.multinomial": lambda w: w + torch.multinomial(w.abs() + 1, 4),
    "torch.rand": lambda w: w + torch.rand(4, 4),
    "torch.rand_like": lambda w: w + torch.rand_like(w),
    "torch.randn": lambda w: w + torch.randn(4),
    "torch.randn_like": lambda w: w + torch.randn_like(w),
    "torch.randint": lambda w: w + torch.randint(0, 9, (4, 4)),
    "torch.randint_like": lambda w: w + torch.randint_like(w, 9),
    "torch.randperm": lambda w: w[torch.randperm(4)],
    "F.gumbel_softmax": lambda w: F.gumbel_softmax(w),
    "F.scaled_dot_product_attention": lambda w: F.scaled_dot_product_attention(
        w[None], w[None], w[None], dropout_p=0.5
    )[0],
    # Their aten ops take the random samples as an argument.
    "F.fractional_max_pool2d": lambda w: w + F.fractional_max_pool2d(w[None], 2, 2).mean(),
    "torch.svd_lowrank": lambda w: w + torch.svd_lowrank(w, 2)[1].sum(),
    "aten": lambda w: w * torch.ops.aten.bernoulli.p(w, 0.5),
    "init": lambda w: torch.nn.init.uniform_(torch.sin(w)),
}


REPEATABLE = {
    "torch.square": torch.square,
    "torch.matmul": lambda w: torch.matmul(w, w),
    "operator.matmul": lambda w: w @ w,
    "operator.mul": lambda w: 2 * w * w,
    "operators": lambda w: -(w**2) / 3 - 1 + (w > 0),
    "F.linear": lambda w: F.linear(w, w),
    "flip": lambda w: w.flip(0),
    "torch.rot90": lambda w: torch.rot90(w),
    "torch.cat": lambda w: torch.cat((w[2:], w[:2])).sin(),
    "torch.pow": lambda w: torch.pow(w, 2),
    "pow": lambda w: w.pow(2),
    "torch.stack": lambda w: torch.stack((w[0], w[1], w[3], w[2])),
    "torch.einsum": lambda w: torch.einsum("ij,jk", w, w),
    "torch.tensordot": lambda w: torch.tensordot(w, w, 1),
    "torch.linalg": lambda w: torch.linalg.qr(w)[0],
    "torch.fft": lambda w: torch.fft.fft(w).real.contiguous(),
    "torch.special": lambda w: torch.special.expit(w),
    "F.normalize": lambda w: F.normalize(w),
    "F.softmax": lambda w: F.softmax(w, -1),
    "F.layer_norm": lambda w: F.layer_norm(w, (4,)),
    "F.pad": lambda w: F.pad(w[1:], (0, 0, 1, 0)),
    "F.max_pool1d": lambda w: F.max_pool1d(w[None], 3, 1, 1)[0],
    "F.conv2d": lambda w: F.conv2d(w[None, None], w[None, None], padding="same")[0, 0],
    "F.interpolate": lambda w: F.interpolate(w[None, None, :2, :2], (4, 4))[0, 0],
    "casts": lambda w: w.double().sin().to(torch.float16).float(),
    "masked": lambda w: torch.where(w > 0, w, w.exp()).tril(),
    "torch.eye": lambda w: w @ torch.eye(4),
    "finfo": lambda w: w / (w.norm() + torch.finfo(w.dtype).eps),
    "aten": lambda w: torch.ops.aten.sin.default(w),
}


def remembered(transform):
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    tied = fxtie.transform(model, Rule("1", "0", weight=transform, bias=None), recompute=True)
    return [node for node in tied.graph.nodes if isinstance(node.target, Remember)]


@pytest.mark.parametrize("transform", RANDOM.values(), ids=RANDOM)
def test_random_ops_are_not_computed_again(transform):
    assert not remembered(transform)


@pytest.mark.parametrize("transform", REPEATABLE.values(), ids=REPEATABLE)
def test_ordinary_ops_are_computed_again(transform):
    assert remembered(transform)


def test_of_all_operators_of_torch():
    """Those with Python code of their own are judged by it: it may name a random op."""
    overridable = set(torch.overrides.get_testing_overrides())
    overridable -= torch.overrides.get_ignored_functions()
    graph = fx.Graph()
    x = graph.placeholder("x")
    functional = {
        f.__name__: repeats(graph.call_function(f, (x,)))
        for f in overridable
        if getattr(f, "__module__", None) in ("torch.functional", "torch.nn.functional")
    }
    random = {name for name, is_repeatable in functional.items() if not is_repeatable}
    assert random == {
        *("dropout", "dropout1d", "dropout2d", "dropout3d"),
        *("alpha_dropout", "feature_alpha_dropout", "rrelu", "gumbel_softmax"),
        *("fractional_max_pool2d", "fractional_max_pool2d_with_indices"),
        *("fractional_max_pool3d", "fractional_max_pool3d_with_indices"),
        "multi_head_attention_forward",
    }
    assert len(functional) > 90
    builtins = [f for f in overridable if type(f).__name__ == "builtin_function_or_method"]
    known = [f for f in builtins if repeats(graph.call_function(f, (x,)))]
    assert len(builtins) - len(known) < 30  # random, or without an aten op of their name


class Pooled(Two):
    def forward(self, x):
        return F.max_pool1d(self.b(self.a(x)), 2)


def test_pickling_a_graph_with_functions_that_another_made():
    """`F.max_pool1d` has no name under which pickle finds it by itself."""
    tied = fxtie.transform(Pooled(), Rule("b", "a", weight=torch.square))
    assert not fxtie.report(tied).kept
    file = io.BytesIO()
    torch.save(tied, file)
    file.seek(0)
    again = torch.load(file, weights_only=False)
    x = torch.randn(3, 4)
    assert torch.equal(again(x), tied(x))
    assert not fxtie.report(again).missed, "the graph is used"


@pytest.mark.parametrize("norm", [torch.batch_norm, torch.ops.aten.batch_norm.default])
def test_a_norm_updates_its_statistics_in_training(norm):
    graph = fx.Graph()
    x, mean, var, flag = map(graph.placeholder, ("x", "mean", "var", "flag"))
    for training, expected in ((True, [mean, var]), (flag, [mean, var]), (False, [])):
        node = graph.call_function(norm, (x, None, None, mean, var, training, 0.1, 1e-5, False))
        assert changed_in_place(node) == expected
