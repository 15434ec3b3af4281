"""Train a tied decoder on several processes, in any of torch's ways; the losses are the same.

    torchrun --nproc-per-node 2 examples/distributed/train.py --mode fsdp

The text is the manual of Python's language that ships with Python. It runs on GPUs if there is one
for each process, else on the CPU. Called again with the same
`--out`, it goes on from the last checkpoint; `--max-restarts` of torchrun does so by itself. Each
run writes its losses, and draws those of all modes if matplotlib is there.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
from pathlib import Path
from pydoc_data.topics import topics

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
import torch.nn.functional as F
from torch import nn
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.pipelining import PipelineStage, ScheduleGPipe
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    RowwiseParallel,
    parallelize_module,
)
from torch.nn.parallel import DistributedDataParallel

import fxtie
from fxtie.distributed import TiedLoadPlanner, TiedSavePlanner, share_across_stages

TEXT = torch.frombuffer(bytearray("".join(topics.values()).encode()), dtype=torch.uint8)
ON_GPUS = torch.cuda.device_count() >= int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
DEVICE = (
    torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0"))) if ON_GPUS else torch.device("cpu")
)
LAYERS, WIDTH, HEADS, LENGTH, BATCH = 4, 64, 4, 64, 8


class Layer(nn.Module):
    """Attention and an MLP. Heads are counted from the width, of which a rank may have a part."""

    def __init__(self) -> None:
        super().__init__()
        self.norm_1, self.norm_2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.q, self.k, self.v, self.o = (nn.Linear(WIDTH, WIDTH) for _ in range(4))
        self.up, self.down = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.norm_1(x)
        q, k, v = (
            project(y).unflatten(-1, (-1, WIDTH // HEADS)).transpose(1, 2)
            for project in (self.q, self.k, self.v)
        )
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.o(y.transpose(1, 2).flatten(-2))
        return x + self.down(F.gelu(self.up(self.norm_2(x))))


class Decoder(nn.Module):
    """Predicts the next byte. A stage of a pipeline has some of its parts."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(256, WIDTH)
        self.layers = nn.ModuleDict({str(i): Layer() for i in range(LAYERS)})
        self.head = nn.Linear(WIDTH, 256)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x if self.embed is None else self.embed(x)
        for layer in self.layers.values():
            x = layer(x)
        return x if self.head is None else self.head(x)


def tied_decoder() -> Decoder:
    """The second half of the layers derives from the first."""
    torch.manual_seed(0)
    rule = fxtie.Rule("re:layers[.]([23])", "layers.{0 - 2}", weight=torch.sin, bias=fxtie.same)
    return fxtie.transform(Decoder(), rule)


def batch(step: int, part: int, parts: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The rows of a step's batch that one of the data-parallel ranks has."""
    generator = torch.Generator().manual_seed(step)
    starts = torch.randint(len(TEXT) - LENGTH, (BATCH,), generator=generator)
    rows = torch.stack([TEXT[start : start + LENGTH + 1] for start in starts]).long()
    rows = rows.chunk(parts)[part].to(DEVICE)
    return rows[:, :-1], rows[:, 1:]


def loss_of(output: torch.Tensor, expected: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(output.flatten(0, 1), expected.flatten())


class Replicas:
    """ddp, fsdp, tp: each rank has all layers, whole or in part."""

    def __init__(self, mode: str, rank: int, count: int) -> None:
        self.net: nn.Module = tied_decoder().to(DEVICE)
        self.rows = (0, 1) if mode == "tp" else (rank, count)
        if mode == "ddp":
            self.run: nn.Module = DistributedDataParallel(self.net)
            return
        mesh = init_device_mesh(DEVICE.type, (count,))
        if mode == "tp":
            split = {"q": ColwiseParallel, "k": ColwiseParallel, "v": ColwiseParallel}
            split |= {"o": RowwiseParallel, "up": ColwiseParallel, "down": RowwiseParallel}
            styles = {f"layers.*.{name}": style() for name, style in split.items()}
            parallelize_module(self.net, mesh, styles)
        else:
            for layer in self.net.layers.values():
                fully_shard(layer, mesh=mesh)
            fully_shard(self.net, mesh=mesh)
        self.run = self.net

    def step(self, number: int) -> torch.Tensor:
        x, y = batch(number, *self.rows)
        loss = loss_of(self.run(x), y)
        loss.backward()
        return loss.detach()


class Stages:
    """pp: each rank has some layers."""

    def __init__(self, mode: str, rank: int, count: int) -> None:
        self.net = tied_decoder().to(DEVICE)
        self.rank, self.last = rank, count - 1
        for name in list(self.net.layers):
            if int(name) * count // LAYERS != rank:
                del self.net.layers[name]
        if rank > 0:
            self.net.embed = None
        if rank < self.last:
            self.net.head = None
        self.shared = share_across_stages(self.net)
        stage = PipelineStage(self.net, rank, count, DEVICE)
        self.schedule = ScheduleGPipe(stage, n_microbatches=2, loss_fn=loss_of)

    def step(self, number: int) -> torch.Tensor:
        x, y = batch(number, 0, 1)
        losses: list[torch.Tensor] = []
        inputs = (x,) if self.rank == 0 else ()
        expected = {"target": y, "losses": losses} if self.rank == self.last else {}
        self.schedule.step(*inputs, **expected)
        self.shared.reduce_gradients()
        loss = torch.stack(losses).mean() if losses else torch.zeros((), device=DEVICE)
        return loss.detach() * (self.last + 1)  # the mean over ranks is that of the last


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mode", choices=["ddp", "fsdp", "tp", "pp"], default="fsdp")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--save-every", type=int, default=20)
    parser.add_argument("--out", type=Path, default=Path("out/distributed"))
    parser.add_argument("--die-at", type=int, help="kill the last rank in this step, once")
    if ON_GPUS:
        torch.cuda.set_device(DEVICE)
    dist.init_process_group("cpu:gloo,cuda:nccl" if ON_GPUS else "gloo")
    train(parser.parse_args())
    dist.destroy_process_group()


def train(options: argparse.Namespace) -> None:
    rank, count = dist.get_rank(), dist.get_world_size()
    made = (Stages if options.mode == "pp" else Replicas)(options.mode, rank, count)
    optimizer = torch.optim.AdamW(made.net.parameters(), lr=1e-3)
    out = options.out / options.mode
    begin, losses = load(out, made.net, optimizer)
    for number in range(begin, options.steps):
        loss = made.step(number)
        if (
            number == options.die_at
            and rank == count - 1
            and os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") == "0"
        ):
            os.kill(os.getpid(), signal.SIGKILL)
        optimizer.step()
        optimizer.zero_grad()
        dist.all_reduce(loss)
        losses.append(loss.item() / count)
        if (number + 1) % options.save_every == 0 or number + 1 == options.steps:
            save(out, number + 1, losses, made.net, optimizer)
            if rank == 0:
                print(f"{options.mode}, step {number + 1}: loss {losses[-1]:.4f}", flush=True)
    if rank == 0:
        draw(options.out)


def state_of(net: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, object]:
    model, optim = get_state_dict(net, optimizer)
    return {"model": model, "optim": optim}


def save(out: Path, step: int, losses: list[float], net: nn.Module, optimizer: object) -> None:
    """Write a checkpoint, and only then that there is one."""
    planner = TiedSavePlanner(net)
    dcp.save(state_of(net, optimizer), checkpoint_id=out / f"step-{step}", planner=planner)
    if dist.get_rank() == 0:
        (out / "losses.new").write_text(json.dumps(losses))
        (out / "losses.new").replace(out / "losses.json")
    dist.barrier()


def load(out: Path, net: nn.Module, optimizer: torch.optim.Optimizer) -> tuple[int, list[float]]:
    """Go on from the last checkpoint, if there is one: the step to begin with, and the losses.

    A checkpoint of a decoder that was tied by another rule is refused.
    """
    if not (out / "losses.json").exists():
        return 0, []
    losses = json.loads((out / "losses.json").read_text())
    state = state_of(net, optimizer)
    planner = TiedLoadPlanner(net)
    dcp.load(state, checkpoint_id=out / f"step-{len(losses)}", planner=planner)
    set_state_dict(net, optimizer, model_state_dict=state["model"], optim_state_dict=state["optim"])
    return len(losses), losses


def draw(out: Path) -> None:
    """Draw the losses of all modes that have run."""
    try:
        from matplotlib import pyplot
    except ModuleNotFoundError:
        return
    _, axes = pyplot.subplots()
    for number, path in enumerate(sorted(out.glob("*/losses.json"))):
        style = ["-", "--", "-.", ":"][number % 4]
        axes.plot(json.loads(path.read_text()), style, linewidth=4 - number, label=path.parent.name)
    axes.set_xlabel("step")
    axes.set_ylabel("loss")
    axes.legend()
    pyplot.savefig(out / "losses.png")


if __name__ == "__main__":
    main()
