"""Captured forwards: a tied module that is a `torch.fx.GraphModule` as well.

Calls that the graph was not captured for (another mix of training flags, an optional argument that
is given) run the class's own forward on the copy, which reads derived attributes.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import fx, nn
from torch.compiler import is_dynamo_compiling
from torch.fx.experimental.proxy_tensor import get_proxy_mode

from fxtie import _torch
from fxtie.errors import Outdated
from fxtie.tied.call_cache import remembering
from fxtie.tied.path_copy import become, new_like, user_forward
from fxtie.tied.recompute import recomputing
from fxtie.tied.sharded import is_distributed
from fxtie.tied.state import Reads, RegionState
from fxtie.tied.tied_module import TiedModule, derived_tensors
from fxtie.tied.variant import Signature, Variant
from fxtie.tracing.user_class import user_class


class Region(TiedModule, fx.GraphModule):
    """A tied module whose forward was captured as a graph, for training and for evaluation.

    `graph` and `code` are those of the current mode.

    Regions of one class compute the same, as far as that lies in their graphs: by its class
    `torch.func.stack_module_state` tells like models.
    """

    _fxtie: RegionState

    @classmethod
    def _fxtie_namespace(cls, user: type[nn.Module], contents: Any) -> dict[str, Any]:
        forward: Any = _dispatch(user)
        if contents and contents[0]:
            forward = recomputing(forward)
        # Dynamo limits how often it compiles one code object, and each class is compiled anew.
        forward.__code__ = forward.__code__.replace()
        return {"forward": forward}

    # torch.fx reads and writes these; they belong to the variant of the current mode.
    @property
    def _graph(self) -> fx.Graph:
        if get_proxy_mode() is not None:
            return _call_graph(self)
        return self._fxtie.current(self.training).graph

    @_graph.setter
    def _graph(self, graph: fx.Graph) -> None:
        self._fxtie.current(self.training).graph = graph

    @property
    def _code(self) -> str:
        return self._fxtie.current(self.training).generate().src

    @property
    def _lineno_map(self) -> Any:
        return self._fxtie.current(self.training).generate()._lineno_map

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "_graph":  # past a `__setattr__` of the user's
            object.__setattr__(self, name, value)
            return
        super().__setattr__(name, value)
        if name == "training" and not torch.compiler.is_compiling():
            # Now, since torch.compile couldn't look through that.
            self._fxtie.current(self.training).generate()

    def __str__(self) -> str:
        """As the user's class, where torch.fx appends the code: that is `code`."""
        return super(fx.GraphModule, self).__str__()

    def recompile(self) -> Any:
        """Generate the forward again, after an edit of `graph`; the other mode's, once it runs."""
        state = self._fxtie
        variants = {id(variant): variant for variant in state.variants.values()}
        for variant in variants.values():
            running = state.running(variant)
            running.graph.owning_module = self
            running.generated = running.forward = None
            if running is variant:
                variant.reading = None
        contents = state.recomputes, tuple(v.contents for v in variants.values())
        state.is_edited |= self._fxtie_made.contents not in (None, contents)
        become(self, Region, contents)
        return state.current(self.training).generate()

    @property
    def _fxtie_values(self) -> Mapping[str, Any]:
        """By which the graphs of variants that read derived tensors refer to these."""
        state = self._fxtie
        return state.reads if state.read_once is None else state.read_once()

    def __copy__(self) -> Any:
        """A shallow copy, as of any module; its graphs are about its own attributes."""
        if (users := getattr(user_class(self), "__copy__", None)) is not None:
            return users(self)
        new, state = new_like(*self._fxtie_made[:3]), copy.copy(self._fxtie)
        memo = {id(self): new}
        state.switches = tuple(memo.get(id(module), module) for module in state.switches)
        for variant in {id(variant): variant for variant in state.variants.values()}.values():
            variant.guards = copy.deepcopy(variant.guards, memo)
        vars(new).update({**vars(self), "_fxtie": state})
        new.recompile()
        return new

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        for name in self._fxtie.added:
            if name.startswith(OUTSIDE):
                value = self.__dict__.get(name)
                memo[id(value)] = value
        return super().__deepcopy__(memo)

    def __getstate__(self) -> dict[str, Any]:
        of_codegen = ("_in_spec", "_out_spec")
        return {k: v for k, v in super().__getstate__().items() if k not in of_codegen}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        self.recompile()


def fill(
    region: Region,
    variants: dict[bool, Variant],
    switches: tuple[nn.Module, ...],
    borrowed: dict[str, Any],
    recompute: bool,
) -> None:
    """Put into a region what was captured."""
    added = {**borrowed, **{n: make() for n, make in _GRAPH_MODULE_MEMBERS.items()}}
    added["_fxtie"] = RegionState(
        region._fxtie.derived,
        region._fxtie.order,
        added=tuple(added.keys() - vars(region)),
        variants=variants,
        switches=switches,
        signature=Signature(user_class(region).forward),
        recomputes=recompute,
        reads=Reads(
            (derived.name, (owner, name.rpartition(".")[2]))
            for name, owner, derived in derived_tensors(region)
        ),
    )
    # Past nn.Module, which would register modules, and past a `__setattr__` of the user's.
    vars(region).update(added)
    region.recompile()
    for variant in variants.values():
        if variant.forward is None and variant.may_be_wrong:
            variant.generate()  # which raises then


def variant_for(region: Region, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Variant | None:
    """The variant that was captured for such a call, if any; its guards may not hold."""
    state, training = region._fxtie, region.training
    for module in state.switches:
        if module.training is not training:
            return None
    variant = state.variants[training]
    if not state.signature.fits(len(args), kwargs, exactly=variant.by_position):
        return None
    if variant.defaults or variant.assumed:
        # torch 2.9 compiles no `strict=False`.
        arguments = dict(zip(state.signature.positional, args))  # noqa: B905
        if not variant.accepts({**arguments, **kwargs}):
            return None
    return variant


def _select(region: Region, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Variant | None:
    """The variant to run for a call, if any."""
    state = region._fxtie
    if state.is_retired:
        _miss(region, "has a hook of another library that moves tensors", lasts=False)
        return None
    if (is_compiling := is_dynamo_compiling()) and not (
        state.is_edited or (_torch.is_exporting() and state.holds(region.training))
    ):
        return None  # a compiler sees through derived attributes, and has guards of its own
    variant = variant_for(region, args, kwargs)
    if variant is None:
        return None
    if not is_compiling and is_distributed() and any(d.is_in_parts for d in state.reads.derived()):
        _miss(region, "tensors that it derives from are sharded", lasts=False)
        return None
    if not is_compiling and (broken := variant.guards.broken()) is not None:
        _miss(region, *broken)
        return None
    return state.running(variant)


def _miss(region: Region, reason: str, lasts: bool) -> None:
    """Note that a guard does not hold, and warn of it once if it will not hold again."""
    state = region._fxtie
    state.missed = state.missed[0] + 1, reason
    if lasts and not state.warned:
        state.warned = True
        warnings.warn(
            f"The graph of a {user_class(region).__name__} does not hold any more: {reason}. Its "
            f"own forward runs instead. Tie the model again to have a graph of what it is now.",
            Outdated,
            stacklevel=6,
        )


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
    as_written = remembering(user_forward, user_cls.forward)

    @functools.wraps(user_cls.forward)  # for its signature
    def forward(self: Region, *args: Any, **kwargs: Any) -> Any:
        variant = _select(self, args, kwargs)
        if variant is None:
            return as_written(self, *args, **kwargs)
        if variant.forward is None:  # its mode was set past `__setattr__`
            variant.generate()
        assert variant.forward is not None
        if not variant.has_checks:
            return variant.forward(self, *args, **kwargs)
        try:
            return variant.forward(self, *args, **kwargs)
        except AssertionError:  # the user's own code raises what it raises
            with _restored(self):
                as_written(self, *args, **kwargs)
            raise  # with other random numbers the user's code may not

    return forward


@contextlib.contextmanager
def _restored(module: nn.Module) -> Iterator[None]:
    """Restore buffers, which layers update in training, and random states after a block."""
    with torch.no_grad():
        before = [(buffer, buffer.clone()) for buffer in module.buffers()]
    with torch.random.fork_rng(range(torch.cuda.device_count())):
        try:
            yield
        finally:
            with torch.no_grad():
                for buffer, value in before:
                    buffer.copy_(value)


_EXPORT = "torch.export._trace"

OUTSIDE = "_tensor_constant"
"""How the attributes are called by which graphs refer to tensors that are no part of the model."""

# What torch.fx expects of every GraphModule, beside its class attributes.
_GRAPH_MODULE_MEMBERS: dict[str, Callable[[], Any]] = {
    **dict.fromkeys(("meta", "_tracer_extras"), dict),
    **dict.fromkeys(("_tracer_cls", "shape_env"), type(None)),
    **dict.fromkeys(("_replace_hooks", "_create_node_hooks", "_erase_node_hooks"), list),
    "_deepcopy_hooks": list,
}


GRAPH_MODULE_NAMES = frozenset(
    name for name in vars(fx.GraphModule).keys() - vars(nn.Module).keys() if name[:2] != "__"
).union(_GRAPH_MODULE_MEMBERS, ("_graph", "_code", "_lineno_map"))
"""Names that torch.fx.GraphModule needs for itself."""


def clashes(module: nn.Module) -> list[str]:
    """Names that a user's module has and torch.fx.GraphModule needs for itself."""
    cls = user_class(module)
    if issubclass(cls, fx.GraphModule):
        return []
    used = {*module.__dict__, *module._modules, *module._parameters, *module._buffers}
    used |= {name for base in cls.__mro__ if base is not nn.Module for name in vars(base)}
    return sorted(GRAPH_MODULE_NAMES & used)
