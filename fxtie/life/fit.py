"""`fit`: the values of sources and learnable transforms that come closest to a trained model.

This is how a trained model gets tied without starting over.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from torch import nn

from fxtie.errors import FxtieError
from fxtie.life.fit_outputs import calls_of, input_moments, output_change
from fxtie.life.fit_problem import Problem
from fxtie.life.fit_solvers import minimise, set_bases, solve, start_learnable
from fxtie.planning.plan import Plan, plan
from fxtie.rules.rule import Rules
from fxtie.shown import Printed
from fxtie.words import count, list_tensors

_HALF = 0.5  # of its norm: a layer that loses more is another layer


@dataclass(frozen=True, repr=False)
class Fit(Printed):
    """How far the derived tensors are from the targets' trained values. `print` shows a table.

    Attributes:
        plan: the ties; give it to `transform`, so that learnable transforms keep what they learned.
        before: relative error `|derived - trained| / |trained|` by target, with the old sources.
        after: the same with the new ones.
        output_before: with `inputs`, the relative change of the model's output by tying it with the
            old sources.
        output_after: the same with the new ones.
    """

    plan: Plan
    before: dict[str, float]
    after: dict[str, float]
    output_before: float | None = None
    output_after: float | None = None

    def summary(self) -> str:
        """How many targets, and the largest errors, as one line."""
        largest = (
            f"{max(errors.values(), default=0.0):.2%}" for errors in (self.before, self.after)
        )
        return f"{count(len(self.after), 'target')}, largest error {' -> '.join(largest)}"

    def verdict(self) -> str:
        """Which targets lose more than half of their norm, and what becomes of the output."""
        lost = [name for name, error in self.after.items() if error > _HALF]
        if lost:
            told = (
                f"{len(lost)} of {len(self.after)} targets lose more than half of their norm: "
                f"{list_tensors(lost)}."
                + (" No other does." if len(lost) < len(self.after) else "")
            )
        else:
            told = "No target loses more than half of its norm."
        if self.output_before is None or self.output_after is None:
            return told
        return (
            f"{told}\nThe model's output changes by {self.output_after:.2%}; "
            f"without the fit by {self.output_before:.2%}."
        )


def fit(
    model: nn.Module,
    rules: Rules | Plan,
    *,
    steps: int = 100,
    how: str = "mean",
    inputs: Iterable[Any] | None = None,
) -> Fit:
    """Choose the sources' values so that the derived tensors come closest to the trained ones.

    Minimises the sum of squares of `derived - trained` over all targets and, since most sources are
    layers themselves, of `source - trained` over the sources. Ties that have no source in common
    are solved apart:

    * Linear transforms with orthogonal columns (identity, scale, transpose, flip, rot90): in closed
      form. For the identity that is the mean of the source and its targets.
    * Learnable transforms with a closed form (`fit_to`: `LowRank`, by the singular value
      decomposition of the difference, Eckart and Young 1936): in turns with that of the sources, to
      a fixed point.
    * Transforms that solve for all of their targets at once (`fit_together`): by that.
    * All others: L-BFGS, in float64.

    Frozen parameters (`requires_grad=False`) and buffers stay as they are: what is derived from
    them is fitted through the others. Complex tensors are fitted in complex128.

    Args:
        model: a trained model. Those of its sources that require gradients get their new values in
            place; nothing else changes.
        rules: a `Rule`, a `Tie`, several of them, or a `Plan` made for this model.
        steps: the most steps of L-BFGS, and the most turns. A progress bar shows those of L-BFGS if
            `tqdm` is installed.
        how: what the sources become. "mean": what fits best, along with learnable transforms. The
            others, of Bae et al., "Relaxed Recursive Transformers", arXiv:2410.20672, choose the
            sources first and then fit the learnable transforms to what is left. "average": the mean
            of a source and its targets. "lower": the sources as they are. "stepwise": the sources
            of one role as layers at equal steps from the first to the last.
        inputs: batches, to tell how much the model's output changes: a list of tensors, of tuples
            (arguments), or of dicts (arguments by name). They run in eval mode. `fit_together` gets
            the second moments of what they give to linear layers.

    Returns:
        The relative error of each target, before and after, and the plan to go on with.

    Raises:
        PlanError: if the rules don't fit the model; nothing is changed then.
        FxtieError: if there is nothing to choose: no source, and no parameter of a learnable
            transform, is a floating-point or complex parameter that requires gradients. If there is
            no such `how`, or the transforms don't allow it, or `inputs` are no batches.

    Example:
        >>> import fxtie, torch
        >>> net = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
        >>> mean = (net[0].weight + net[1].weight) / 2
        >>> found = fxtie.fit(net, fxtie.Rule("1", "0"))
        >>> torch.allclose(net[0].weight, mean, atol=1e-6)
        True
        >>> tied = fxtie.transform(net, found.plan)
    """
    problem = Problem(model, rules if isinstance(rules, Plan) else plan(model, rules))
    if not problem.values:
        raise FxtieError(problem.nothing_to_fit())
    calls = None if inputs is None else calls_of(inputs)
    moments = {} if calls is None else input_moments(model, problem.plan, calls)
    trained = {problem.sources[key]: problem.values[key][0].detach().clone() for key in problem.own}
    before = problem.errors()
    changes = [] if calls is None else [output_change(model, problem.plan, calls, trained)]
    set_bases(problem, how)
    rest = [one for one in problem.components() if not solve(problem, one, moments, steps)]
    for component in rest:
        start_learnable(problem, component)
    if rest:
        minimise(problem, rest, steps)
    after = problem.errors()
    problem.write_back()
    if calls is not None:
        changes.append(output_change(model, problem.plan, calls, trained))
    return Fit(problem.plan, before, after, *changes)
