"""`fit`: the values of the sources that bring the derived tensors closest to a trained model.

In: a trained model and rules. Out: new values of its sources and of learnable transforms, and how
far each target is then: how a trained model gets tied without starting over.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from fxtie.errors import FxtieError
from fxtie.planning.names import Names
from fxtie.planning.plan import Plan, plan
from fxtie.rules.rule import Rules
from fxtie.shown import Printed
from fxtie.tied.tied_module import relative_distance
from fxtie.transforms.parts import Part, module_of


@dataclass(frozen=True)
class Fit(Printed):
    """How far the derived tensors are from the targets' trained values. `print` shows a table.

    Attributes:
        plan: the ties; give it to `transform`, so that learnable transforms keep what they learned.
        before: relative error `|derived - trained| / |trained|` by target, with the old sources.
        after: the same with the new ones.
    """

    plan: Plan
    before: dict[str, float]
    after: dict[str, float]


def fit(model: nn.Module, rules: Rules | Plan, *, steps: int = 100) -> Fit:
    """Choose the sources' values so that the derived tensors come closest to the trained ones.

    Minimises the sum of squares of `derived - trained` over all targets and, since most sources are
    layers themselves, of `source - trained` over the sources. For the identity that is the mean of
    the source and its targets. Learnable transforms that know a closed form (`fit_to`: `LowRank` by
    the singular value decomposition of the difference, Eckart and Young 1936) begin there. Then
    L-BFGS, in float64, does the rest; where all transforms are linear with orthogonal columns up to
    scale (identity, scale, transpose, flip, rot90) its first steps reach the solution, to rounding.

    Frozen parameters (`requires_grad=False`) and buffers stay as they are: what is derived from
    them is fitted through the others. Complex tensors are fitted in complex128.

    Args:
        model: a trained model. Those of its sources that require gradients get their new values in
            place; nothing else changes.
        rules: a `Rule`, a `Tie`, several of them, or a `Plan` made for this model.
        steps: the most steps of L-BFGS. A progress bar shows them if `tqdm` is installed.

    Returns:
        The relative error of each target, before and after, and the plan to go on with.

    Raises:
        PlanError: if the rules don't fit the model; nothing is changed then.
        FxtieError: if there is nothing to choose: no source, and no parameter of a learnable
            transform, is a floating-point or complex parameter that requires gradients.

    Example:
        >>> import fxtie
        >>> net = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
        >>> mean = (net[0].weight + net[1].weight) / 2
        >>> found = fxtie.fit(net, fxtie.Rule("1", "0"))
        >>> torch.allclose(net[0].weight, mean, atol=1e-6)
        True
        >>> tied = fxtie.transform(net, found.plan)
    """
    problem = _Problem(model, rules if isinstance(rules, Plan) else plan(model, rules))
    if not problem.values:
        raise FxtieError(problem.nothing_to_fit())
    before = problem.errors()
    problem.start_learnable()
    if problem.loss().item() > 0:
        problem.minimise(steps)
    after = problem.errors()
    problem.write_back()
    return Fit(problem.plan, before, after)


class _Problem:
    """Variables in float64, and how far what is derived from them is from the trained values."""

    def __init__(self, model: nn.Module, plan: Plan) -> None:
        self.plan = plan
        self.names = Names(model)
        for name, module in plan.modules.items():
            self.names.add_module(f"ties.{name}", module)
        targets = {self.names.get(tie.target).key for tie in plan.ties if not tie.is_self_derived}
        self.trained = {
            tie.target: _numbers(self.names.get(tie.target).tensor.detach()) for tie in plan.ties
        }
        # What may move: stored sources, and the parameters of learnable transforms.
        self.frozen: list[str] = []
        self.values: dict[int, tuple[nn.Parameter, torch.Tensor]] = {}
        self.own: list[tuple[int, torch.Tensor]] = []
        for tie in plan.ties:
            for name in tie.sources:
                slot = self.names.get(name)
                parameter = slot.owner._parameters.get(slot.attr)
                if slot.key in targets or parameter is None or id(parameter) in self.values:
                    continue
                is_own = not (name.startswith("ties.") or name == tie.target)
                if self.add(name, parameter) and is_own:
                    self.own.append((id(parameter), _wide(parameter.detach()).clone()))
        for prefix, module in plan.modules.items():
            for name, parameter in module.named_parameters():
                self.add(f"ties.{prefix}.{name}", parameter)

    def add(self, name: str, parameter: nn.Parameter) -> bool:
        if not (parameter.is_floating_point() or parameter.is_complex()):
            return False
        if not parameter.requires_grad:
            self.frozen.append(name)
            return False
        if id(parameter) not in self.values:
            value = _wide(parameter.detach()).clone().requires_grad_()
            self.values[id(parameter)] = (parameter, value)
        return True

    def nothing_to_fit(self) -> str:
        if not self.frozen:
            return "There is nothing to fit: no source is a floating-point or complex parameter."
        names = list(dict.fromkeys(self.frozen))
        more = f" and {len(names) - 5} more" if len(names) > 5 else ""
        return (
            f"There is nothing to fit: all sources are frozen (requires_grad=False): "
            f"{', '.join(map(repr, names[:5]))}{more}. Call requires_grad_() on those that may "
            f"change."
        )

    def value_of(self, tensor: torch.Tensor) -> torch.Tensor:
        """The variable that stands for a tensor, or its value if it doesn't move."""
        if id(tensor) in self.values:
            return self.values[id(tensor)][1]
        return _wide(tensor.detach())

    def derived(self) -> Iterator[tuple[str, Any, list[torch.Tensor], torch.Tensor]]:
        """Target, transform, sources and value of each tie, in order."""
        found: dict[tuple[int, str], torch.Tensor] = {}
        for tie in self.plan.ties:
            sources = [self.read(name, found, name == tie.target) for name in tie.sources]
            value = self.apply(tie.transform, sources)
            found[self.names.get(tie.target).key] = value
            yield tie.target, tie.transform, sources, value

    def read(self, name: str, found: Mapping[Any, torch.Tensor], own: bool) -> torch.Tensor:
        slot = self.names.get(name)
        if slot.key in found and not own:
            return found[slot.key]
        return self.value_of(slot.tensor)

    def apply(self, transform: Callable[..., Any], sources: list[torch.Tensor]) -> torch.Tensor:
        module = module_of(transform)
        if module is None:
            return transform(*sources)  # type: ignore[no-any-return]
        tensors = (*module.named_parameters(), *module.named_buffers())
        values = {name: self.value_of(tensor) for name, tensor in tensors}
        result: Any = torch.func.functional_call(module, values, tuple(sources))
        return result[transform.index] if isinstance(transform, Part) else result  # type: ignore[no-any-return]

    def loss(self) -> torch.Tensor:
        terms = [
            _square(_numbers(value) - self.trained[name]) for name, _, _, value in self.derived()
        ]
        terms += [_square(self.values[key][1] - trained) for key, trained in self.own]
        return torch.stack(terms).sum()

    @torch.no_grad()
    def errors(self) -> dict[str, float]:
        return {
            name: relative_distance(value, self.trained[name])
            for name, _, _, value in self.derived()
        }

    @torch.no_grad()
    def start_learnable(self) -> None:
        """Learnable transforms that know a closed form start there, if they serve one tie only."""
        modules = [tie.transform for tie in self.plan.ties if isinstance(tie.transform, nn.Module)]
        for name, transform, sources, _ in self.derived():
            closed_form = getattr(transform, "fit_to", None)
            if closed_form is not None and sum(m is transform for m in modules) == 1:
                parameters = dict(transform.named_parameters())
                if any(id(p) not in self.values for p in parameters.values()):
                    continue  # it is for all of them together
                for key, value in closed_form(self.trained[name], *sources).items():
                    self.values[id(parameters[key])][1].copy_(value)

    def minimise(self, steps: int) -> None:
        variables = [value for _, value in self.values.values()]
        optimizer: Any = torch.optim.LBFGS(
            variables,
            max_iter=10,
            max_eval=250,
            tolerance_grad=0.0,
            tolerance_change=0.0,
            history_size=20,
            line_search_fn="strong_wolfe",
        )

        def closure() -> torch.Tensor:
            optimizer.zero_grad()
            loss = self.loss()
            torch.autograd.backward(loss)
            return loss

        last = self.loss().item()
        for _ in _progress(-(-steps // 10)):
            optimizer.step(closure)
            now = self.loss().item()
            if last - now <= 1e-13 * last:
                break
            last = now

    @torch.no_grad()
    def write_back(self) -> None:
        for parameter, value in self.values.values():
            parameter.copy_(value)


def _wide(tensor: torch.Tensor) -> torch.Tensor:
    """In double precision; an index or a mask stays what it is."""
    if tensor.is_complex():
        return tensor.to(torch.complex128)
    return tensor.double() if tensor.is_floating_point() else tensor


def _numbers(tensor: torch.Tensor) -> torch.Tensor:
    """In double precision, whatever it is."""
    return _wide(tensor) if tensor.is_complex() else tensor.double()


def _square(difference: torch.Tensor) -> torch.Tensor:
    return (difference * difference.conj()).real.sum()


def _progress(rounds: int) -> Any:
    try:
        from tqdm import tqdm
    except ImportError:
        return range(rounds)
    return tqdm(range(rounds), desc="fitting", unit="10 steps", leave=False)
