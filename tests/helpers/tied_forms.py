"""Models in each form that tying gives them, and `check`, which ties one and compares it."""

import warnings

import torch
import torch.nn.functional as F
from oracle import assert_tied_equals_oracle
from torch import fx, nn

import fxtie
from fxtie import Rule, transforms


def check(model, rules, *args, **kwargs):
    """Tie, and compare with the oracle in both modes. Returns the tied model."""
    plan = fxtie.plan(model, rules)
    tied = fxtie.transform(model, plan)
    for train in (False, True):
        assert_tied_equals_oracle(model, tied, plan.ties, args, kwargs, train=train)
    if isinstance(tied, fx.GraphModule):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            tied.graph.lint()
    return tied


class TwoConvs(nn.Module):
    def __init__(self, out: int = 32) -> None:
        super().__init__()
        self.conv_1 = nn.Conv2d(16, 32, 3, padding=1)
        self.down = nn.AvgPool3d((2, 1, 1))
        channels = 16 if out == 32 else 32
        self.conv_2 = nn.Conv2d(channels, out, 3, padding=1)

    def forward(self, x):
        x = self.conv_1(x).relu()
        if self.conv_2.in_channels == 16:
            x = self.down(x)
        return self.conv_2(x)


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = nn.MultiheadAttention(8, 2, batch_first=True)
        self.b = nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, x):
        return self.b(*[self.a(x, x, x)[0]] * 3)[0]


class TwoLSTMs(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.LSTM(4, 4), nn.LSTM(4, 4)

    def forward(self, x):
        return self.b(self.a(x)[0])[0]


class UntraceableRoot(nn.Module):
    """Control flow on values, methods and attributes of its own."""

    kind = "untraceable"

    def __init__(self):
        super().__init__()
        self.a = nn.Linear(6, 6)
        self.b = nn.Sequential(nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 6))

    def forward(self, x):
        if x.sum() > 0:
            return self.b(self.a(x))
        return self.predict(x)

    def predict(self, x):
        for layer in self.b:
            x = layer(x)
        return self.a(x)


class Frozen(nn.Module):
    def __init__(self):
        super().__init__()
        self.norms = nn.Sequential(nn.BatchNorm1d(6), nn.BatchNorm1d(6), nn.Dropout(0.5))
        self.head = nn.Linear(6, 6)
        self.tail = nn.Linear(6, 6)

    def forward(self, x):
        x = F.dropout(self.norms(x), 0.3, self.training)
        return self.tail(self.head(x))


# Lambdas inside of others on one line have no source code that is sure to be theirs in Python 3.10.
DOUBLED = Rule("norms.1", "norms.0", lambda w: w * 2)
LESSENED = Rule("head", "head", lambda w: w - 1)
FORMS = {
    "captured": lambda: (TwoConvs(), Rule("conv_2", "conv_1", torch.square), (2, 16, 8, 8)),
    "kept root": lambda: (UntraceableRoot(), Rule("b.*", "a", torch.neg), (4, 6)),
    "modes": lambda: (Frozen(), DOUBLED, (8, 6)),
    "self": lambda: (Frozen(), LESSENED, (8, 6)),
    "learnable": lambda: (Frozen(), Rule("tail", "head", transforms.LowRank(2)), (8, 6)),
    "learnable, kept": lambda: (UntraceableRoot(), Rule("b.0", "a", transforms.LowRank(2)), (4, 6)),
}
