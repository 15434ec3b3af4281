"""What modules do while forwards are traced comes to the tracer at work.

In: a function that traces, many times maybe. Out: for as long as it runs, calls of modules, reads
of their tensors and of their `training` flags go to the tracer of the moment. Called by
`module_tracer.py`, and by `capture.py` around many traces.

`torch.fx.Tracer.trace` changes `nn.Module` for each trace and back again, and each such change goes
through all classes of modules that were ever imported. So one trace of its goes around all of ours.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any, ParamSpec, TypeVar

from torch import fx, nn
from torch.fx import _symbolic_trace
from torch.nn.modules.batchnorm import _NormBase

from fxtie.tracing.watching import MATH, patched, tracer_here, watching

_P = ParamSpec("_P")
_T = TypeVar("_T")

_is_listening = False


def listening(function: Callable[_P, _T]) -> Callable[_P, _T]:
    """A function of which the traces hear what modules do."""

    @functools.wraps(function)
    def listen(*args: _P.args, **kwargs: _P.kwargs) -> _T:
        global _is_listening
        results = []

        def run() -> None:
            results.append(function(*args, **kwargs))

        with watching():
            if _is_listening:
                run()
            else:
                _is_listening = True
                try:
                    with patched(nn.Module, "training", _flag), _without_rank_checks():
                        _Listener().trace(run)
                finally:
                    _is_listening = False
        return results[0]

    return listen


def record_imported_math(names: dict[str, Any]) -> None:
    """Have `sqrt(x.shape[0])` recorded where `sqrt` is one of these names, a module's globals.

    torch.fx does so for each module that is called. `math.sqrt` is seen to by `watching`.
    """
    patcher = _symbolic_trace.CURRENT_PATCHER
    assert patcher is not None, "called by what is listening"
    _symbolic_trace._autowrap_check(patcher, names, _MATH_IDS)


_MATH_IDS = {id(function) for function in MATH.values()}


class _Listener(fx.Tracer):
    """A tracer that traces nothing itself."""

    def __init__(self) -> None:
        super().__init__(autowrap_modules=(), autowrap_functions=tuple(MATH.values()))  # type: ignore[arg-type]

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:
        tracer = tracer_here()
        if tracer is None:
            return attr_val
        return tracer.getattr(attr, attr_val, parameter_proxy_cache)

    def call_module(self, m: nn.Module, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        tracer = tracer_here()
        if tracer is None:
            return forward(*args, **kwargs)
        return tracer.call_module(m, forward, args, kwargs)


def _read_flag(module: nn.Module) -> Any:
    tracer = tracer_here()
    if tracer is not None and tracer.covers(module):
        return tracer.read_flag(module)
    try:
        return module.__dict__["training"]
    except KeyError:  # of TorchScript, whose own `__getattr__` is asked next
        raise AttributeError("training") from None


def _write_flag(module: nn.Module, value: bool) -> None:
    module.__dict__["training"] = value


_flag = property(_read_flag, _write_flag)


def tells_of_its_mode(module: nn.Module) -> bool:
    """Whether the tracer hears of reads of the `training` flag: its class has none of its own."""
    return type(module).training is _flag  # type: ignore[comparison-overlap]


@contextlib.contextmanager
def _without_rank_checks() -> Iterator[None]:
    """While it lasts, torch's own norms check no ranks in traces.

    A trace drops these checks in any case; recording them first takes a tenth of its time.
    """
    with contextlib.ExitStack() as stack:
        for owner in _RANK_CHECKED:
            stack.enter_context(patched(owner, _CHECK, _in_no_trace(vars(owner)[_CHECK])))
        yield


def _in_no_trace(check: Callable[[nn.Module, Any], None]) -> Callable[[nn.Module, Any], None]:
    def check_or_not(module: nn.Module, input: Any) -> None:
        if tracer_here() is None:
            check(module, input)

    return check_or_not


_CHECK = "_check_input_dim"
_RANK_CHECKED = tuple(
    cls
    for cls in vars(nn).values()
    if isinstance(cls, type) and issubclass(cls, _NormBase) and _CHECK in vars(cls)
)
