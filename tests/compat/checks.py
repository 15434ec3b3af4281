"""What the compatibility tests compare a tied model with: the oracle, however the model is called.

In: an untied model, its tied form, and some way to call it. `oracle.py` compares models that are
called as they are; these here are compiled, called by functions, or under autocast.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from oracle import Vacuous, gradient_errors, oracle_run
from torch import nn
from torch.func import functional_call

import fxtie
from fxtie.life.verifying.oracle import backward, seed
from fxtie.life.verifying.values import relative_error


class Case(NamedTuple):
    """A net to try things with. `rules()` makes those that it is tied by."""

    model: nn.Module
    tied: nn.Module
    x: torch.Tensor | None = None
    rules: Callable[[], Any] | None = None

    @property
    def ties(self) -> Any:
        return fxtie.report(self.tied).plan.ties


def assert_equals_oracle(
    case: Case,
    call: Callable[[torch.Tensor], torch.Tensor] | None = None,
    *,
    train: bool,
    tolerance: float = 1e-5,
    context: Any = contextlib.nullcontext,
) -> None:
    """Outputs and gradients of one call, in the Euclidean norm, tensor by tensor.

    Args:
        call: how to run `case.tied`, if not as it is.
        tolerance: of gradients; that of outputs is never above 1e-5.
        context: what both sides' forwards run in.
    """
    model, ties = copy.deepcopy((case.model, case.ties))
    model.train(train)
    case.tied.train(train)
    case.tied.zero_grad()
    seed()
    with context():
        found = (case.tied if call is None else call)(case.x)
    backward([found])
    seed()
    with context():
        expected = oracle_run(model, ties, (case.x,), {})
    backward([expected])
    if not 1e-3 < expected.detach().std() < 1e3:
        raise Vacuous(f"outputs don't vary, or vary wildly: {expected.std()}")
    error = relative_error(found, expected)
    assert error < min(tolerance, 1e-5), f"outputs differ by {error:.1e}"
    errors = gradient_errors(model, case.tied, ties)
    far = {name: f"{error:.1e}" for name, error in errors.items() if not error < tolerance}
    assert not far, far


def parameters_and_buffers(model: nn.Module) -> tuple[dict[str, Any], dict[str, Any]]:
    """Both detached, as the transforms of `torch.func` want them."""
    return (
        {name: p.detach() for name, p in model.named_parameters()},
        dict(model.named_buffers()),
    )


def oracle_function(case: Case) -> Callable[..., torch.Tensor]:
    """As `functional_call` of the tied model: a function of its tensors, by name, and of inputs."""
    names = {module: name for name, module in case.tied.named_modules()}

    def function(values: dict[str, torch.Tensor], *args: Any) -> torch.Tensor:
        everything = dict(values)
        for tie in case.ties:
            sources = [everything[name] for name in tie.sources]
            if tie.transform in names:
                prefix = f"{names[tie.transform]}."
                own = {n.removeprefix(prefix): v for n, v in values.items() if n.startswith(prefix)}
                everything[tie.target] = functional_call(tie.transform, own, tuple(sources))
            else:
                everything[tie.target] = tie.transform(*sources)
        own = {name: v for name, v in everything.items() if not name.startswith("ties.")}
        return functional_call(case.model, own, args, tie_weights=False)

    return function


def assert_close(found: Any, expected: Any, tolerance: float = 1e-5) -> None:
    """Tensors by name, each in the Euclidean norm, and not all of them zero."""
    assert found.keys() == expected.keys(), found.keys() ^ expected.keys()
    errors = {name: relative_error(found[name], expected[name]) for name in expected}
    far = {name: f"{error:.1e}" for name, error in errors.items() if not error < tolerance}
    assert not far, far
    assert any(value.abs().max() > 1e-4 for value in expected.values()), "all vanish"
