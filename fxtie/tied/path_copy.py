"""Modules that were copied by the pass: of a class that is made of the user's.

In: copies along the paths to the targets (`copying.py`). Out: objects whose class is a subclass of
the user's, made here. `tied.py` and `region.py` build on it.
"""

from __future__ import annotations

import types
import weakref
from collections.abc import Callable, Hashable, Mapping
from typing import Any, ClassVar

from torch import nn

from fxtie.errors import FxtieError
from fxtie.tracing.user_class import user_class


class PathCopy(nn.Module):
    """A copy of a module of the user's.

    Promises: `isinstance` with the user's class holds; deepcopy, `copy.copy` and pickle work.
    """

    _fxtie_base: ClassVar[type[PathCopy]]
    _fxtie_class: ClassVar[type[nn.Module]]
    _fxtie_names: ClassVar[tuple[str, ...]]  # of derived attributes
    _fxtie_contents: ClassVar[Hashable]  # what distinguishes classes of one base, see `region.py`

    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        # `self.__class__(...)`, as in the slicing of nn.Sequential, makes one of the user's class.
        return cls._fxtie_class(*args, **kwargs)

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Classes made here are none of the user's: keep them out of the user's registries."""

    @classmethod
    def _fxtie_of(
        cls, user_cls: type[nn.Module], names: tuple[str, ...], contents: Hashable = None
    ) -> type[PathCopy]:
        """The class of copies of the user's class: one for all that have the same contents."""
        classes = _classes.setdefault(user_cls, weakref.WeakValueDictionary())
        found = classes.get((cls, names, contents))
        if found is None:
            namespace = {
                "_fxtie_names": names,
                "_fxtie_contents": contents,
                **{name: cls._fxtie_attribute(name) for name in names},
                **cls._fxtie_namespace(user_cls, contents),
            }
            found = classes[cls, names, contents] = _subclass(cls, user_cls, namespace)
        return found

    @staticmethod
    def _fxtie_attribute(name: str) -> Any:
        """The descriptor of a derived attribute."""
        raise NotImplementedError

    @classmethod
    def _fxtie_namespace(cls, user_cls: type[nn.Module], contents: Any) -> dict[str, Any]:
        """What such a class has that the user's has not."""
        return {}

    # -- copies ---------------------------------------------------------------------------------

    def __reduce_ex__(self, protocol: Any) -> Any:
        like = self._fxtie_base, self._fxtie_class, self._fxtie_names
        return _new_like, like, self.__getstate__()

    def __getstate__(self) -> dict[str, Any]:
        users = getattr(super(), "__getstate__", None)  # object has one from Python 3.11 on
        return dict(users() if users else self.__dict__)


# --- Classes ----------------------------------------------------------------------------------

# Weak in both: an instance holds its class, and that the user's.
_classes: weakref.WeakKeyDictionary[
    type, weakref.WeakValueDictionary[tuple[type, tuple[str, ...], Hashable], type[PathCopy]]
] = weakref.WeakKeyDictionary()


def user_forward(module: PathCopy) -> Callable[..., Any]:
    """The forward that the user wrote, bound: that of now, if the class was patched."""
    forward: Callable[..., Any] = super(PathCopy, module).forward
    return forward


def _subclass(
    base: type[PathCopy], cls: type[nn.Module], members: Mapping[str, Any]
) -> type[PathCopy]:
    """A class that looks like `cls` and behaves like `base`."""
    bases = (base,) if cls is nn.Module else (base, cls)
    namespace = {
        "__module__": cls.__module__,
        "__qualname__": cls.__qualname__,
        "__doc__": cls.__doc__,
        "_fxtie_base": base,
        "_fxtie_class": cls,
        **members,
    }
    return types.new_class(cls.__name__, bases, exec_body=lambda body: body.update(namespace))


def new_like(module: PathCopy) -> Any:
    """An empty object of such a class as a copy has."""
    return _new_like(module._fxtie_base, module._fxtie_class, module._fxtie_names)


def _new_like(base: type[PathCopy], cls: type[nn.Module], names: tuple[str, ...]) -> Any:
    return object.__new__(base._fxtie_of(cls, names))


def become(module: nn.Module, base: type[PathCopy], contents: Hashable = None) -> None:
    """Give a copy, in place, a class made of `base` and its own, for these contents."""
    names = tuple(module.__dict__.get("_fxtie_derived", ()))
    # Past a `__setattr__` of the user's, which may refuse it.
    object.__setattr__(module, "__class__", base._fxtie_of(user_class(module), names, contents))


def tied_model(model: Any) -> nn.Module:
    """A tied model, or a part of one, out of the wrapper of torch.compile.

    Raises:
        FxtieError: for anything else.
    """
    model = getattr(model, "_orig_mod", model)
    if isinstance(model, nn.Module) and any(isinstance(m, PathCopy) for m in model.modules()):
        return model
    raise FxtieError(
        f"This is not a tied model, but {type(model).__name__}. Pass what fxtie.transform returned."
    )


def user_members(module: nn.Module) -> dict[str, Any]:
    """A module's attributes, less what capturing and running it have added."""
    if not isinstance(module, PathCopy):
        return module.__dict__
    added = module.__dict__.get("_fxtie_added", ())
    return {
        name: value
        for name, value in module.__dict__.items()
        if name in _OF_TIES or not (name in added or name.startswith("_fxtie_"))
    }


_OF_TIES = frozenset({"_fxtie_derived", "_fxtie_order"})  # of `TiedModule`
