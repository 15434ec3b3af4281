"""A model to be run beside another one: its stored state and its calls."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import functools
import types
import weakref
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import nn

from fxtie.report import report
from fxtie.verifying.oracle import backward, is_dropped, oracle_run, read, seed, slot
from fxtie.verifying.values import Names, attributes_of, tensors_in

# -- the two sides -----------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Call:
    """A circumstance in which both sides are called."""

    name: str
    grad: bool
    seed: int


CALLS = (
    Call("first call", True, 1234),
    Call("second call", True, 1235),
    Call("no_grad", False, 1236),
)


@dataclasses.dataclass
class _Result:
    """What a call leaves behind."""

    inputs: tuple[tuple[Any, ...], dict[str, Any]]
    output: Any = None
    error: Exception | None = None

    @functools.cached_property
    def arguments(self) -> dict[str, Any]:
        args, kwargs = self.inputs
        return {f"argument {name}": value for name, value in (*enumerate(args), *kwargs.items())}


KINDS = ("parameter", "buffer", "attribute")  # of state


class Side:
    """One side of a comparison: a model, and how to call it.

    Args:
        run: calls the model with positional and named arguments, and passes its output on.
        learned: modules that rules have brought in, by their names in the tied model.
        dropped: the stored tensors that the tied model no longer has, by owner and attribute.
    """

    def __init__(
        self,
        model: nn.Module,
        run: Callable[[Any, Any, Callable[[Any], None]], None] = lambda args, kwargs, then: None,
        learned: Mapping[str, nn.Module] = types.MappingProxyType({}),
        dropped: Mapping[tuple[int, str], Any] = types.MappingProxyType({}),
    ) -> None:
        self.model, self.run, self.learned, self.dropped = model, run, learned, dropped

    @classmethod
    def tied(cls, tied: nn.Module) -> Side:
        copied = copy.deepcopy(tied)
        names = [f"ties.{name}" for name in report(copied).plan.modules]
        learned = {name: copied.get_submodule(name) for name in names}
        return cls(copied, lambda args, kwargs, then: then(copied(*args, **kwargs)), learned)

    @classmethod
    def oracle(cls, model: nn.Module, plan: Any) -> Side:
        model, ties, modules = copy.deepcopy((model, plan.ties, plan.modules))
        learned = {f"ties.{name}": module for name, module in modules.items()}
        targets = [tie.target for tie in ties if is_dropped(tie)]
        dropped = {slot(model, name): read(model, name) for name in targets}

        def run(args: Any, kwargs: Any, then: Callable[[Any], None]) -> None:
            oracle_run(model, ties, args, kwargs, then, learned)

        return cls(model, run, learned, dropped)

    def train(self, mode: bool) -> None:
        for module in (self.model, *self.learned.values()):
            module.train(mode)

    def modules(self) -> dict[str, nn.Module]:
        """All modules by name; a shared one has several."""
        found = dict(self.model.named_modules(remove_duplicate=False))
        for name, module in self.learned.items():
            found |= dict(module.named_modules(prefix=name, remove_duplicate=False))
        return found

    def names(self) -> Names:
        return {id(module): name for name, module in reversed(self.modules().items())}

    def parameters(self) -> dict[str, nn.Parameter]:
        found = dict(self.model.named_parameters(remove_duplicate=False))
        for name, module in self.learned.items():
            found |= dict(module.named_parameters(prefix=name, remove_duplicate=False))
        return found

    def state(self) -> dict[str, Any]:
        """All that a call may change: stored tensors and plain attributes, by name.

        Without attributes of learnable transforms: how often these run is not promised.
        """
        learned = {inner for module in self.learned.values() for inner in module.modules()}
        return {
            f"the {kind} {prefix}.{attr}".replace(" .", " "): value
            for prefix, module in self.modules().items()
            for kind in KINDS[: 2 if module in learned else 3]
            for attr, value in self._members(module, kind)
            if (id(module), attr) not in self.dropped and not self._lists_dropped(value)
        }

    def _members(self, module: nn.Module, kind: str) -> Iterator[tuple[str, Any]]:
        if kind == "parameter":
            yield from module.named_parameters(recurse=False, remove_duplicate=False)
        elif kind == "buffer":
            yield from module.named_buffers(recurse=False, remove_duplicate=False)
        else:
            yield from attributes_of(module).items()

    def _lists_dropped(self, value: Any) -> bool:
        """Whether this is a list such as those of the weights of an nn.LSTM."""
        if type(value) is not list:
            return False
        listed = [item() if isinstance(item, weakref.ref) else item for item in value]
        return any(item is tensor for item in listed for tensor in self.dropped.values())

    def call(self, inputs: Any, call: Call, autocast: torch.dtype | None) -> _Result:
        """Run the model on copies of the inputs, and the backward of what it returns."""
        result = _Result(copy.deepcopy(inputs))
        parameters = self.parameters().values()
        for parameter in parameters:
            parameter.grad = None
        devices = {t.device.type for t in (*parameters, *self.model.buffers())}
        devices |= {tensor.device.type for _, tensor in tensors_in(inputs, {})}

        def then(output: Any) -> None:
            result.output = output
            seed(call.seed)
            if call.grad:
                with _autocast(devices, autocast, enabled=False):
                    backward([tensor for _, tensor in tensors_in(output, self.names())])

        seed(call.seed)
        try:
            with torch.set_grad_enabled(call.grad), _autocast(devices, autocast):
                self.run(*result.inputs, then)
        except Exception as error:  # user code may raise anything; then both sides must
            result.error = error
        return result

    def gradients(self, result: _Result) -> dict[str, torch.Tensor]:
        """Parameters and inputs that get one, by the name of their gradient."""
        inputs = {
            name + path: tensor
            for name, value in result.arguments.items()
            for path, tensor in tensors_in(value, {})
        }
        leaves = self.parameters() | inputs
        return {f"the gradient of {name}": t for name, t in leaves.items() if t.requires_grad}


@contextlib.contextmanager
def _autocast(
    devices: set[str], dtype: torch.dtype | None, *, enabled: bool = True
) -> Iterator[None]:
    """Autocast on these devices; without a dtype, what there is already."""
    with contextlib.ExitStack() as stack:
        for device in sorted(devices - {"meta"}) if dtype is not None else ():
            stack.enter_context(torch.autocast(device, dtype, enabled=enabled))
        yield
