"""A small decoder, the kinds of ties that the tests shard, and what one process makes of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

import fxtie
from fxtie import Bank, Rule, transforms
from fxtie.life.verifying.oracle import dropped, oracle_run, slot

WIDTH = 8


class Block(nn.Module):
    """The MLP of a decoder's layer."""

    def __init__(self, width: int = WIDTH) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.up = nn.Linear(width, 2 * width)
        self.down = nn.Linear(2 * width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.down(torch.relu(self.up(self.norm(x))))


class Net(nn.Module):
    """A decoder without attention, which passes over layers that a pipeline has taken out.

    Attributes:
        skipped: the numbers of blocks that it does not run.
    """

    def __init__(self, width: int = WIDTH, blocks: int = 4) -> None:
        super().__init__()
        self.embed = nn.Embedding(12, width)
        self.blocks = nn.ModuleList(Block(width) for _ in range(blocks))
        self.head = nn.Linear(width, 12, bias=False)
        self.skipped: set[int] = set()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x if self.embed is None else self.embed(x)
        for number, block in enumerate(self.blocks):
            x = x if number in self.skipped else block(x)
        return x if self.head is None else self.head(x)


def rules(kind: str) -> list[Rule]:
    """Rules of a kind: what is derived, and where its sources are."""
    T = transforms
    return {
        "across": [Rule("re:blocks[.]([23])", "blocks.{0 - 2}", weight=torch.sin)],
        "before": [Rule("re:blocks[.]([01])", "blocks.{0 + 2}", weight=torch.sin)],
        "within": [Rule("blocks.*.down", "blocks.{0}.up", weight=lambda w: w.t().sin(), bias=None)],
        "self": [Rule("blocks.*.up", "blocks.{0}.up", weight=T.LowRank(2), bias=None)],
        "learned": [Rule("re:blocks[.][1-3][.]up", "blocks.0.up", weight=T.LowRank(2))],
        "bank": [Rule("blocks.*.up", Bank(2, (2 * WIDTH, WIDTH)), weight=T.Mix(), bias=None)],
        "head": [Rule("head", "embed")],
        "chain": [
            Rule("blocks.1.up", "blocks.0.up", weight=torch.sin),
            Rule("blocks.2.up", "blocks.1.up", weight=torch.cos),
        ],
    }[kind]


KINDS = ["across", "before", "self", "learned", "bank", "head", "chain"]


def planned(kind: str) -> tuple[Net, fxtie.Plan]:
    """A model and a plan for it, the same each time."""
    torch.manual_seed(0)
    model = Net()
    plan = fxtie.plan(model, rules(kind))
    for module in plan.modules.values():
        for parameter in module.parameters():  # LowRank begins with zeros
            nn.init.normal_(parameter, std=0.3)
    return model, plan


def made(kind: str, **options: Any) -> nn.Module:
    """A tied model."""
    return fxtie.transform(*planned(kind), **options)


class Reference:
    """What one process makes of the same model, by `torch.func.functional_call`.

    Attributes:
        parameters: those that a tied model has, by the names that they have there.
    """

    def __init__(self, kind: str, dtype: torch.dtype = torch.float32) -> None:
        self.model, self.plan = planned(kind)
        for module in (self.model, *self.plan.modules.values()):
            module.to(dtype)
        self.learned = {f"ties.{name}": m for name, m in self.plan.modules.items()}
        gone = dropped(self.model, self.plan.ties)
        named = self.model.named_parameters(remove_duplicate=False)
        self.parameters = {n: p for n, p in named if slot(self.model, n) not in gone}
        for prefix, module in self.learned.items():
            self.parameters |= {f"{prefix}.{n}": p for n, p in module.named_parameters()}

    def __call__(self, ids: torch.Tensor) -> torch.Tensor:
        ties = self.plan.ties
        return oracle_run(self.model, ties, (ids,), {}, learned=self.learned)


UNITS = {
    "root": lambda net: [],
    "blocks": lambda net: list(net.blocks),
    "one block": lambda net: [net.blocks[1]],
    "leaves": lambda net: [m for m in net.modules() if isinstance(m, nn.Linear | nn.LayerNorm)],
    "lists": lambda net: [[net.blocks[0], net.blocks[3]], [net.blocks[1], net.blocks[2]]],
    "ties": lambda net: [*net.blocks, *([net.ties] if hasattr(net, "ties") else [])],
    "each of ties": lambda net: [
        *net.blocks,
        *(net.ties.children() if hasattr(net, "ties") else []),
    ],
}
"""What is a unit beside the root."""


def shard(net: nn.Module, units: str, **options: Any) -> nn.Module:
    """Make units of FSDP2, by the name of what they are, and the root one."""
    for unit in UNITS[units](net):
        fully_shard(unit, **options)
    return fully_shard(net, **options)


def cut(net, number, count):
    """Delete what other stages of a pipeline run: the forward passes over what is not there."""
    per_stage = len(net.blocks) // count
    mine = range(per_stage * number, per_stage * (number + 1))
    for name in list(net.blocks._modules):
        if int(name) not in mine:
            del net.blocks._modules[name]
    if number > 0:
        net.embed = None
    if number < count - 1:
        net.head = None
    return net


def batch(count: int, number: int) -> torch.Tensor:
    """A batch with two rows for each rank."""
    generator = torch.Generator().manual_seed(number)
    ids = torch.randint(0, 12, (2 * count, 6), generator=generator, device="cpu")
    return ids.to(torch.get_default_device())


def mesh_of(*shape: int, names: tuple[str, ...] | None = None) -> DeviceMesh:
    """All ranks, in this shape."""
    return init_device_mesh(torch.get_default_device().type, shape, mesh_dim_names=names)


def loss(output: torch.Tensor) -> torch.Tensor:
    return output.float().square().mean()


def train(
    tied: nn.Module,
    reference: Reference,
    rank: int,
    count: int,
    *,
    tolerance: float = 1e-5,
    steps: int = 2,
    micro_batches: int = 1,
    before: Callable[[nn.Module, bool], None] = lambda tied, is_last: None,
    after: Callable[[nn.Module, dict[str, nn.Parameter]], None] = lambda tied, parameters: None,
) -> None:
    """Train both, and compare outputs, gradients and parameters at each step.

    Args:
        tied: the model on this rank, sharded or not.
        reference: the model of one process, which gets the batches of all ranks.
        rank: this rank, of those that split the batch.
        count: how many ranks split the batch.
        tolerance: of the norm of a difference, as a part of the norm of what is expected.
        steps: how many.
        micro_batches: how many batches make a step.
        before: called before each of them, and whether it is the last of a step.
        after: called before each step of the optimizers, with the parameters of the reference.
    """
    ours = torch.optim.SGD(tied.parameters(), lr=0.05)
    theirs = torch.optim.SGD(reference.parameters.values(), lr=0.05)
    mine = slice(2 * rank, 2 * rank + 2)
    for step in range(steps):
        for micro in range(micro_batches):
            ids = batch(count, step * micro_batches + micro)
            before(tied, micro == micro_batches - 1)
            output, expected = tied(ids[mine]), reference(ids)
            close(whole(output), expected[mine], tolerance, "output")
            loss(output).backward()
            loss(expected).backward()
        after(tied, reference.parameters)
        named = {
            name.replace("_checkpoint_wrapped_module.", ""): parameter
            for name, parameter in tied.named_parameters()
        }
        assert named.keys() == reference.parameters.keys()
        for name, parameter in reference.parameters.items():
            found, what = named[name].grad, f"gradient of {name}"
            assert (found is None) == (parameter.grad is None), what
            if found is not None:
                close(whole(found), parameter.grad, tolerance, what)
        for optimizer in (ours, theirs):
            optimizer.step()
            optimizer.zero_grad()
    for name, parameter in reference.parameters.items():
        close(whole(named[name]), parameter, tolerance, name)


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor, gathered from all ranks if it is sharded."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def close(a: torch.Tensor, b: torch.Tensor | None, tolerance: float, what: str) -> None:
    """Raise unless two tensors are close, measured by the norm of the second."""
    assert b is not None, what
    a, b = a.detach().cpu().float(), b.detach().cpu().float()
    error, size = (a - b).norm(), b.norm()
    assert size > 0, f"{what} is zero"
    assert error <= tolerance * size, f"{what} differs by {float(error / size):.1e}"
