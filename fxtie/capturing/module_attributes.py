"""Attributes of modules and stored tensors in a trace.

In: a module of the region and a name. Out: a plain attribute or a child, guarded; a stored tensor,
read once; a derived tensor, derived once.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from fxtie.capturing.reads import TensorReads
from fxtie.tied.region import GRAPH_MODULE_NAMES, OUTSIDE
from fxtie.tracing.attributes import is_data_descriptor
from fxtie.tracing.evaluator import Evaluator
from fxtie.tracing.guards import MISSING
from fxtie.tracing.recorder import CONTAINERS
from fxtie.tracing.stops import Stop
from fxtie.tracing.traced import Traced
from fxtie.tracing.user_class import derived_of, user_class
from fxtie.words import free_name, join


class ModuleAttributes(Evaluator):
    """Reads of modules in one region.

    Attributes:
        root: the root of the region.
        training: what every `training` flag is taken to be.
        switches: modules whose `training` flag was asked for.
        paths: the modules of the region, with their names.
        reads: how stored tensors are read and derived ones made.
    """

    root: nn.Module
    training: bool
    switches: dict[nn.Module, None]
    paths: dict[nn.Module, str]
    reads: TensorReads
    borrowed: dict[str, Any]
    _placed: dict[nn.Module, None]  # modules whose place is guarded
    _seen: dict[nn.Module, tuple[str, Any, Mapping[str, Any]]]  # those whose attributes were read

    # -- attributes of modules ------------------------------------------------------------------

    def module_attribute(self, module: nn.Module, name: str) -> Any:
        if name == "training":
            return self._flag(module)
        path, cls, derived = self._seen.get(module) or self._see(module)
        if name in derived:
            return self.reads.derive(derived[name])
        found = self.lookup(cls.__mro__, name)
        if is_data_descriptor(found):
            return self._bound(found, module, name)
        members = module.__dict__
        label = join(path, name)
        if name in members:
            return self._member(module, name, members[name], label)
        self._guard_entry(module, "__dict__", name, MISSING)
        if found is not MISSING:
            return self._bound(found, module, name)
        if name in GRAPH_MODULE_NAMES:
            raise Stop(f"asks for .{name}, which it would have as a torch.fx.GraphModule")
        if self.lookup(cls.__mro__, "__getattr__") is not nn.Module.__getattr__:
            return self._computed("__getattr__", module, name)
        return self.registered_attribute(module, name)

    def registered_attribute(self, module: nn.Module, name: str) -> Any:
        path, _, _ = self._seen.get(module) or self._see(module)
        label = join(path, name)
        # A name is in one of these only: nn.Module sees to that.
        kinds = ("_parameters", "_buffers", "_modules")
        for mapping in kinds:
            entries = module.__dict__.get(mapping, {})
            if name in entries:
                return self._registered(module, mapping, name, entries[name], label)
        self.may_have_changed(module)
        for mapping in kinds:
            self._guard_entry(module, mapping, name, MISSING)
        return MISSING

    def _see(self, module: nn.Module) -> tuple[str, Any, Mapping[str, Any]]:
        """A module's path, "" if the code has made it, its class and its derived tensors.

        Place and class are guarded.
        """
        cls = user_class(module)
        if self.lookup(cls.__mro__, "__getattribute__") is not object.__getattribute__:
            raise Stop("has a __getattribute__ of its own")
        path = "" if self.is_fresh(module) else self.path(module)
        self.class_of(module, path or "the root")
        self._seen[module] = path, cls, derived_of(module)
        return self._seen[module]

    def _guard_entry(self, module: nn.Module, mapping: str, name: str, value: Any) -> None:
        if not self.is_fresh(module):
            self.guard("entry", module, mapping, name, value, self.paths[module])

    def _flag(self, module: nn.Module) -> bool:
        if self.lookup(user_class(module).__mro__, "training") is not MISSING:
            raise Stop("has a `training` flag of its own")
        if self.is_fresh(module):
            return module.training
        self.path(module)
        self.may_have_changed(module)
        self.switches[module] = None
        return self.training

    def _member(self, module: nn.Module, name: str, value: Any, label: str) -> Any:
        """A plain attribute of a module."""
        if name in ("_fxtie", "_parameters", "_buffers"):
            raise Stop(f"reads .{name}")
        if self.is_fresh(module):
            return self.fresh(value) if name == "_modules" else self.taken(value)
        if isinstance(value, torch.Tensor) and id(value) not in self.reads.stored:
            self.guard("is_tensor", module, "__dict__", name, label)
            return self.reads.read(module, name, join(self.paths[module], name), value, label)
        if name != "_modules":
            self.may_have_changed(module)
        self._guard_entry(module, "__dict__", name, value)
        if type(value) in CONTAINERS:
            self.labels[id(value)] = label
        return self.taken(value, module)

    def _registered(
        self, module: nn.Module, mapping: str, name: str, value: Any, label: str
    ) -> Any:
        """A parameter, a buffer or a child of a module."""
        if isinstance(value, torch.Tensor):
            if self.is_fresh(module):
                raise Stop("makes a module that has tensors")
            return self.reads.read(module, name, label, value, label)
        if value is None:
            self.may_have_changed(module)
        self._guard_entry(module, mapping, name, value)
        return value

    def path(self, module: nn.Module) -> str:
        """The name by which the graph refers to a module, guarded: it may have others."""
        if module not in self.paths:
            raise Stop(f"uses a module that is no registered part of it ({type(module).__name__})")
        if module not in self._placed:
            parent: Any = self.root
            for part in filter(None, self.paths[module].split(".")):
                child = parent._modules[part]
                if child not in self._placed:
                    self.guard("entry", parent, "_modules", part, child, self.paths[parent])
                    self._placed[child] = None
                parent = child
        return self.paths[module]

    # -- tensors --------------------------------------------------------------------------------

    def tensor(self, tensor: torch.Tensor) -> Traced:
        if id(tensor) in self.reads.stored:  # found in a list of the user's, say
            owner, mapping, attr = self.reads.stored[id(tensor)]
            self._guard_entry(owner, mapping, attr, tensor)
            label = join(self.paths[owner], attr)
            return self.reads.read(owner, attr, label, tensor, label)
        if isinstance(tensor, nn.Parameter):
            raise Stop("uses a parameter that is not part of it")
        name = next((n for n, known in self.borrowed.items() if known is tensor), None)
        if name is None:
            # A deepcopy shares those that are no part of the model.
            kind = OUTSIDE if id(tensor) in self._outside else "_tensor"
            name = free_name(kind, {*self.borrowed, *self.root.__dict__})
            self.borrowed[name] = tensor
        return self.reads.read(self.root, name, name, tensor, name)
