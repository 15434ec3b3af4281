"""The oracle: an untied model, its derived tensors swapped in by `functional_call` of torch.

It takes the ties of a plan (their order, names, and transforms as bound to their targets) and calls
these in plain Python: the user's functions or, where a plan has lost them, the lowered graphs of
the pass. It shares no code that copies modules, traces or runs forwards, or derives attributes.
"""

from __future__ import annotations

import contextlib
import operator
import random
import sys
import types
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import nn

from fxtie.life.verifying.values import norm_of, relative_error, same_bits, tensors_in, wide
from fxtie.transforms.parts import Part

_NONE: Mapping[str, nn.Module] = types.MappingProxyType({})


def read(model: nn.Module, name: str) -> torch.Tensor:
    """A parameter, buffer or parametrized tensor by its dotted name."""
    tensor: torch.Tensor = operator.attrgetter(name)(model)
    return tensor


def dropped(model: nn.Module, ties: Any) -> set[tuple[int, str]]:
    """The slots of the targets that a tied model no longer stores."""
    return {slot(model, tie.target) for tie in ties if tie.sources != (tie.target,)}


def slot(model: nn.Module, name: str) -> tuple[int, str]:
    """Where a tensor is: the same for all names of one module."""
    prefix, _, attr = name.rpartition(".")
    return id(model.get_submodule(prefix)), attr


class _Then(nn.Module):
    """A model, and what is to be done with its output while tensors are swapped."""

    def __init__(self, model: nn.Module, then: Callable[[Any], None]) -> None:
        super().__init__()
        self.model, self.then = model, then

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        output = self.model(*args, **kwargs)
        self.then(output)
        return output


def oracle_run(
    model: nn.Module,
    ties: Any,
    args: Any,
    kwargs: Any,
    then: Callable[[Any], None] = lambda output: None,
    learned: Mapping[str, nn.Module] = _NONE,
) -> Any:
    """The output of the untied model with the ties' targets swapped for their derived values.

    `then` is what to do with it before the swap ends: the backward of a checkpointed forward runs
    it again. `learned` are modules that ties read but the model has not, such as banks, by name.
    """
    values: dict[str, torch.Tensor] = {}
    runs: dict[Any, Any] = {}  # of transforms that return several tensors

    def source(name: str, target: str) -> torch.Tensor:
        if name in values and name != target:
            return values[name]
        for prefix, module in learned.items():
            if name.startswith(f"{prefix}."):
                return read(module, name.removeprefix(f"{prefix}."))
        return read(model, name)

    for tie in ties:  # in the order of the plan: what is read comes first
        sources = [source(name, tie.target) for name in tie.sources]
        if isinstance(part := tie.transform, Part):
            if part.of not in runs:
                runs[part.of] = part.whole(*sources)
            values[tie.target] = runs[part.of][part.index]
        else:
            values[tie.target] = tie.transform(*sources)
    swapped = {f"model.{name}": value for name, value in values.items()}
    return torch.func.functional_call(_Then(model, then), swapped, args, kwargs, tie_weights=False)


@contextlib.contextmanager
def same_random_states() -> Iterator[None]:
    """A block after which all random generators are as they were before it."""
    numpy = sys.modules.get("numpy")
    python_state, numpy_state = random.getstate(), numpy and numpy.random.get_state()
    try:
        with torch.random.fork_rng():
            yield
    finally:
        random.setstate(python_state)
        if numpy is not None:
            numpy.random.set_state(numpy_state)


def seed(number: int = 1234) -> None:
    """Set all random generators."""
    torch.manual_seed(number)
    random.seed(number)
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed(number)


def tensors(value: Any) -> Iterator[torch.Tensor]:
    """The tensors in nested outputs, once each."""
    return (tensor for _, tensor in tensors_in(value, {}))


def backward(outputs: list[torch.Tensor]) -> None:
    """Gradients of a fixed random combination of the outputs."""
    generator = torch.Generator().manual_seed(7)
    losses = []
    for output in outputs:
        if output.requires_grad and output.numel():
            output = torch.view_as_real(output) if output.is_complex() else output
            weights = torch.randn(output.shape, generator=generator, dtype=torch.float32)
            losses.append((output.float() * weights.to(output.device)).mean())
    if losses:
        torch.autograd.backward(torch.stack([loss.to(losses[0].device) for loss in losses]).sum())


def scale(outputs: list[torch.Tensor]) -> tuple[float, str]:
    """The root mean square of outputs, and why equality with them would prove nothing, if so."""
    parts = [wide(output) for output in outputs]
    parts = [torch.view_as_real(t) if t.is_complex() else t for t in parts]
    together = torch.cat([part.flatten().cpu() for part in parts])
    norm = together.square().mean().sqrt().item()
    if not torch.isfinite(together).all():
        return norm, "outputs are not finite"
    if norm < 1e-6 or (together.numel() > 1 and together.std().item() < 1e-6 * norm):
        return norm, (
            f"outputs are near zero or constant (norm {norm:.1e}), so that nothing is proved. Use "
            f"values with which they keep their scale: trained ones, or some forwards in train(), "
            f"which set the statistics of batch norms"
        )
    return norm, ""


def gradient_of(tensor: torch.Tensor) -> torch.Tensor | None:
    """The gradient of a leaf. A copy of a module of TorchScript has parameters that are none."""
    return tensor.grad if tensor.is_leaf else None


def gradient_error(
    found: torch.Tensor, expected: torch.Tensor, vanishing: float = 1e-7
) -> tuple[str, float | None]:
    """What is wrong with the presence of a gradient, and its relative error.

    There is none to tell if both are `vanishing` beside their tensor: rounding and nothing else.
    """
    if not (found.is_leaf and expected.is_leaf):
        return "", None
    a, b = found.grad, expected.grad
    if a is None or b is None:
        return "" if a is b else "only one side has a gradient", None
    if max(norm_of(a), norm_of(b)) <= vanishing * (1 + norm_of(expected)):
        return "", None
    equal = a.dtype == b.dtype and same_bits(a, b)  # also NaN
    return "", 0.0 if equal else relative_error(a, b)
