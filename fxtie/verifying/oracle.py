"""Verify a tied model: run it beside an oracle and compare everything after each call.

In: the model that was tied, the tied model, inputs of the forward. Out: a `Verification`, or an
error that names the first difference.

The oracle is the untied model under `torch.func.functional_call`: it computes each derived tensor
in plain Python from the model's own tensors and swaps it in for one call. Both sides run on copies
of their own, from the same random state. The oracle shares no code for copying paths, tracing,
graphs, derived attributes, or running them.

It does share the following with the pass. A fault here shows on both sides, and so not at all:

* The list of ties, from the pass's plan: which tensor is derived from which, in which order, and
  each transform fitted to the shape of its target. Print the plan to check that part.
* The transforms, as they were given. A tied model that was copied or pickled has lost its lambdas
  and local functions, and the oracle uses the graphs that the pass made of them; the result says
  so.
* State outside of the modules, such as a global.

The tied side runs a deep copy. So a fault in copying a tied model shows here, too.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import random
import sys
import types
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import nn

from fxtie.verifying.results import Comparison, Vacuous, VerificationError
from fxtie.verifying.values import norm_of, relative_error, same_bits, wide

# -- the oracle --------------------------------------------------------------------------------


def read(model: nn.Module, name: str) -> torch.Tensor:
    """A parameter, buffer or parametrized tensor by its dotted name."""
    prefix, _, attr = name.rpartition(".")
    tensor = getattr(model.get_submodule(prefix), attr)
    assert isinstance(tensor, torch.Tensor)
    return tensor


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
    learned: Mapping[str, nn.Module] = types.MappingProxyType({}),
) -> Any:
    """The model's output with the ties' targets swapped for their derived values.

    Args:
        then: what to do with the output before the swap ends: the backward of a checkpointed
            forward runs it again.
        learned: modules that ties read but the model has not, such as banks, by name.
    """
    values: dict[str, torch.Tensor] = {}
    for tie in ties:  # in the order of a plan: what is read comes first
        sources = [
            values[name] if name in values and name != tie.target else _source(model, name, learned)
            for name in tie.sources
        ]
        values[tie.target] = tie.transform(*sources)
    swapped = {f"model.{name}": value for name, value in values.items()}
    return torch.func.functional_call(_Then(model, then), swapped, args, kwargs, tie_weights=False)


def _source(model: nn.Module, name: str, learned: Mapping[str, nn.Module]) -> torch.Tensor:
    for prefix, module in learned.items():
        if name.startswith(f"{prefix}."):
            return read(module, name.removeprefix(f"{prefix}."))
    return read(model, name)


def is_dropped(tie: Any) -> bool:
    """Whether the tied model no longer stores the target."""
    return bool(tie.sources != (tie.target,))


# -- running both sides alike ------------------------------------------------------------------


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


# -- one call, measured ------------------------------------------------------------------------


def tensors(value: Any) -> Iterator[torch.Tensor]:
    """The tensors in nested outputs."""
    if isinstance(value, torch.Tensor):
        yield value
    elif dataclasses.is_dataclass(value):
        for field in dataclasses.fields(value):
            yield from tensors(getattr(value, field.name))
    elif isinstance(value, dict):
        for item in value.values():
            yield from tensors(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from tensors(item)


def compare(
    model: nn.Module,
    tied: nn.Module,
    ties: Any,
    args: Any,
    kwargs: Any = None,
    *,
    train: bool | None,
) -> Comparison:
    """Run both sides once, on copies, and measure. `train=None` leaves the flags as they are."""
    model, ties = copy.deepcopy((model, tuple(ties)))  # learnable transforms go along
    tied = copy.deepcopy(tied)
    if train is not None:
        for module in (model, tied, *_learned(ties)):
            module.train(train)
    found, expected = _outputs(model, tied, ties, args, kwargs or {})
    _require(type(found) is type(expected), f"{type(found)} is returned, not {type(expected)}")
    outputs, references = list(tensors(found)), list(tensors(expected))
    _require(len(outputs) == len(references) > 0, f"{len(outputs)} tensors are returned")
    pairs = {f"output {i}": pair for i, pair in enumerate(zip(outputs, references, strict=True))}
    buffers = dict(model.named_buffers())
    for name, buffer in tied.named_buffers():
        if name in buffers:
            pairs[f"the buffer {name}"] = buffer, buffers[name]
    output_errors = {name: relative_error(*pair) for name, pair in pairs.items()}
    gradient_errors = _gradient_errors(model, tied, ties)
    if reason := why_nothing(references):
        raise Vacuous(reason)
    norm = _together(references).square().mean().sqrt().item()
    return Comparison(output_errors, gradient_errors, norm, not any(output_errors.values()))


def _outputs(model: nn.Module, tied: nn.Module, ties: Any, args: Any, kwargs: Any) -> Any:
    """What both sides return. Their gradients are there afterwards."""
    args_, kwargs_ = copy.deepcopy((args, kwargs))

    def then(output: Any) -> None:
        seed()
        backward(list(tensors(output)))

    seed()
    found = tied(*args, **kwargs)
    then(found)
    seed()
    return found, oracle_run(model, ties, args_, kwargs_, then)


def _together(outputs: list[torch.Tensor]) -> torch.Tensor:
    """All numbers of some outputs, real and imaginary parts apart."""
    parts = [wide(output) for output in outputs]
    parts = [torch.view_as_real(t) if t.is_complex() else t for t in parts]
    return torch.cat([part.flatten().cpu() for part in parts])


def why_nothing(outputs: list[torch.Tensor]) -> str:
    """Why to compare with these outputs would prove nothing; empty if it does."""
    together = _together(outputs)
    norm = together.square().mean().sqrt().item()
    if not torch.isfinite(together).all():
        return "outputs are not finite"
    if norm < 1e-6 or (together.numel() > 1 and together.std().item() < 1e-6 * norm):
        return (
            f"outputs are near zero or constant (norm {norm:.1e}), so that nothing is proved. Use "
            f"values with which they keep their scale: trained ones, or some forwards in train(), "
            f"which set the statistics of batch norms"
        )
    return ""


def _learned(ties: Any) -> list[nn.Module]:
    """Learnable transforms, once each, in the order in which a tied model registers them."""
    return list({id(m): m for tie in ties if isinstance(m := tie.transform, nn.Module)}.values())


def _gradient_errors(model: nn.Module, tied: nn.Module, ties: Any) -> dict[str, float]:
    """Relative error of each gradient. Every stored tensor must be there on both sides."""
    expected = dict(model.named_parameters(remove_duplicate=False))
    found = dict(tied.named_parameters(remove_duplicate=False))
    dropped = {slot(model, tie.target) for tie in ties if is_dropped(tie)}
    missing = {name for name in expected if slot(model, name) not in dropped} - set(found)
    _require(not missing, f"stored tensors are missing: {', '.join(sorted(missing))}")
    references = [p for module in _learned(ties) for p in module.parameters()]
    own = [name for name in found if name.startswith("ties.")]
    if references and len(own) == len(references):
        expected |= dict(zip(own, references, strict=True))
    errors, alive = {}, 0.0
    for name in (name for name in found if name in expected):
        fault, error = gradient_error(found[name], expected[name])
        _require(not fault, f"{fault} of {name}")
        alive += norm_of(gradient_of(expected[name]))
        if error is not None:
            errors[name] = error
    if alive == 0:
        raise Vacuous("all gradients vanish")
    return errors or {"(none)": 0.0}


def gradient_of(tensor: torch.Tensor) -> torch.Tensor | None:
    """The gradient of a leaf. A copy of a module of TorchScript has parameters that are none."""
    return tensor.grad if tensor.is_leaf else None


def gradient_error(
    found: torch.Tensor, expected: torch.Tensor, vanishing: float = 1e-7
) -> tuple[str, float | None]:
    """What is wrong with the presence of a gradient, and its relative error.

    Args:
        vanishing: a gradient this small beside its tensor is rounding and nothing else. If that
            holds on both sides, there is no error to tell.
    """
    if not (found.is_leaf and expected.is_leaf):
        return "", None
    if (found.grad is None) != (expected.grad is None):
        return "only one side has a gradient", None
    if found.grad is None or expected.grad is None:
        return "", None
    if max(norm_of(found.grad), norm_of(expected.grad)) <= vanishing * (1 + norm_of(expected)):
        return "", None
    if found.grad.dtype == expected.grad.dtype and same_bits(found.grad, expected.grad):
        return "", 0.0  # also NaN
    return "", relative_error(found.grad, expected.grad)


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise VerificationError(f"The tied model differs from the oracle: {message}.")
