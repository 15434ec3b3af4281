"""Weights of three values, as in BitNet b1.58: each is rounded from its own stored value."""

import copy

import torch
from digits import accuracy, load, train
from tabulate import tabulate
from torch import nn

import fxtie
from fxtie import transforms as T

x, y, test_x, test_y = load()
torch.manual_seed(0)
net = nn.Sequential(
    nn.Flatten(),
    *(nn.Linear(64, 128), nn.ReLU()),
    *(nn.Linear(128, 128), nn.ReLU()),
    nn.Linear(128, 10),
)
rule = fxtie.Rule("*", "{0}", weight=T.ternary(), bias=None)

full = train(copy.deepcopy(net), x, y)
rounded = fxtie.transform(copy.deepcopy(full), rule)
trained = train(fxtie.transform(copy.deepcopy(net), rule), x, y)

values = {len(layer.weight.unique()) for layer in trained if isinstance(layer, nn.Linear)}
assert values == {3}
rows = [
    (name, f"{accuracy(model, test_x, test_y):.1%}")
    for name, model in {
        "full precision": full,
        "rounded after training": rounded,
        "trained while rounded": trained,
    }.items()
]
print(tabulate(rows, ("weights", "test accuracy"), stralign="right"))

# For use: plain layers, whose weights have three values.
plain = fxtie.materialize(trained)
assert type(plain) is nn.Sequential and torch.equal(plain(test_x), trained(test_x))
fxtie.picture(trained).svg("ternary.svg")
