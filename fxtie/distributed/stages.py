"""Ties that cross the stages of a pipeline.

Stages of a tied model, each without the layers of the others, get copies of the sources they lack.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import fields, replace
from typing import Any, NamedTuple

import torch
from torch import distributed, nn

from fxtie.errors import FxtieError
from fxtie.tied.derived import Source
from fxtie.tied.path_copy import become
from fxtie.tied.region import Region
from fxtie.tied.state import State, state_of
from fxtie.tied.tied_module import KeptModule, Ties, derived_tensors
from fxtie.transforms.parts import module_of


def share_across_stages(
    stages: nn.Module | Sequence[nn.Module], group: distributed.ProcessGroup | None = None
) -> SharedSources:
    """Let the stages of a pipeline derive tensors from sources on other stages.

    Cut a tied model as torch has it
    (https://docs.pytorch.org/docs/stable/distributed.pipelining.html): each process deletes the
    layers that it does not run. Each stage gets a copy of each source that it reads and does not
    have, below `ties.shared`. Or let torch's `pipeline()` cut it, which gives each stage what it
    reads. All processes of the group have to call this, before they make their optimizers.
    Parameters that several stages have under one name count as copies.

    Args:
        stages: the stages that this process runs, one or several: tied models, or what
            `get_stage_module` of a pipe gives.
        group: the processes of the pipeline; the default is all.

    Returns:
        What keeps the copies equal: call its `reduce_gradients` after each backward and before the
        optimizer's step.

    Raises:
        FxtieError: if no stage has a source, naming it and what is derived from it. A stage that
            `pipeline()` has cut has all of them.

    Notes:
        * Graphs are of the whole model: the stages run their forwards as written.
        * A copy has a key in the stage's state_dict, and is a parameter of its own to an optimizer.

    Example:
        >>> import fxtie, torch
        >>> from fxtie.distributed import share_across_stages
        >>> def main(rank):  # on each process
        ...     tied = fxtie.transform(model, rules)
        ...     del tied.layers[str(1 - rank)]
        ...     shared = share_across_stages(tied)
        ...     schedule = ScheduleGPipe(PipelineStage(tied, rank, 2, device), 4, loss_fn=loss)
        ...     optimizer = torch.optim.AdamW(tied.parameters())
        ...     schedule.step(x)
        ...     shared.reduce_gradients()
        ...     shared.clip_grad_norm_(1.0)
        ...     optimizer.step()
    """
    local = [stages] if isinstance(stages, nn.Module) else list(stages)
    for stage in local:
        _drop_graphs(stage)
        _drop_unused(stage)
    reads = [read for stage in local for read in _reads_of_others(stage)]
    here: dict[str, dict[nn.Parameter, None]] = {}
    for stage in local:
        for name, parameter in stage.named_parameters():
            here.setdefault(name, {})[parameter] = None
    wanted = {read.source.name: read.target for read in reads}
    known = {name: _Known.of([*parameters]) for name, parameters in here.items()}
    everyone: list[Any] = [None] * distributed.get_world_size(group)
    distributed.all_gather_object(everyone, (wanted, known), group)
    ranks = _ranks(everyone)  # raises on all of them, or on none
    for read in reads:
        name = read.source.name
        if (copied := read.copy(everyone[ranks[name][0]][1][name])) is not None:
            here.setdefault(name, {})[copied] = None
    groups: dict[tuple[int, ...], distributed.ProcessGroup] = {}
    copies = [_Copies([*here[name]], ranks[name], group, groups) for name in ranks if name in here]
    return SharedSources(copies, local, group)


class _Known(NamedTuple):
    """What others are told of a parameter."""

    shape: torch.Size
    dtype: torch.dtype
    requires_grad: bool
    is_shared: bool  # whether several stages of one process have it

    @classmethod
    def of(cls, parameters: list[nn.Parameter]) -> _Known:
        first = parameters[0]
        return cls(first.shape, first.dtype, first.requires_grad, len(parameters) > 1)


def _ranks(everyone: Sequence[tuple[dict[str, str], dict[str, _Known]]]) -> dict[str, list[int]]:
    """The processes that have each parameter that is shared, the owner first.

    `everyone` is, of each process, the sources that it reads and lacks, with what is derived from
    them, and the parameters that it has.
    """
    has: dict[str, list[int]] = {}
    for rank, (_, known) in enumerate(everyone):
        for name in known:
            has.setdefault(name, []).append(rank)
    shared = {n: [*r] for n, r in has.items() if len(r) > 1 or everyone[r[0]][1][n].is_shared}
    for rank, (wanted, _) in enumerate(everyone):
        for name, target in sorted(wanted.items()):
            if name not in has:
                raise FxtieError(
                    f"{target!r} is derived from {name!r}, which no stage stores. Keep its layer "
                    f"on one of the stages; if it is derived itself, derive {target!r} from its "
                    f"sources directly."
                )
            ranks = shared.setdefault(name, [*has[name]])
            if rank not in ranks:
                ranks.append(rank)
    return dict(sorted(shared.items()))


class SharedSources:
    """The sources that several processes of a pipeline have."""

    def __init__(
        self,
        copies: Sequence[_Copies],
        stages: Sequence[nn.Module],
        group: distributed.ProcessGroup | None,
    ) -> None:
        self._copies, self._stages, self._group = copies, stages, group

    def reduce_gradients(self) -> None:
        """Give each source and its copies the sum of their gradients."""
        for copies in self._copies:
            copies.reduce_gradient()

    def clip_grad_norm_(self, max_norm: float) -> torch.Tensor:
        """Clip the gradients of the whole pipeline by their norm, which has each source once.

        Call it on all processes, after `reduce_gradients`.

        Args:
            max_norm: the largest Euclidean norm that is left as it is.

        Returns:
            The norm before.
        """
        again = {id(p) for copies in self._copies for p in copies.again}
        parameters = [p for stage in self._stages for p in stage.parameters()]
        once = [p.grad for p in parameters if p.grad is not None and id(p) not in again]
        total = nn.utils.get_total_norm(once) ** 2
        distributed.all_reduce(total, group=self._group)
        nn.utils.clip_grads_with_norm_(parameters, max_norm, total.sqrt())
        return total.sqrt()


class _Copies:
    """A source that several stages have, each its own."""

    def __init__(
        self,
        parameters: list[nn.Parameter],  # those of this process
        ranks: list[int],  # of the processes that have one, the owner's first
        group: distributed.ProcessGroup | None,  # the processes of the pipeline
        groups: dict[tuple[int, ...], distributed.ProcessGroup],  # of some of them, by rank
    ) -> None:
        self._parameters = parameters
        # Those that are counted elsewhere.
        self.again = parameters[1:] if distributed.get_rank(group) == ranks[0] else parameters
        in_world = [distributed.get_global_rank(group, r) if group else r for r in ranks]
        if (key := tuple(sorted(in_world))) not in groups:
            groups[key] = distributed.new_group([*key], use_local_synchronization=True)
        self._group = groups[key]
        distributed.broadcast(parameters[0].data, in_world[0], self._group)
        for parameter in parameters[1:]:
            parameter.data.copy_(parameters[0].data)

    def reduce_gradient(self) -> None:
        if not self._parameters[0].requires_grad:
            return
        total = torch.zeros_like(self._parameters[0])
        for parameter in self._parameters:
            if parameter.grad is not None:
                total += parameter.grad
        distributed.all_reduce(total, group=self._group)
        for parameter in self._parameters:
            parameter.grad = total.clone()


class _Read(NamedTuple):
    """A source of a derived tensor that is not on the tensor's stage."""

    stage: nn.Module
    owner: nn.Module
    attr: str
    source: Source

    @property
    def target(self) -> str:
        return state_of(self.owner).derived[self.attr].name

    def copy(self, known: _Known) -> nn.Parameter | None:
        """Read a copy of the source from now on. Returns it if the stage had none."""
        ties = self.stage._modules.setdefault("ties", Ties())
        assert ties is not None
        shared = ties._modules.setdefault("shared", nn.Module())
        assert shared is not None
        attr = self.source.name.replace(".", "/")
        new = Source(self.stage, f"{_SHARED}{attr}")
        derived = state_of(self.owner).derived
        found = derived[self.attr]
        sources = tuple(new if s.name == self.source.name else s for s in found.sources)
        derived[self.attr] = replace(found, sources=sources)
        if attr in shared._parameters:
            return None
        device = next((p.device for p in self.stage.parameters()), torch.device("cpu"))
        data = torch.empty(known.shape, dtype=known.dtype, device=device)
        parameter = nn.Parameter(data, known.requires_grad)
        shared.register_parameter(attr, parameter)
        return parameter


_SHARED = "ties.shared."


def original_name(name: str) -> str:
    """The name that a source has where it is not a copy."""
    return name.removeprefix(_SHARED).replace("/", ".") if name.startswith(_SHARED) else name


def _reads_of_others(stage: nn.Module) -> Iterator[_Read]:
    """The sources that a stage reads and does not have."""
    for owner in stage.modules():
        for attr, derived in state_of(owner).derived.items():
            for source in derived.sources:
                if not source.is_there:
                    yield _Read(stage, owner, attr, source)


def _drop_unused(stage: nn.Module) -> None:
    """Drop the learnable transforms and banks of other stages."""
    ties = stage._modules.get("ties")
    if not isinstance(ties, Ties):
        return
    used: set[Any] = set()
    for _, _, derived in derived_tensors(stage):
        used.add(module_of(derived.transform))
        used.update(s.name.split(".")[1] for s in derived.sources if s.name.startswith("ties."))
    for name, module in list(ties._modules.items()):
        if name not in used and module not in used:
            del ties._modules[name]


def _drop_graphs(stage: nn.Module) -> None:
    """Let all forwards run as written: their graphs are of the model before it was cut."""
    for module in list(stage.modules()):
        if isinstance(module, Region):
            state = module._fxtie
            for name in state.added:
                del module.__dict__[name]
            kept = {f.name: getattr(state, f.name) for f in fields(State) if f.name != "added"}
            module.__dict__["_fxtie"] = State(**kept)
            become(module, KeptModule)
