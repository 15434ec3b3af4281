"""The oracle: what a tied model must compute, by `torch.func.functional_call`.

In: a model, its tied form, inputs. Out: how far they are apart. Called by users as `fxtie.verify`
and by the tests; it shares no code with the pass. The derived values are computed in plain Python
from the model's own tensors and swapped in for one call. Both sides run on copies of their own,
from the same random state.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import random
import sys
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn

from fxtie.errors import FxtieError
from fxtie.report import report


class VerificationError(FxtieError):
    """A tied model does not compute what it must."""


class Vacuous(VerificationError):
    """The comparison would prove nothing: outputs or gradients vanish, or don't vary."""


@dataclasses.dataclass
class Comparison:
    """How far a tied model is from the oracle.

    Attributes:
        output_errors: relative error of each output and buffer, by norm.
        gradient_errors: the same of the gradient of each stored tensor.
        output_norm: root mean square of all outputs.
        exact: whether these are equal bit for bit.
    """

    output_errors: dict[str, float]
    gradient_errors: dict[str, float]
    output_norm: float
    exact: bool

    @property
    def output_error(self) -> float:
        """The largest relative error of an output or buffer."""
        return max(self.output_errors.values())

    @property
    def gradient_error(self) -> float:
        """The largest relative error of a gradient."""
        return max(self.gradient_errors.values())


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
) -> Any:
    """The model's output with the ties' targets swapped for their derived values.

    Args:
        then: what to do with the output before the swap ends: the backward of a checkpointed
            forward runs it again.
    """
    values: dict[str, torch.Tensor] = {}
    for tie in ties:  # in the order of a plan: what is read comes first
        sources = [
            values[name] if name in values and name != tie.target else read(model, name)
            for name in tie.sources
        ]
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


def seed() -> None:
    torch.manual_seed(1234)
    random.seed(1234)
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed(1234)


def relative_error(found: torch.Tensor, expected: torch.Tensor) -> float:
    if found.shape != expected.shape or found.dtype != expected.dtype:
        return float("inf")
    if torch.equal(found, expected):  # infinities too
        return 0.0
    found, expected = found.detach().double(), expected.detach().double()
    norm = expected.norm().item()
    difference = (found - expected).norm().item()
    return difference / norm if norm else (0.0 if difference == 0 else float("inf"))


def backward(outputs: list[torch.Tensor]) -> None:
    """Gradients of a fixed random combination of the outputs."""
    generator = torch.Generator().manual_seed(7)
    losses = []
    for output in outputs:
        if output.requires_grad and output.numel():
            weights = torch.randn(output.shape, generator=generator, dtype=torch.float32)
            losses.append((output.float() * weights.to(output.device)).mean())
    if losses:
        torch.autograd.backward(torch.stack(losses).sum())


def compare(
    model: nn.Module,
    tied: nn.Module,
    ties: Any,
    args: Any,
    kwargs: Any = None,
    *,
    train: bool | None,
) -> Comparison:
    """Run both sides on copies and measure. `train=None` leaves the flags as they are."""
    kwargs = kwargs or {}
    model, ties = copy.deepcopy((model, tuple(ties)))  # learnable transforms go along
    tied = copy.deepcopy(tied)
    if train is not None:
        model.train(train)
        tied.train(train)
        for tie in ties:
            if isinstance(tie.transform, nn.Module):
                tie.transform.train(train)
    args_, kwargs_ = copy.deepcopy((args, kwargs))
    seed()
    found = tied(*args, **kwargs)
    seed()

    def then(output: Any) -> None:
        seed()
        backward(list(tensors(output)))

    expected = oracle_run(model, ties, args_, kwargs_, then)
    _require(type(found) is type(expected), f"{type(found)} is returned, not {type(expected)}")
    outputs, references = list(tensors(found)), list(tensors(expected))
    _require(len(outputs) == len(references) > 0, f"{len(outputs)} tensors are returned")
    output_errors = {
        f"output {i}": relative_error(*pair)
        for i, pair in enumerate(zip(outputs, references, strict=True))
    }
    together = torch.cat([r.detach().double().flatten() for r in references])
    seed()
    backward(outputs)
    gradient_errors = _gradient_errors(model, tied, ties)
    buffers = dict(model.named_buffers())
    for name, buffer in tied.named_buffers():
        if name in buffers:
            output_errors[f"the buffer {name}"] = relative_error(buffer, buffers[name])
            outputs.append(buffer)
            references.append(buffers[name])
    exact = all(map(torch.equal, outputs, references))
    norm = together.square().mean().sqrt().item()
    if not torch.isfinite(together).all():
        raise Vacuous("outputs are not finite")
    if norm < 1e-6 or (together.numel() > 1 and together.std().item() < 1e-6 * norm):
        raise Vacuous(
            f"outputs are near zero or constant (norm {norm:.1e}), so that nothing is proved. Use "
            f"values with which they keep their scale: trained ones, or some forwards in train(), "
            f"which set the statistics of batch norms."
        )
    return Comparison(output_errors, gradient_errors, norm, exact)


def _gradient_errors(model: nn.Module, tied: nn.Module, ties: Any) -> dict[str, float]:
    """Relative error of each gradient. Every stored tensor must be there on both sides."""
    expected = dict(model.named_parameters(remove_duplicate=False))
    found = dict(tied.named_parameters(remove_duplicate=False))
    dropped = {slot(model, tie.target) for tie in ties if tie.sources != (tie.target,)}
    missing = {name for name in expected if slot(model, name) not in dropped} - set(found)
    _require(not missing, f"stored tensors are missing: {', '.join(sorted(missing))}")
    # Learnable transforms, in the order in which they were registered.
    learned = {id(m): m for tie in ties if isinstance(m := tie.transform, nn.Module)}
    references = [p for m in learned.values() for p in m.parameters()]
    own = [name for name in found if name.startswith("ties.")]
    if references and len(own) == len(references):
        expected |= dict(zip(own, references, strict=True))
    errors, alive = {}, 0.0
    for name, parameter in found.items():
        reference = expected.get(name)
        # A copy of a module of TorchScript has parameters that can't have gradients.
        if reference is None or not (parameter.is_leaf and reference.is_leaf):
            continue
        _require(
            (parameter.grad is None) == (reference.grad is None),
            f"only one side has a gradient of {name}",
        )
        if reference.grad is not None and parameter.grad is not None:
            alive += reference.grad.double().norm().item()
            # A gradient that vanishes beside its tensor is rounding and nothing else.
            if reference.grad.norm() > 1e-7 * (1 + reference.detach().norm()):
                errors[name] = relative_error(parameter.grad, reference.grad)
    if alive == 0:
        raise Vacuous("all gradients vanish")
    return errors or {"(none)": 0.0}


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise VerificationError(f"The tied model differs from the oracle: {message}.")


def verify(model: nn.Module, tied: nn.Module, *args: Any, **kwargs: Any) -> None:
    """Check a tied model on inputs of yours: outputs and gradients, in train and in eval.

    Both sides run on copies, from the same random state. All random generators are left as they
    were.

    Args:
        model: the model that was tied.
        tied: the result of `transform`.
        *args, **kwargs: inputs of the forward.

    Raises:
        VerificationError: naming the first tensor that differs. Outputs must be equal bit for bit,
            and gradients to rounding: a relative error of 1e-5, or 1e-12 for a model in float64.
            Its subclass `Vacuous`, if outputs or gradients are zero, constant or not finite:
            nothing is proved then.
        FxtieError: if `tied` is not a tied model.

    Example:
        >>> import fxtie
        >>> net = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4))
        >>> tied = fxtie.transform(net, fxtie.Rule("2", "0", torch.square))
        >>> fxtie.verify(net, tied, torch.randn(3, 4))
    """
    tied = getattr(tied, "_orig_mod", tied)
    made = report(tied)
    double = any(p.dtype == torch.float64 for p in model.parameters())
    tolerance = 1e-12 if double else 1e-5
    for train in (False, True):
        with same_random_states():
            found = compare(model, tied, made.plan.ties, args, kwargs, train=train)
        mode = "train" if train else "eval"
        for name, error in found.output_errors.items():
            _require(error == 0, f"{name} in {mode}, by {error:.1e}")
        for name, error in found.gradient_errors.items():
            _require(error < tolerance, f"the gradient of {name} in {mode}, by {error:.1e}")
