"""Give the variables of a `Problem` their values: closed forms where there are any, else L-BFGS."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence, Set
from typing import Any

import torch
from torch import Tensor, nn

from fxtie.errors import FxtieError
from fxtie.life.fit_problem import Component, Problem, numbers
from fxtie.rules.rule import Tie
from fxtie.words import natural_key, role

_HOWS = ("mean", "average", "stepwise", "lower")
_EXACT = 1e-10  # of the norm of all targets: a gradient below it is rounding
_ROUND = 10  # steps of L-BFGS between two looks at the loss
_FIXED = 1e-5  # of the loss: turns end when one gains less


def set_bases(problem: Problem, how: str) -> None:
    """Choose the values of the sources that are layers before anything else, and hold them.

    With "mean" nothing is chosen here: they are fitted along with all else.

    Raises:
        FxtieError: for a way that does not exist, or that these transforms don't allow.
    """
    if how not in _HOWS:
        raise FxtieError(f"how= is one of {', '.join(map(repr, _HOWS))}, not {how!r}.")
    if how == "mean":
        return
    if how == "stepwise":
        _set_stepwise(problem)
    for component in problem.components() if how == "average" else ():
        keys = component.variables & problem.own.keys()
        if keys and not exact_step(problem, component, keys):
            raise FxtieError(
                f"how='average' takes the mean of what the targets ask of a source, but "
                f"{component.ties[0].transform!r} of {component.ties[0].target!r} is not linear "
                f"with orthogonal columns, or reads several sources. Use how='mean'."
            )
    problem.held |= problem.own.keys()


@torch.no_grad()
def _set_stepwise(problem: Problem) -> None:
    """The sources of one role as layers at equal steps, from the first layer to the last."""
    trained = {problem.sources[key]: value for key, value in problem.own.items()}
    rows: dict[object, list[str]] = {}
    for name, value in (problem.trained | trained).items():
        rows.setdefault((role(name), value.shape, value.dtype), []).append(name)
    key_of = {name: key for key, name in problem.sources.items() if key in problem.own}
    for row in rows.values():
        row.sort(key=natural_key)
        sources = [name for name in row if name in key_of]
        for i, name in enumerate(sources):
            at = round(i * (len(row) - 1) / max(1, len(sources) - 1))
            value = trained[row[at]] if row[at] in trained else problem.trained[row[at]]
            problem.values[key_of[name]][1].copy_(value)


# -- closed forms ---------------------------------------------------------------------------------


def solve(problem: Problem, component: Component, moments: dict[str, Tensor], rounds: int) -> bool:
    """Solve a component in closed form, if one is known. Says whether it is solved."""
    if not problem.loss(component).item() > 0 or solve_jointly(problem, component, moments):
        return True
    learnable = learnables(problem, component)
    parameters = {id(p) for tie in learnable for p in tie.transform.parameters()}  # type: ignore[attr-defined]
    sources = component.variables - parameters
    if not sources <= problem.sources.keys():
        return False
    if sources and not exact_step(problem, component, sources):
        return False
    if not learnable:
        return True
    if not sources:
        start_learnable(problem, component)
        return is_stationary(problem, component)
    last = problem.loss(component).item()
    for _ in range(rounds):
        start_learnable(problem, component)
        if not exact_step(problem, component, sources):
            return False
        now = problem.loss(component).item()
        if last - now <= _FIXED * last:
            return True
        last = now
    return True


def exact_step(problem: Problem, component: Component, keys: Set[int]) -> bool:
    """One step along the gradient, as long as the curvature of each variable says.

    That is the solution where each tie reads one of the variables by a linear map with orthogonal
    columns of one length (identity, scale, transpose, flip, rot90, tile to a multiple), since the
    loss then curves alike in all directions. Where it is not, the values stay and the result is
    False.
    """
    if any(len(read & keys) > 1 for read in component.reads):
        return False
    gradient = _gradient(problem, component, keys)
    scale = _scale(problem, component)
    if all(g.norm().item() <= 1e-3 * _EXACT * scale for g in gradient.values()):
        return True
    old = {key: problem.values[key][1].detach().clone() for key in keys}
    with torch.no_grad():
        before = [numbers(value).clone() for _, _, value in problem.derived(component.ties)]
        for key, g in gradient.items():
            problem.values[key][1].sub_(g)
        curvature = {key: _square(gradient[key]) * (key in problem.own) for key in keys}
        derived = zip(problem.derived(component.ties), before, component.reads, strict=True)
        for (_, _, value), first, read in derived:
            for key in read & keys:
                curvature[key] += _square(numbers(value) - first)
        for key, g in gradient.items():
            length = _square(g) / (2 * curvature[key]) if curvature[key] else 0.0
            problem.values[key][1].copy_(old[key] - length * g)
    left = _gradient(problem, component, keys)
    if all(
        left[key].norm().item() <= 1e-9 * g.norm().item() + 1e-3 * _EXACT * scale
        for key, g in gradient.items()
    ):
        return True
    with torch.no_grad():
        for key, value in old.items():
            problem.values[key][1].copy_(value)
    return False


def is_stationary(problem: Problem, component: Component) -> bool:
    """Whether the loss has no slope."""
    limit = _EXACT * _scale(problem, component)
    gradient = _gradient(problem, component, component.variables)
    return all(g.norm().item() <= limit for g in gradient.values())


def _gradient(problem: Problem, component: Component, keys: Set[int]) -> dict[int, Tensor]:
    ordered = sorted(keys)
    values = [problem.values[key][1] for key in ordered]
    found = torch.autograd.grad(
        problem.loss(component), values, allow_unused=True, materialize_grads=True
    )
    return dict(zip(ordered, found, strict=True))


def _scale(problem: Problem, component: Component) -> float:
    """The norm of all that the component is to come close to."""
    squares = [_square(problem.trained[tie.target]) for tie in component.ties]
    squares += [_square(problem.own[key]) for key in component.variables & problem.own.keys()]
    return math.sqrt(sum(squares))


def _square(tensor: Tensor) -> float:
    return float(tensor.norm().item()) ** 2


def learnables(problem: Problem, component: Component) -> list[Tie]:
    """Ties whose learnable transform knows a closed form and serves them alone."""
    modules = [tie.transform for tie in problem.plan.ties if isinstance(tie.transform, nn.Module)]
    return [
        tie
        for tie in component.ties
        if hasattr(tie.transform, "fit_to")
        and isinstance(tie.transform, nn.Module)
        and sum(module is tie.transform for module in modules) == 1
        and all(id(p) in component.variables for p in tie.transform.parameters())
    ]


@torch.no_grad()
def start_learnable(problem: Problem, component: Component) -> None:
    """Learnable transforms that know a closed form get its values."""
    ties = learnables(problem, component)
    for tie, sources, _ in problem.derived(component.ties):
        if any(tie is one for one in ties):
            found = tie.transform.fit_to(problem.trained[tie.target], *sources)  # type: ignore[attr-defined]
            _set(problem, tie.transform, found)


def _set(problem: Problem, transform: Any, found: dict[str, Tensor]) -> None:
    parameters = dict(transform.named_parameters())
    for name, value in found.items():
        problem.values[id(parameters[name])][1].copy_(value)


@torch.no_grad()
def solve_jointly(problem: Problem, component: Component, moments: dict[str, Tensor]) -> bool:
    """Let transforms of one class that share their sources solve for all of them at once.

    Such a class has a method `fit_together(transforms, targets, sources, moments)`. It is asked on
    the first transform, and given all of them, their targets' trained values, the sources that they
    have in common, and for each target the second moment of its layer's inputs (the sum of
    `x x^T`), or None. It returns new values of the sources, and for each transform those of its
    parameters by name: with a basis as the source, the singular vectors of all targets together
    (basis sharing, arXiv:2410.03765).
    """
    first = component.ties[0].transform
    together: Any = getattr(first, "fit_together", None)
    transforms = [tie.transform for tie in component.ties]
    is_one_use = len(set(map(id, transforms))) == len(transforms)
    alike = all(type(t) is type(first) for t in transforms) and is_one_use
    shared = all(tie.sources == component.ties[0].sources for tie in component.ties)
    if together is None or not (isinstance(first, nn.Module) and alike and shared):
        return False
    sources = [problem.names.get(name).tensor for name in component.ties[0].sources]
    parameters = {id(p) for transform in transforms for p in transform.parameters()}  # type: ignore[attr-defined]
    if component.variables != parameters | set(map(id, sources)) or component.variables & set(
        problem.own
    ):
        return False
    targets = [problem.trained[tie.target] for tie in component.ties]
    weights = [moments.get(tie.target) for tie in component.ties]
    values = [problem.value_of(source) for source in sources]
    new_sources, new_parameters = together(transforms, targets, values, weights)
    for source, value in zip(sources, new_sources, strict=True):
        problem.values[id(source)][1].copy_(value)
    for transform, found in zip(transforms, new_parameters, strict=True):
        _set(problem, transform, found)
    return True


# -- iterations -----------------------------------------------------------------------------------


def minimise(problem: Problem, components: Sequence[Component], steps: int) -> None:
    """L-BFGS on the variables of these components, from where they are."""
    keys = sorted(set().union(*(component.variables for component in components)))
    optimizer: Any = torch.optim.LBFGS(
        [problem.values[key][1] for key in keys],
        max_iter=_ROUND,
        max_eval=250,
        tolerance_grad=0.0,
        tolerance_change=0.0,
        history_size=20,
        line_search_fn="strong_wolfe",
    )

    def loss() -> Tensor:
        return torch.stack([problem.loss(component) for component in components]).sum()

    def closure() -> Tensor:
        optimizer.zero_grad()
        now = loss()
        torch.autograd.backward(now)
        return now

    last = loss().item()
    rounds = -(-steps // _ROUND)
    with _progress(rounds * _ROUND) as advance:
        for _ in range(rounds):
            optimizer.step(closure)
            advance(_ROUND)
            now = loss().item()
            if last - now <= 1e-13 * last:
                break
            last = now


@contextlib.contextmanager
def _progress(steps: int) -> Iterator[Callable[[int], object]]:
    """A bar, if tqdm is installed. What it gives is called with the number of steps done."""
    try:
        from tqdm.auto import tqdm
    except ImportError:
        yield lambda done: None
        return
    with tqdm(total=steps, desc="fitting", unit="step", leave=False) as bar:
        yield bar.update
        bar.total = bar.n  # an early end is none of the failures that a notebook leaves in red
