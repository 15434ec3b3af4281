"""Plan + model -> tied model: copies, derived attributes, and graphs of the forwards.

In: a checked `Plan` and the model. Out: the tied model.

First the model is copied along the paths to its targets and the targets' tensors become derived
attributes. This is a correct tied model already. Then the root's forward is traced, opening only
the modules on these paths, so that the graph holds the derivations. A module whose forward can't
be traced is *kept*: rolled back to one opaque call, and what is inside it is captured by itself.
"""

from __future__ import annotations

import itertools
import logging
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import fx, nn

from fxtie.capturing.module_tracer import ModuleTracer
from fxtie.capturing.reach import Reached
from fxtie.capturing.report import Kept, Report
from fxtie.errors import FxtieError, PlanError
from fxtie.foreign import foreign_classes
from fxtie.planning.names import Names, Slot
from fxtie.planning.plan import Plan
from fxtie.planning.steps import Step
from fxtie.tied.casts import share_casts
from fxtie.tied.copy_paths import copy_modules, copy_paths, leading_to, referrers
from fxtie.tied.derived import Derived, Source
from fxtie.tied.path_copy import PathCopy, become
from fxtie.tied.recompute import remember_derived
from fxtie.tied.region import Region, clashes, fill
from fxtie.tied.state import State, state_of
from fxtie.tied.tied_module import (
    KeptModule,
    TiedModule,
    Ties,
    derived_tensors,
    deriving,
    rename_derived,
)
from fxtie.tracing.graphs import same_graph
from fxtie.tracing.stops import Stop
from fxtie.transforms.parts import Part
from fxtie.words import count, join

_LOG = logging.getLogger("fxtie")


class Capture:
    """One run of the pass."""

    def __init__(self, model: nn.Module, plan: Plan, *, trace: bool, recompute: bool) -> None:
        self.plan = plan
        self.trace, self.recompute = trace, recompute
        self.model = model
        self.names = Names(model)
        self.kept: dict[str, Kept] = {}
        self.regions: list[str] = []
        self.used: set[int] = set()
        self.seen: set[nn.Module] = set()
        self.reached = Reached()

    def run(self) -> nn.Module:
        root = self.copy()
        _LOG.debug("%s: %s", type(self.model).__name__, count(len(self.plan.steps), "tie"))
        if self.trace:
            self.capture(root, "")
        else:
            self.leave_untraced(root)
        unused = [] if self.kept else [d.name for d in self.derived if id(d) not in self.used]
        state_of(root).report = Report(
            self.plan,
            tuple(self.regions),
            tuple(self.kept.values()),
            tuple(unused),
            self.earlier_plans(),
        )
        return root

    def earlier_plans(self) -> tuple[Plan, ...]:
        """The plans by which the model was tied before."""
        before: Report | None = state_of(self.model).report
        return () if before is None else (*before.earlier, before.plan)

    # -- copies with derived attributes ---------------------------------------------------------

    def copy(self) -> nn.Module:
        """The tied model, with every forward still as the user wrote it."""
        slots = [self.names.get(tie.target) for tie in self.plan.ties]
        copies = self.copy_modules([slot.owner for slot in slots])
        root = copies[self.model]
        self.register_modules(root)
        self.derived: list[Derived] = []
        uses: Counter[Any] = Counter(map(_derivation, self.plan.steps))
        uses.update(name for tie in self.plan.ties for name in {*tie.sources} - {tie.target})
        for step, slot in zip(self.plan.steps, slots, strict=True):
            owner = copies[slot.owner]
            sources = []
            for name in step.tie.sources:
                source = self.names.get(name)
                sources.append(Source(root, source.name, is_own=source.key == slot.key))
            derived = Derived(
                step.tie.target,
                owner,
                step.lowered,
                tuple(sources),
                torch.Size(step.spec.shape),
                _requires_grad(slot),
                stored=step.tie.is_self_derived,
                is_shared=uses[_derivation(step)] + uses[step.tie.target] > 1
                or isinstance(step.lowered, Part),
            )
            self.derived.append(derived)
            self.derive(owner, slot.attr, derived)
        for module in self.on_path:
            if module is root or state_of(module).derived:
                become(module, TiedModule)
        _note_what_is_read(root, {*copies.values()})
        return root

    def copy_modules(self, targets: list[nn.Module]) -> dict[nn.Module, nn.Module]:
        """Copies, by original, of what owns a target or a source, and of what leads to these."""
        read = [self.names.find(name) for tie in self.plan.ties for name in tie.sources]
        sources = {slot.owner for slot in read if isinstance(slot, Slot)}
        # Passes that rewrite layers of torch's classes, such as batch norm folding, must skip those
        # whose tensors are read elsewhere: a copy is of another class.
        of_torch = "torch.nn.modules."
        sources = {module for module in sources if type(module).__module__.startswith(of_torch)}
        parents = referrers(self.model)
        # What was tied before is captured again, as a part of the graphs that are made now.
        tied_before = deriving(self.model)
        opened = [*targets, *tied_before.values()]
        to_targets = leading_to([self.model, *opened], parents)
        copied = {**to_targets, **leading_to(sources, parents), **_changed_in_use(self.model)}
        copies = copy_modules(copied)
        for name, module in tied_before.items():  # maybe in a part that was tied by itself
            rename_derived(copies[module], name)
        self.on_path = {copies[module] for module in to_targets}
        return copies

    def check_plan(self) -> None:
        """Raise if the plan, made some time ago, is for another model or one that has changed."""
        faults = []
        for step in self.plan.steps:
            slot = self.names.get(step.tie.target)
            faults += slot.faults_as_target()
            if slot.tensor.shape != step.spec.shape:
                faults.append(
                    f"{slot.name!r} has the shape {tuple(slot.tensor.shape)}, in the plan "
                    f"{tuple(step.spec.shape)}. Plan again: fxtie.plan(model, rules)."
                )
        if faults:
            raise PlanError(faults)

    def register_modules(self, root: nn.Module) -> None:
        """Give learnable transforms and banks their place under `ties`."""
        if not self.plan.modules:
            return
        ties = Ties()
        before = root._modules.get("ties")
        if isinstance(before, Ties):  # the model was tied before
            ties._modules.update(before._modules)
        elif hasattr(root, "ties"):
            raise FxtieError(
                "The model has an attribute 'ties', which is where fxtie registers learnable "
                "transforms. Rename it."
            )
        root._modules["ties"] = ties
        self.on_path.add(ties)
        for name, module in self.plan.modules.items():
            ties._modules[name] = module
            self.names.add_module(f"ties.{name}", module)

    @staticmethod
    def derive(owner: nn.Module, attr: str, derived: Derived) -> None:
        """Replace a stored tensor of a path copy by a derived attribute."""
        members = owner.__dict__
        state: State = members.setdefault("_fxtie", State())
        # `materialize` restores this order.
        if not state.derived:
            state.order = (tuple(owner._parameters), tuple(owner._buffers))
        state.derived[attr] = derived
        if derived.stored:
            return
        dropped = (owner._parameters.pop(attr, None), owner._buffers.pop(attr, None))
        for name, value in members.items():
            # The model's code may keep the tensor in a list, and must not find the old one there.
            if type(value) is list and any(v is d for v in value for d in dropped if d is not None):
                members[name] = [None if any(v is d for d in dropped) else v for v in value]

    def leave_untraced(self, root: nn.Module) -> None:
        """Leave all forwards as they are."""
        for module in self.on_path:
            if _has_forward(module):
                become(module, KeptModule)

    # -- graphs ---------------------------------------------------------------------------------

    def capture(self, module: nn.Module, name: str) -> None:
        """Make a path copy a region, or keep it and go on with what is inside."""
        if module in self.seen:
            return
        self.seen.add(module)
        if _has_forward(module):
            _LOG.debug("trace %s", name or "the root")
            try:
                kept_inside = self.make_region(module, name)
            except Stop as stop:
                become(module, KeptModule)
                self.kept[name] = Kept.because(name, module, stop)
                _LOG.debug("keep %s", self.kept[name])
            else:
                _LOG.debug("made a graph of %s", name or "the root")
                self.regions.append(name)
                for inner_name, inner in kept_inside.items():
                    self.descend(inner, join(name, inner_name))
                return
        self.descend(module, name)

    def descend(self, module: nn.Module, name: str) -> None:
        for child_name, child in module.named_children():
            if child in self.on_path:
                self.capture(child, join(name, child_name))

    def make_region(self, module: nn.Module, name: str) -> dict[str, nn.Module]:
        """Capture a module's forward in both modes. Returns the modules kept inside it."""
        if names := clashes(module):
            raise Stop(
                f"has members that torch.fx.GraphModule needs for itself ({', '.join(names)})"
            )
        borrowed: dict[str, Any] = {}
        train = ModuleTracer(module, True, self.on_path, borrowed, self.reached)
        evaluate = train
        if train.switches:
            evaluate = ModuleTracer(module, False, self.on_path, borrowed, self.reached)
        self.become_region(module, train, evaluate, borrowed)
        for inner in {**train.inlined, **evaluate.inlined}:
            if not isinstance(inner, PathCopy):
                become(inner, PathCopy)
        kept_inside = {}
        for tracer in (train, evaluate):
            self.used |= tracer.reads.used
            for inner_name, kept in tracer.kept.items():
                kept_inside[inner_name] = inner = module.get_submodule(inner_name)
                if not isinstance(inner, Region):  # as a part of another kept module, say
                    become(inner, KeptModule)
                full = join(name, inner_name)
                if full not in self.kept:
                    self.kept[full] = replace(kept, name=full)
                    _LOG.debug("keep %s", self.kept[full])
        return kept_inside

    def become_region(
        self,
        module: nn.Module,
        train: ModuleTracer,
        evaluate: ModuleTracer,
        borrowed: dict[str, Any],
    ) -> None:
        """Give a module the graphs that were traced in its two modes, or one if they are equal."""
        if is_one := same_graph(train.graph, evaluate.graph):
            train.facts += evaluate.facts
        variants = {True: train.variant, False: evaluate.variant}
        if is_one:
            variants[False] = variants[True]
        for graph in {variant.graph for variant in variants.values()}:
            if self.recompute:
                remember_derived(graph)
            share_casts(graph)
        switches = (*{**train.switches, **evaluate.switches},)
        if is_one and len(switches) < 2:
            switches = ()  # only one module has modes, and they agree
        arguments = {node.target for node in train.graph.find_nodes(op="placeholder")}
        if reserved := sorted(_RESERVED.intersection(arguments)):
            raise Stop(f"has an argument that generated code needs itself ({', '.join(reserved)})")
        before = dict(module.__dict__)
        become(module, Region)
        assert isinstance(module, Region)
        try:
            fill(module, variants, switches, borrowed, self.recompute)
        # Names that Python's grammar doesn't allow where torch.fx writes them, keywords above all.
        except SyntaxError as error:
            module.__dict__.clear()
            module.__dict__.update(before)
            become(module, TiedModule)
            raise Stop(f"has names that generated code can't have ({error})") from error


def untied_graphs(model: nn.Module, result: nn.Module) -> Iterator[tuple[str, fx.Graph, fx.Graph]]:
    """For each region of a tied model: its name, its graph untied, and its graph.

    The untied graph is traced in the same way, with the targets left as opaque calls.
    """
    report: Report = state_of(result).report
    names = Names(model)
    owners = [slot.owner for name in report.targets if isinstance(slot := names.find(name), Slot)]
    tied_before = deriving(model).values()
    copies = copy_paths(model, [*owners, *tied_before])
    for module in tied_before:
        become(copies[module], TiedModule)
    opened = set(copies.values()) - {copies[owner] for owner in owners}
    for name in report.region_names:
        module, region = copies[model].get_submodule(name), result.get_submodule(name)
        assert isinstance(region, Region)
        try:
            tracer = ModuleTracer(module, region.training, opened | {module}, {})
        except Stop as stop:
            raise FxtieError(f"{name or 'The root'} can't be captured untied: it {stop}.") from stop
        yield name, tracer.graph, region.graph


# Names that generated code uses.
_RESERVED = frozenset({"torch", "device", "inf", "nan", "self", "slice", "getattr"})


def _changed_in_use(model: nn.Module) -> dict[nn.Module, None]:
    """Modules that their library changes when the model is used: it hooks or replaces them."""
    modules = list(model.modules())
    classes = foreign_classes(modules)
    whole = (module.modules() for module in modules if type(module) in classes)
    inside = itertools.chain.from_iterable(whole)
    return {module: None for module in inside if not isinstance(module, torch.jit.ScriptModule)}


def _note_what_is_read(root: nn.Module, copies: set[nn.Module]) -> None:
    """Let the copies that own sources know of it, and their parents see what replaces them."""
    sources = [s for _, _, derived in derived_tensors(root) for s in derived.sources]
    for source in sources:
        if source.is_own or (owner := source.owner) not in copies:
            continue
        for module in (owner, *(parent for parent, _, child in source.steps() if child is owner)):
            if not isinstance(module, PathCopy):
                become(module, PathCopy)
        state_of(owner).read[source.attr] = source.name


def _derivation(step: Step) -> tuple[Any, ...]:
    """Equal for steps that compute the same."""
    return id(step.lowered), step.tie.sources


def _requires_grad(slot: Slot) -> bool | None:
    parameter = slot.owner._parameters.get(slot.attr)
    return None if parameter is None else parameter.requires_grad


def _has_forward(module: nn.Module) -> bool:
    return type(module).forward is not nn.Module.forward
