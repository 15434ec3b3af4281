# %% [markdown]
# # First steps
#
# A small residual net, built like those of torchvision. We look at what its layers have in common,
# tie them, see what that makes of the net, train it beside the untied one, and save it. It takes
# half a minute on a laptop.

# %%
import copy

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn

import fxtie
from fxtie import transforms as T


# %%
class Block(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.conv1 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)

    def forward(self, x):
        y = F.relu(self.bn1(self.conv1(x)))
        return F.relu(x + self.bn2(self.conv2(y)))


class ResNet(nn.Module):
    def __init__(self, width=16, blocks=3):
        super().__init__()
        self.stem = nn.Conv2d(1, width, 3, padding=1)
        self.layers = nn.Sequential(*(Block(width) for _ in range(blocks)))
        self.fc = nn.Linear(width, 10)

    def forward(self, x):
        return self.fc(self.layers(self.stem(x)).amax((2, 3)))


torch.manual_seed(0)
net = ResNet()
net

# %% [markdown]
# ## What could be tied?
#
# `suggest` looks for layers that go together, and shows what that saves.

# %%
fxtie.suggest(net)

# %% [markdown]
# We write a rule of our own. The convolutions of all blocks get the filters of the first one, each
# with a learned factor per channel. The norms stay as they are. A plan checks the rule and runs
# nothing of the net.

# %%
rule = fxtie.Rule("layers.*.conv*", "layers.0.conv1", weight=T.ChannelScale())
plan = fxtie.plan(net, rule)
print(plan)

# %% [markdown]
# The same as a picture: layers in the order of the forward, stored ones solid, derived ones hollow.

# %%
fxtie.picture(plan)

# %% [markdown]
# ## Tie
#
# The tied net is a `ResNet` still. `transform` changes nothing in the net that it is given, but
# shares with it what is not derived: we tie a copy, to train the two side by side.

# %%
tied = fxtie.transform(copy.deepcopy(net), rule)
print(tied.layers)

# %% [markdown]
# Its forward is one graph. Where it differs from the net's:

# %%
print(fxtie.report(tied))

# %%
fxtie.diff(net, tied)

# %% [markdown]
# Is it right? `verify` compares it with `torch.func.functional_call`: outputs, gradients, buffers,
# in `eval()` and in `train()`. It raises if anything differs.

# %%
model = copy.deepcopy(net)
checked = fxtie.verify(model, fxtie.transform(model, rule), torch.randn(4, 1, 8, 8))

# %% [markdown]
# ## Train
#
# The data are scikit-learn's digits, the last fifth of which is for testing. The optimizer sees the
# parameters that are left.

# %%
digits = load_digits()
x = torch.tensor(digits.images, dtype=torch.float32)[:, None] / 16
y = torch.tensor(digits.target)
split = len(x) * 4 // 5


def train(model, epochs=8):
    batches = [batch for _ in range(epochs) for batch in torch.randperm(split).split(64)]
    optimizer = torch.optim.Adam(model.parameters())
    rate = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-2, total_steps=len(batches))
    for batch in batches:
        optimizer.zero_grad()
        F.cross_entropy(model(x[batch]), y[batch]).backward()
        optimizer.step()
        rate.step()


@torch.no_grad()
def accuracy(model):
    return (model.eval()(x[split:]).argmax(1) == y[split:]).float().mean().item()


for name, model in (("untied", net), ("tied", tied)):
    train(model)
    count = sum(p.numel() for p in model.parameters())
    print(f"{name}: {count:,} parameters, test accuracy {accuracy(model):.1%}")

# %% [markdown]
# ## Keep
#
# `save` writes the stored tensors and the rules. `load` ties a plain net by them. `materialize`
# gives a plain net, with tensors of its own and nothing of fxtie.

# %%
fxtie.save(tied, "tied.safetensors")
again = fxtie.load("tied.safetensors", ResNet()).eval()
plain = fxtie.materialize(tied)
assert torch.equal(again(x), tied(x)) and torch.equal(plain(x), tied(x))
type(plain).__name__

# %% [markdown]
# Next: the pages Rules, Transforms and Recipes.
