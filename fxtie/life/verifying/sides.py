"""One side of a comparison: the calls of a model, and the state that they may change."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
from collections.abc import Callable, Iterator, Mapping, Set
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from torch import nn

from fxtie.capturing.report import report
from fxtie.life.verifying.oracle import backward, dropped, oracle_run, seed
from fxtie.life.verifying.values import ModuleNames, attributes_of, tensors_in


class Call(NamedTuple):
    """How both sides are called: with gradients or without, and the random seed."""

    name: str
    grad: bool
    seed: int


CALLS = (
    Call("first call", True, 1234),
    Call("second call", True, 1235),
    Call("no_grad", False, 1236),
)
KINDS = ("parameter", "buffer", "attribute")  # of state


@dataclasses.dataclass
class Result:
    """What a call leaves behind. The arguments are its own copies, by name."""

    arguments: dict[str, Any]
    output: Any = None
    error: Exception | None = None


class Side:
    """One side of a comparison: a model, and how to call it."""

    def __init__(
        self,
        model: nn.Module,
        # Calls the model with positional and named arguments, and passes its output on.
        run: Callable[[Any, Any, Callable[[Any], None]], None] = lambda args, kwargs, then: None,
        learned: Mapping[str, nn.Module] = MappingProxyType({}),  # by their names in the tied model
        dropped: Set[tuple[int, str]] = frozenset(),  # what the tied model no longer stores
    ) -> None:
        self.run, self.parts, self.dropped = run, {"": model, **learned}, dropped

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

        def run(args: Any, kwargs: Any, then: Callable[[Any], None]) -> None:
            oracle_run(model, ties, args, kwargs, then, learned)

        return cls(model, run, learned, dropped(model, ties))

    def train(self, mode: bool) -> None:
        for part in self.parts.values():
            part.train(mode)

    def named(self, kind: str) -> dict[str, Any]:
        """All modules, parameters or buffers by name; a shared one has several."""
        return {
            name: value
            for prefix, part in self.parts.items()
            for name, value in getattr(part, f"named_{kind}")(prefix=prefix, remove_duplicate=False)
        }

    def names(self) -> ModuleNames:
        return {id(module): name for name, module in reversed(self.named("modules").items())}

    def state(self) -> dict[str, Any]:
        """All that a call may change: stored tensors and plain attributes, by name.

        Without attributes of learnable transforms: how often these run is not promised.
        """
        learned = {id(m) for prefix, part in self.parts.items() if prefix for m in part.modules()}
        state = {}
        for prefix, module in self.named("modules").items():
            attributes = {} if id(module) in learned else attributes_of(module)
            for kind, members in zip(
                KINDS, (module._parameters, module._buffers, attributes), strict=True
            ):
                for attr, value in members.items():
                    stored = value is not None and (id(module), attr) not in self.dropped
                    if stored or kind == "attribute":
                        state[f"the {kind} {prefix}.{attr}".replace(" .", " ")] = value
        return state

    def call(self, inputs: Any, call: Call, autocast: torch.dtype | None) -> Result:
        """Run the model on copies of the inputs, and the backward of what it returns."""
        args, kwargs = copy.deepcopy(inputs)
        result = Result({f"argument {n}": v for n, v in (*enumerate(args), *kwargs.items())})
        parameters, buffers = self.named("parameters"), self.named("buffers")
        for parameter in parameters.values():
            parameter.grad = None
        devices = {t.device.type for _, t in tensors_in([parameters, buffers, inputs], {})}

        def then(output: Any) -> None:
            result.output = output
            seed(call.seed)
            if call.grad:
                with _autocast(devices, autocast, enabled=False):
                    backward([tensor for _, tensor in tensors_in(output, self.names())])

        seed(call.seed)
        try:
            with torch.set_grad_enabled(call.grad), _autocast(devices, autocast):
                self.run(args, kwargs, then)
        except Exception as error:  # user code may raise anything; then both sides must
            result.error = error
        return result

    def gradients(self, result: Result) -> dict[str, torch.Tensor]:
        """Parameters and inputs that get one, by the name of their gradient."""
        leaves = self.named("parameters")
        for name, value in result.arguments.items():
            leaves |= {name + path: tensor for path, tensor in tensors_in(value, {})}
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
