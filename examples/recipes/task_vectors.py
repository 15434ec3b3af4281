"""Task arithmetic: a model plus what fine-tuning on two tasks has changed in it."""

import copy

import torch
from digits import accuracy, load, train
from tabulate import tabulate
from torch import nn

import fxtie
from fxtie import Tie
from fxtie import transforms as T

x, y, test_x, test_y = load()
low, high, test_low, test_high = y < 5, y >= 5, test_y < 5, test_y >= 5

torch.manual_seed(0)
net = nn.Sequential(nn.Flatten(), nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10))
base = train(net, x[:200], y[:200], epochs=3)
on_low = train(copy.deepcopy(base), x[low], y[low], epochs=5)
on_high = train(copy.deepcopy(base), x[high], y[high], epochs=5)


def merged(transform) -> nn.Module:
    """Each tensor of the base as a function of those of the three models, which are frozen."""
    ties = []
    for name, value in base.named_parameters():
        others = {"low": on_low.get_parameter(name), "high": on_high.get_parameter(name)}
        sources = fxtie.Tensors(base=value, **others, frozen=("base", "low", "high"))
        ties.append(Tie(name, sources, transform))
    return fxtie.transform(base, ties)


learned = merged(T.learn(T.task_vector(0.5)))  # a factor for each tensor
assert sum(p.numel() for p in learned.parameters()) == 4
train(learned, x[:200], y[:200], epochs=20)

models = {
    "base": base,
    "tuned on 0 to 4": on_low,
    "tuned on 5 to 9": on_high,
    "merged, 0.5": merged(T.task_vector(0.5)),
    "merged, learned": learned,
}
splits = [
    (test_x[test_low], test_y[test_low]),
    (test_x[test_high], test_y[test_high]),
    (test_x, test_y),
]
rows = [(name, *(f"{accuracy(m, *split):.1%}" for split in splits)) for name, m in models.items()]
print(tabulate(rows, ("model", "0 to 4", "5 to 9", "all"), stralign="right"))
fxtie.picture(learned).svg("task_vectors.svg")
