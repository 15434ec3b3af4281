"""The tied model at run time: derived tensors as attributes, captured forwards as methods.

In: copies of the modules on the way to a target (`copying.py`) and graphs of their forwards
(`capture.py`). Out: modules of the user's own class which read derived tensors where the original
reads stored ones. Two mechanisms make all of it:

* `TiedModule`: reading the attribute of a dropped tensor computes it. A model made of these alone
  is right, whatever its forwards do, with no graph at all.
* `Region`: a `TiedModule` that is a `torch.fx.GraphModule` as well. Its forward is generated from a
  graph in which the derivations stand inline. Calls that the graph was not captured for (another
  mix of training flags, an optional argument that is given) run the class's own forward, which is
  right by the first mechanism.
"""

from __future__ import annotations

import copy
import types
import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import fx, nn

from fxtie.errors import FxtieError
from fxtie.graphs import graph_from_records, graph_to_records


@dataclass(frozen=True, eq=False)
class Source:
    """A tensor to read at call time: an attribute of the module that owns it.

    The module is referred to, not the tensor: that survives `.to()`, `to_empty()`,
    `load_state_dict(assign=True)`, deepcopy and pickling.
    """

    owner: nn.Module
    attr: str
    name: str


@dataclass(frozen=True, eq=False)
class Derived:
    """How a target tensor is computed.

    Attributes:
        name: the target's tensor name in the whole model.
        transform: callable on the source tensors (lowered), or a learnable module.
        sources: what it gets.
        shape: the shape it gives.
        stored: the target's own stored value is the source (a self-derived tensor).
    """

    name: str
    transform: Callable[..., torch.Tensor]
    sources: tuple[Source, ...]
    shape: torch.Size
    stored: bool = False

    def compute(self) -> torch.Tensor:
        return self.transform(*map(self.read, self.sources))

    def read(self, source: Source) -> Any:
        owner = Stored(source.owner) if self.stored else source.owner
        return getattr(owner, source.attr)


class Stored:
    """A module's stored tensors, read past its derived attributes."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module

    def __getattr__(self, name: str) -> Any:
        return nn.Module.__getattr__(self.module, name)


reader: Callable[[Derived], Any] = Derived.compute
"""How derived attributes are read. A capture sets its own, which records nodes, while it traces."""


class TiedModule(nn.Module):
    """A module of the user's class, some of whose tensors are derived.

    Promises: `isinstance` with the user's class holds; derived tensors are read as attributes under
    their old names; they are neither parameters nor buffers, and have no key in the state_dict;
    a checkpoint that has keys for them loads.
    """

    _fxtie_class: ClassVar[type[nn.Module]]
    _fxtie_derived: Mapping[str, Derived] = types.MappingProxyType({})

    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        # `self.__class__(...)`, as in the slicing of nn.Sequential, makes one of the user's class.
        return cls._fxtie_class(*args, **kwargs)

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Classes made here are none of the user's: keep them out of the user's registries."""

    @property
    def _stored(self) -> Stored:
        """By which graphs refer to the stored value of a self-derived tensor."""
        return Stored(self)

    def __getattr__(self, name: str) -> Any:
        derived = self._fxtie_derived.get(name)
        if derived is None:
            return super().__getattr__(name)
        return reader(derived)

    def __setattr__(self, name: str, value: Any) -> None:
        derived = self._fxtie_derived.get(name)
        if derived is not None and not derived.stored:
            raise FxtieError(
                f"{derived.name!r} is derived and cannot be set. Set its sources, or make a plain "
                f"model of it first (fxtie.materialize)."
            )
        super().__setattr__(name, value)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        for name, derived in self._fxtie_derived.items():
            if not derived.stored:  # a checkpoint of the untied model has keys for these
                state_dict.pop(prefix + name, None)
        super()._load_from_state_dict(state_dict, prefix, *args)

    def __reduce_ex__(self, protocol: Any) -> Any:
        return _new_like, (type(self)._fxtie_class, isinstance(self, Region)), self.__getstate__()

    def __getstate__(self) -> dict[str, Any]:
        users = getattr(super(), "__getstate__", None)  # object has one from Python 3.11 on
        state = dict(users() if users else self.__dict__)
        for name, value in state.items():
            if type(value) is list and any(map(_is_computed, value)):
                # nn.LSTM lists its weights, derived ones too, and does so again when they change.
                state[name] = [torch.empty(0) if _is_computed(v) else v for v in value]
        return state

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        new = _new_like(type(self)._fxtie_class, isinstance(self, Region))
        memo[id(self)] = new
        new.__setstate__(copy.deepcopy(self.__getstate__(), memo))
        return new

    def __copy__(self) -> Any:
        new = _new_like(type(self)._fxtie_class, isinstance(self, Region))
        new.__setstate__(self.__getstate__())
        return new


class Ties(nn.Module):
    """What a tied model has more than the original: learnable transforms and banks, by name."""

    def forward(self, x: Any) -> Any:
        """Hand on the input: the forward of an nn.Sequential calls every child that it has."""
        return x


def _is_computed(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and not value.is_leaf


@dataclass
class Variant:
    """One captured forward.

    Attributes:
        graph: the graph.
        defaults: arguments for which the trace took their default values.
        tensors: arguments which the trace took for tensors because the code asked.
        forward: the function generated from the graph.
        code: its source text.
    """

    graph: fx.Graph
    defaults: dict[str, Any] = field(default_factory=dict)
    tensors: frozenset[str] = frozenset()
    forward: Callable[..., Any] | None = None
    code: str = ""

    def accepts(self, arguments: Mapping[str, Any]) -> bool:
        """Whether the trace holds for these arguments."""
        for name, value in arguments.items():
            if name in self.defaults:
                default = self.defaults[name]
                same = value is default
                if not same and not isinstance(value, torch.Tensor):
                    same = type(value) is type(default) and bool(value == default)
                if not same:
                    return False
            elif value is None or (name in self.tensors and not isinstance(value, torch.Tensor)):
                return False
        return True


class Region(TiedModule, fx.GraphModule):
    """A tied module whose forward was captured as a graph, for training and for evaluation.

    `graph` and `code` are those of the current mode. Where both modes have one graph, there is one
    `Variant` under both keys. `_fxtie_switches` are the modules whose `training` flag the code
    asked for, `_fxtie_arguments` the names of the forward's arguments.
    """

    _fxtie_variants: dict[bool, Variant]
    _fxtie_switches: tuple[nn.Module, ...]
    _fxtie_arguments: tuple[str, ...]
    _fxtie_compiling: Variant | None = None

    def _fxtie_become(
        self,
        variants: dict[bool, Variant],
        switches: tuple[nn.Module, ...],
        arguments: tuple[str, ...],
    ) -> None:
        """Turn a path copy, in place, into a region."""
        self._fxtie_variants = variants
        self._fxtie_switches = switches
        self._fxtie_arguments = arguments
        # What torch.fx expects of every GraphModule.
        self.meta: dict[str, Any] = {}
        self._tracer_cls = None
        self._tracer_extras: dict[str, Any] = {}
        self._replace_hooks: list[Any] = []
        self._create_node_hooks: list[Any] = []
        self._erase_node_hooks: list[Any] = []
        self._deepcopy_hooks: list[Any] = []
        self.shape_env = None
        self.recompile()

    @property
    def _fxtie_variant(self) -> Variant:
        return self._fxtie_compiling or self._fxtie_variants[self.training]

    # torch.fx reads and writes these two; they belong to the variant of the current mode.
    @property
    def _graph(self) -> fx.Graph:
        return self._fxtie_variant.graph

    @_graph.setter
    def _graph(self, graph: fx.Graph) -> None:
        self._fxtie_variant.graph = graph

    @property
    def _code(self) -> str:
        return self._fxtie_variant.code

    @_code.setter
    def _code(self, code: str) -> None:
        self._fxtie_variant.code = code

    def recompile(self) -> Any:
        """Generate the forwards again, after an edit of `graph`."""
        result = None
        variants = {id(variant): variant for variant in self._fxtie_variants.values()}
        for variant in variants.values():
            variant.graph.owning_module = self
            self.__dict__["_fxtie_compiling"] = variant
            try:
                code = super().recompile()
            finally:
                del self.__dict__["_fxtie_compiling"]
            variant.forward = vars(type(self))["forward"]
            if variant is self._fxtie_variant:
                result = code
        if not self._fxtie_is_plain():
            type(self).forward = _dispatch(type(self)._fxtie_class.forward)
        return result

    def _fxtie_is_plain(self) -> bool:
        """Whether one graph serves every call, so that its forward needs no dispatch."""
        train, evaluate = self._fxtie_variants[True], self._fxtie_variants[False]
        return (
            train is evaluate
            and not self._fxtie_switches
            and not train.tensors
            and len(self._fxtie_arguments) <= 1
        )

    def _fxtie_select(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Variant | None:
        """The variant that was captured for such a call, if any."""
        training = self.training
        for module in self._fxtie_switches:
            if module.training is not training:
                return None
        variant = self._fxtie_variants[training]
        arguments = {**dict(zip(self._fxtie_arguments, args, strict=False)), **kwargs}
        return variant if variant.accepts(arguments) else None

    def __getstate__(self) -> dict[str, Any]:
        state = super().__getstate__()
        for name in ("_lineno_map", "_prologue_start", "_in_spec", "_out_spec"):
            state.pop(name, None)
        train, evaluate = self._fxtie_variants[True], self._fxtie_variants[False]
        state["_fxtie_variants"] = [
            (graph_to_records(variant.graph), variant.defaults, variant.tensors)
            for variant in ((train,) if train is evaluate else (train, evaluate))
        ]
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        state = dict(state)
        variants = [
            Variant(graph_from_records(records), defaults, tensors)
            for records, defaults, tensors in state["_fxtie_variants"]
        ]
        state["_fxtie_variants"] = {True: variants[0], False: variants[-1]}
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        self.recompile()


def _dispatch(user_forward: Callable[..., Any]) -> Callable[..., Any]:
    """A forward that runs the variant captured for the call, else the user's own code."""

    def forward(self: Region, *args: Any, **kwargs: Any) -> Any:
        variant = self._fxtie_select(args, kwargs)
        if variant is None:
            return user_forward(self, *args, **kwargs)
        assert variant.forward is not None
        return variant.forward(self, *args, **kwargs)

    forward.__wrapped__ = user_forward  # type: ignore[attr-defined]  # its signature
    return forward


_tied_classes: weakref.WeakKeyDictionary[type, type[TiedModule]] = weakref.WeakKeyDictionary()


def user_class(module: nn.Module) -> type[nn.Module]:
    """The class that the user wrote: for a tied module, that of the original."""
    return type(module)._fxtie_class if isinstance(module, TiedModule) else type(module)


def tied_class(cls: type[nn.Module]) -> type[TiedModule]:
    """The class of tied modules of the user's class."""
    if cls not in _tied_classes:
        _tied_classes[cls] = _subclass(TiedModule, cls)
    return _tied_classes[cls]


def region_class(cls: type[nn.Module]) -> type[Region]:
    """A class for one region: its forward is its own."""
    created: type[Region] = _subclass(Region, cls)
    return created


def _subclass(base: type, cls: type[nn.Module]) -> Any:
    bases = (base,) if cls is nn.Module else (base, cls)
    namespace = {
        "__module__": cls.__module__,
        "__qualname__": cls.__qualname__,
        "__doc__": cls.__doc__,
        "_fxtie_class": cls,
    }
    return types.new_class(cls.__name__, bases, exec_body=lambda body: body.update(namespace))


def _new_like(cls: type[nn.Module], is_region: bool) -> Any:
    return object.__new__(region_class(cls) if is_region else tied_class(cls))


def clashes(module: nn.Module) -> list[str]:
    """Names that a user's module has and torch.fx.GraphModule needs for itself."""
    cls = user_class(module)
    taken = set(vars(fx.GraphModule)) - set(vars(nn.Module)) - {"__module__", "__doc__"}
    taken = {name for name in taken if not name.startswith("__")} | {"meta"}
    if issubclass(cls, fx.GraphModule):
        return []
    used = {*module.__dict__, *module._modules, *module._parameters, *module._buffers}
    used |= {name for base in cls.__mro__ if base is not nn.Module for name in vars(base)}
    return sorted(taken & used)
