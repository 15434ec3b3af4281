"""What `nn.Module` iterates over: children, modules, parameters and buffers.

In: a module, and an evaluator. Out: the same items, each guarded once it is asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from torch import nn

from fxtie.tracing.operations import Operations
from fxtie.tracing.stops import Stop
from fxtie.tracing.user_class import user_class
from fxtie.words import join

Handler = Callable[..., Any]


def _named_children(e: Operations, module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    seen: set[nn.Module] = set()
    for name, child in _entries(e, module):
        if child not in seen:
            seen.add(child)
            yield name, child


def _entries(e: Operations, module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    entries = e.call_method(e.attribute(module, "_modules"), "items", (), {})
    return ((name, child) for name, child in e.iterate(entries) if child is not None)


def _named_modules(
    e: Operations,
    module: nn.Module,
    memo: None = None,
    prefix: str = "",
    remove_duplicate: bool = True,
) -> Iterator[tuple[str, nn.Module]]:
    if memo is not None:
        raise Stop("looks for modules that are not among some others")
    seen: set[nn.Module] = set()

    def below(prefix: str, module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
        if module in seen and remove_duplicate:
            return
        seen.add(module)
        yield prefix, module
        _is_plain(e, module, "named_modules")
        for name, child in _entries(e, module):
            yield from below(join(prefix, name), child)

    return below(prefix, module)


def _named_tensors(mapping: str) -> Handler:
    """Parameters or buffers."""

    def call(
        e: Operations,
        module: nn.Module,
        prefix: str = "",
        recurse: bool = True,
        remove_duplicate: bool = True,
    ) -> Iterator[tuple[str, Any]]:
        walked = [(prefix, module)]
        modules = _named_modules(e, module, None, prefix, remove_duplicate) if recurse else walked
        seen: set[Any] = set()
        for path, owner in modules:
            tensors = vars(owner)[mapping]
            e.look(tensors, f"{path or 'the root'}.{mapping}")
            for name, tensor in tensors.items():
                if tensor is None or (tensor in seen and remove_duplicate):
                    continue
                seen.add(tensor)
                value = e.registered_attribute(owner, name)
                yield join(path, name), value

    return call


def _is_plain(e: Operations, module: nn.Module, method: str) -> None:
    """Stop if torch's code would call a method of the user's."""
    if e.lookup(user_class(module).__mro__, method) is not vars(nn.Module)[method]:
        raise Stop(f"walks over modules of which {type(module).__name__} has a {method} of its own")


def _fresh(walk: Handler) -> Handler:
    return lambda e, module, *args, **kwargs: e.fresh(walk(e, module, *args, **kwargs))


def _without_names(method: str, walk: Handler) -> Handler:
    def call(e: Operations, module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        _is_plain(e, module, method)
        return e.fresh(value for _, value in walk(e, module, *args, **kwargs))

    return call


_PARAMETERS, _BUFFERS = _named_tensors("_parameters"), _named_tensors("_buffers")

WALKS: dict[Any, Handler] = {
    nn.Module.named_children: _fresh(_named_children),
    nn.Module.named_modules: _fresh(_named_modules),
    nn.Module.named_parameters: _fresh(_PARAMETERS),
    nn.Module.named_buffers: _fresh(_BUFFERS),
    nn.Module.children: _without_names("named_children", _named_children),
    nn.Module.modules: _without_names("named_modules", _named_modules),
    nn.Module.parameters: _without_names(
        "named_parameters", lambda e, m, recurse=True: _PARAMETERS(e, m, "", recurse)
    ),
    nn.Module.buffers: _without_names(
        "named_buffers", lambda e, m, recurse=True: _BUFFERS(e, m, "", recurse)
    ),
}
"""Methods of modules, and what they do in a trace."""
