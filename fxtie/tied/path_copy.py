"""Modules that were copied by the pass: of a class that is made of the user's.

`tied_module.py` and `region.py` build on it.
"""

from __future__ import annotations

import types
import weakref
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

from torch import nn
from torch.compiler import is_dynamo_compiling

from fxtie._torch import is_called_by_mover
from fxtie.errors import FxtieError
from fxtie.foreign import foreign_of
from fxtie.tied.call_cache import value_of
from fxtie.tied.state import State
from fxtie.tracing.user_class import user_class


class Made(NamedTuple):
    """What a class is made of. Copies that have the same are of one class."""

    base: type[PathCopy]
    user: type[nn.Module]
    names: tuple[str, ...]  # of derived attributes
    contents: tuple[Any, ...] | None = None  # what distinguishes regions, see `region.py`


class PathCopy(nn.Module):
    """A copy of a module of the user's.

    Promises: `isinstance` with the user's class holds; deepcopy, `copy.copy` and pickle work.
    """

    _fxtie: State
    _fxtie_made: ClassVar[Made]

    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        # `self.__class__(...)`, as in the slicing of nn.Sequential, makes one of the user's class.
        return cls._fxtie_made.user(*args, **kwargs)

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Classes made here are none of the user's: keep them out of the user's registries."""

    def __setattr__(self, name: str, value: Any) -> None:
        child = self.__dict__.get("_modules", {}).get(name)
        super().__setattr__(name, value)
        is_wrapped = isinstance(value, nn.Module) and child in value._modules.values()
        if is_wrapped and isinstance(child, PathCopy) and foreign_of(type(value)):
            become(value, PathCopy)  # the wrapper is a part of the tied model from now on

    @classmethod
    def _fxtie_namespace(cls, user: type[nn.Module], contents: Any) -> dict[str, Any]:
        """What such a class has that the user's has not, beside derived attributes."""
        return {}

    def __reduce_ex__(self, protocol: Any) -> Any:
        return new_like, self._fxtie_made[:3], self.__getstate__()

    def __getstate__(self) -> dict[str, Any]:
        users = getattr(super(), "__getstate__", None)  # object has one from Python 3.11 on
        return {**(users() if users else self.__dict__), "_fxtie": self._fxtie}


# An instance holds its class, and that the user's.
_classes: weakref.WeakValueDictionary[Made, type[PathCopy]] = weakref.WeakValueDictionary()


def _class_of(made: Made) -> type[PathCopy]:
    """The class of copies: it looks like that of the user's and behaves like the base."""
    if (found := _classes.get(made)) is not None:
        return found
    base, cls = made.base, made.user
    namespace = {
        **{name: getattr(cls, name) for name in ("__module__", "__qualname__", "__doc__")},
        **{name: _derived_attribute(name) for name in made.names},
        **base._fxtie_namespace(cls, made.contents),
        "_fxtie_made": made,
    }
    bases = [base, *(foreign.methods for foreign in foreign_of(cls))]
    if cls is not nn.Module:
        bases.append(cls)
    _classes[made] = new = types.new_class(
        cls.__name__, tuple(bases), None, lambda body: body.update(namespace)
    )
    return new


def _derived_attribute(name: str) -> property:
    # No `__getattr__`: below a class that has one, torch.export(strict=True) doesn't name modules
    # and tensors as the state_dict does.
    def read(self: PathCopy) -> Any:
        state = self._fxtie
        once = state.once.get(name)
        derived = state.derived[name]
        if derived.stored and not is_dynamo_compiling() and is_called_by_mover():
            return nn.Module.__getattr__(self, name)  # it wants the Parameter
        try:
            return value_of(derived) if once is None else once()
        except AttributeError as error:  # which would read as if there were no such attribute
            raise FxtieError(f"{derived.name!r} can't be derived: {error}") from error

    return property(read)


def user_forward(module: PathCopy) -> Callable[..., Any]:
    """The forward that the user wrote, bound: that of now, if the class was patched."""
    return super(PathCopy, module).forward


def new_like(base: type[PathCopy], cls: type[nn.Module], names: tuple[str, ...]) -> Any:
    """An empty object of such a class as a copy has."""
    new = object.__new__(_class_of(Made(base, cls, names)))
    # For a `__setstate__` of the user's that sets attributes before it takes the state in.
    vars(new)["_fxtie"] = State()
    return new


def become(module: nn.Module, base: type[PathCopy], contents: Any = None) -> None:
    """Give a copy, in place, a class made of `base` and its own, for these contents."""
    state = vars(module).setdefault("_fxtie", State())
    made = Made(base, user_class(module), tuple(state.derived), contents)
    # Past a `__setattr__` of the user's, which may refuse it.
    object.__setattr__(module, "__class__", _class_of(made))


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
