"""Captured forwards: a tied module that is a `torch.fx.GraphModule` as well.

In: a path copy and the graphs of its forward. Out: a module of the user's class whose forward is
generated from a graph in which the derivations stand inline.

Calls that the graph was not captured for (another mix of training flags, an optional argument that
is given) run the class's own forward on the copy, which reads derived attributes (`tied.py`).
"""

from __future__ import annotations

import functools
import traceback
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import fx, nn
from torch.compiler import is_dynamo_compiling
from torch.fx.experimental.proxy_tensor import get_proxy_mode
from torch.fx.graph import PythonCode

from fxtie import _torch
from fxtie.errors import Outdated
from fxtie.tied.call_cache import current_call, is_worth_it, value_of
from fxtie.tied.path_copy import become, user_forward
from fxtie.tied.recompute import recomputing
from fxtie.tied.tied_module import TiedModule, derived_tensors
from fxtie.tied.variant import Signature, Variant
from fxtie.tracing.graphs import graph_from_records, graph_to_records
from fxtie.tracing.user_class import user_class


class Region(TiedModule, fx.GraphModule):
    """A tied module whose forward was captured as a graph, for training and for evaluation.

    `graph` and `code` are those of the current mode. Where both modes have one graph, there is one
    `Variant` under both keys. `_fxtie_switches` are the modules whose `training` flag the code
    asked for, `_fxtie_arguments` the names of the forward's arguments. `_fxtie_recomputes` tells
    whether derived tensors are to be computed again in the backward pass, `_fxtie_is_edited`
    whether the user has changed a graph, `_fxtie_missed` how many calls the graph did not hold for,
    and why the last one.

    Regions of one class compute the same, as far as that lies in their graphs: by its class
    `torch.func.stack_module_state` tells like models.
    """

    _fxtie_variants: dict[bool, Variant]
    _fxtie_switches: tuple[nn.Module, ...]
    _fxtie_arguments: tuple[str, ...]
    _fxtie_signature: Signature
    _fxtie_recomputes = False
    _fxtie_is_edited = False
    _fxtie_missed: tuple[int, str] = (0, "")

    @classmethod
    def _fxtie_namespace(cls, user_cls: type[nn.Module], contents: Any) -> dict[str, Any]:
        recomputes = contents is not None and contents[0]
        forward = _dispatch(user_cls)
        return {"forward": recomputing(forward) if recomputes else forward}

    def _fxtie_capture(
        self,
        variants: dict[bool, Variant],
        switches: tuple[nn.Module, ...],
        arguments: tuple[str, ...],
        borrowed: dict[str, Any],
        recompute: bool,
    ) -> None:
        """Take in what was captured."""
        before = set(self.__dict__)
        # Past nn.Module, which would register modules, and past a `__setattr__` of the user's.
        self.__dict__.update(
            borrowed,
            _fxtie_variants=variants,
            _fxtie_switches=switches,
            _fxtie_arguments=arguments,
            _fxtie_signature=Signature(user_class(self).forward),
            _fxtie_recomputes=recompute,
            **{name: make() for name, make in _GRAPH_MODULE_MEMBERS.items()},
        )
        self.recompile()
        for variant in variants.values():
            if variant.forward is None and variant.may_be_wrong:
                variant.generate()  # which raises then
        self.__dict__["_fxtie_added"] = tuple(set(self.__dict__) - before)

    @property
    def _fxtie_variant(self) -> Variant:
        return self._fxtie_running(self._fxtie_variants[self.training])

    # torch.fx reads and writes these; they belong to the variant of the current mode.
    @property
    def _graph(self) -> fx.Graph:
        variant = self._fxtie_variant
        if get_proxy_mode() is not None:
            return _call_graph(self)
        return variant.graph

    @_graph.setter
    def _graph(self, graph: fx.Graph) -> None:
        self._fxtie_variant.graph = graph

    def _fxtie_generate(self) -> PythonCode:
        """The code of the current mode, made now if it is needed for the first time."""
        variant = self._fxtie_variant
        if variant.generated is None:
            variant.generate()
        assert variant.generated is not None
        return variant.generated

    @property
    def _code(self) -> str:
        return self._fxtie_generate().src

    @property
    def _lineno_map(self) -> Any:
        return self._fxtie_generate()._lineno_map

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "_graph":  # past a `__setattr__` of the user's
            object.__setattr__(self, name, value)
            return
        super().__setattr__(name, value)
        if name == "training" and not torch.compiler.is_compiling():
            self._fxtie_generate()  # now, since torch.compile couldn't look through that

    def recompile(self) -> Any:
        """Generate the forward again, after an edit of `graph`; the other mode's, once it runs."""
        variants = {id(variant): variant for variant in self._fxtie_variants.values()}
        for variant in variants.values():
            running = self._fxtie_running(variant)
            running.graph.owning_module = self
            running.generated = running.forward = None
            if running is variant:
                variant.reading = None
        before = self._fxtie_contents
        contents = self._fxtie_recomputes, tuple(v.contents for v in variants.values())
        if before not in (None, contents):
            self.__dict__["_fxtie_is_edited"] = True
        become(self, Region, contents)
        return self._fxtie_generate()

    def _fxtie_miss(self, reason: str, lasts: bool) -> None:
        """Note that a guard does not hold, and warn of it once if it will not hold again."""
        count, _ = self._fxtie_missed
        self.__dict__["_fxtie_missed"] = count + 1, reason
        if lasts and not self.__dict__.get("_fxtie_warned"):
            self.__dict__["_fxtie_warned"] = True
            warnings.warn(
                f"{user_class(self).__name__}: {reason} when its graph was made. Its own forward "
                f"runs instead. Tie the model again to have a graph of what it is now.",
                Outdated,
                stacklevel=6,
            )

    def _fxtie_select(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Variant | None:
        """The variant that was captured for such a call, if any."""
        training = self.training
        for module in self._fxtie_switches:
            if module.training is not training:
                return None
        variant = self._fxtie_variants[training]
        if not self._fxtie_signature.fits(len(args), kwargs, exactly=variant.by_position):
            return None
        if variant.defaults or variant.assumed:
            # torch 2.9 compiles no `strict=False`.
            arguments = dict(zip(self._fxtie_arguments, args))  # noqa: B905
            if not variant.accepts({**arguments, **kwargs}):
                return None
        is_compiling = is_dynamo_compiling()  # of an edited graph, or an export
        if not is_compiling and (broken := variant.guards.broken()) is not None:
            self._fxtie_miss(*broken)
            return None
        return self._fxtie_running(variant)

    def _fxtie_holds(self) -> bool:
        """Whether the graph of the current mode holds, as a constant to torch.export."""
        return self._fxtie_variant.guards.broken() is None

    _fxtie_holds._dynamo_marked_constant = True  # type: ignore[attr-defined]

    # -- derived tensors that are computed elsewhere --------------------------------------------

    def _fxtie_running(self, variant: Variant) -> Variant:
        """The variant itself, or the one that reads derived tensors instead of deriving them."""
        if self._fxtie_is_edited:  # maybe a derivation
            return variant
        if "_fxtie_read_once" not in self.__dict__ and (
            current_call() is None or not any(map(is_worth_it, self._fxtie_reads.values()))
        ):
            return variant
        return variant.reading or variant.make_reading(self._fxtie_reads.keys())

    @functools.cached_property
    def _fxtie_reads(self) -> Mapping[str, Any]:
        return _Reads((derived.name, derived) for _, _, derived in derived_tensors(self))

    @property
    def _fxtie_values(self) -> Mapping[str, torch.Tensor]:
        """By which the graphs of such variants read."""
        if "_fxtie_read_once" in self.__dict__:
            values: Mapping[str, torch.Tensor] = self.__dict__["_fxtie_read_once"]()
            return values
        return self._fxtie_reads

    def _fxtie_read_from(self, values: Callable[[], Mapping[str, torch.Tensor]] | None) -> None:
        """Read derived tensors from `values`; from None on, derive them again."""
        if values is None:
            self.__dict__.pop("_fxtie_read_once", None)
            return
        self.__dict__["_fxtie_read_once"] = values
        for variant in self._fxtie_variants.values():
            self._fxtie_running(variant)  # makes it: torch.compile couldn't look through that

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        for name in self.__dict__[
            "_fxtie_added"
        ]:  # tensors from outside of the model are not copied
            value = self.__dict__.get(name)
            if isinstance(value, torch.Tensor):
                memo[id(value)] = value
        return super().__deepcopy__(memo)

    def __getstate__(self) -> dict[str, Any]:
        state = super().__getstate__()
        for name in ("_fxtie_read_once", "_fxtie_reads", "_in_spec", "_out_spec"):
            state.pop(name, None)
        state["_fxtie_variants"] = {
            mode: v.with_graph(graph_to_records(v.graph))
            for mode, v in self._fxtie_variants.items()
        }
        if self._fxtie_variants[True] is self._fxtie_variants[False]:
            state["_fxtie_variants"][False] = state["_fxtie_variants"][True]
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        state = dict(state)
        made = {
            id(v): v.with_graph(graph_from_records(v.graph))
            for v in state["_fxtie_variants"].values()
        }
        state["_fxtie_variants"] = {m: made[id(v)] for m, v in state["_fxtie_variants"].items()}
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        self.recompile()


class _Reads(dict[str, Any]):
    """Derived tensors by name, each read as its attribute is."""

    def __getitem__(self, name: str) -> Any:
        return value_of(super().__getitem__(name))


def _call_graph(region: Region) -> fx.Graph:
    """What torch.export gets to interpret: the call, with hooks and the choice of a variant.

    It passes the values of keyword arguments by position, after the others. Their names are only
    in the frame that does so.
    """
    names: tuple[str, ...] = ()
    for frame, _ in traceback.walk_stack(None):
        variables = frame.f_locals if frame.f_globals.get("__name__") == _EXPORT else {}
        if variables.get("mod") is region and "kwargs" in variables:
            names = tuple(variables["kwargs"])
            break

    def call(values: list[Any]) -> Any:
        count = len(values) - len(names)
        return region(*values[:count], **dict(zip(names, values[count:], strict=True)))

    graph = fx.Graph()
    graph.output(graph.call_function(call, (graph.placeholder("*values"),)))
    return graph


def _dispatch(user_cls: type[nn.Module]) -> Callable[..., Any]:
    """A forward that runs the variant captured for the call, else the user's own code."""

    @functools.wraps(user_cls.forward)  # for its signature
    def forward(self: Region, *args: Any, **kwargs: Any) -> Any:
        if (
            is_dynamo_compiling()
            and not self._fxtie_is_edited
            # Not is_exporting(), which is true in all compiled code in torch 2.11.
            and not (_torch.is_exporting() and self._fxtie_holds())
        ):
            # A compiler sees through derived attributes, and has guards of its own.
            return user_forward(self)(*args, **kwargs)
        variant = self._fxtie_select(args, kwargs)
        if variant is None:
            return user_forward(self)(*args, **kwargs)
        if variant.forward is None:  # its mode was set past `__setattr__`
            variant.generate()
        assert variant.forward is not None
        if not variant.has_checks:
            return variant.forward(self, *args, **kwargs)
        try:
            return variant.forward(self, *args, **kwargs)
        except AssertionError:  # the user's own code raises what it raises
            return user_forward(self)(*args, **kwargs)

    return forward


_EXPORT = "torch.export._trace"

# What torch.fx expects of every GraphModule, beside its class attributes.
_GRAPH_MODULE_MEMBERS: dict[str, Callable[[], Any]] = {
    "meta": dict,
    "_tracer_cls": lambda: None,
    "_tracer_extras": dict,
    "_replace_hooks": list,
    "_create_node_hooks": list,
    "_erase_node_hooks": list,
    "_deepcopy_hooks": list,
    "shape_env": lambda: None,
}


def clashes(module: nn.Module) -> list[str]:
    """Names that a user's module has and torch.fx.GraphModule needs for itself."""
    cls = user_class(module)
    taken = set(vars(fx.GraphModule)) - set(vars(nn.Module)) - {"__module__", "__doc__"}
    taken = {name for name in taken if not name.startswith("__")} | {
        *_GRAPH_MODULE_MEMBERS,
        *("_graph", "_code", "_lineno_map"),
    }
    if issubclass(cls, fx.GraphModule):
        return []
    used = {*module.__dict__, *module._modules, *module._parameters, *module._buffers}
    used |= {name for base in cls.__mro__ if base is not nn.Module for name in vars(base)}
    return sorted(taken & used)
