"""Tying as a pass of a pass manager."""

from __future__ import annotations

import torch
from torch import nn
from torch.fx.passes.infra.pass_base import PassResult

from fxtie.capturing.transform import transform
from fxtie.errors import FxtieError
from fxtie.planning.resolve import Resolver
from fxtie.rules.rule import Rules, as_rules
from fxtie.tied.copy_paths import copy_paths
from fxtie.tied.path_copy import PathCopy
from fxtie.tied.tied_module import derived_tensors


class TiePass:
    """Tie tensors by rules, as a pass: `fxtie.transform` where passes run one after the other.

    Args:
        rules: a `Rule`, a `Tie`, or several of them.

    Calling it with a module returns a `PassResult`: the tied model and `modified=True`, or the
    module itself and `modified=False` if all that the rules tie is derived already. So a pass
    manager that runs its passes until nothing changes comes to an end.

    Raises:
        PlanError: if the rules don't fit the module.
        FxtieError: if a part of what the rules tie is derived already.

    Notes:
        * A plain module and a GraphModule that another pass made are taken alike. Names are those
          of the module that the pass gets.
        * A pass that traces again, as `torch.fx.experimental.optimization.fuse` does, makes plain
          nodes of the derivations. The result computes the same but is no tied model any more:
          `fxtie.report` doesn't know it, and tying it again finds no targets.

    Example:
        >>> import fxtie
        >>> from torch.fx.passes.infra.pass_manager import PassManager
        >>> net = torch.fx.symbolic_trace(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)))
        >>> passes = PassManager([TiePass(fxtie.Rule("1", "0", weight=torch.square))])
        >>> result = passes(net)
        >>> result.modified, sorted(result.graph_module.state_dict())
        (True, ['0.bias', '0.weight'])
        >>> passes(result.graph_module).modified
        False
    """

    def __init__(self, rules: Rules) -> None:
        self.rules = as_rules(rules)

    def __call__(self, module: nn.Module) -> PassResult:
        derived = {name for name, _, _ in derived_tensors(module)}
        targets = self._targets(module) if derived else set()
        done = targets & derived
        if done and done == targets:
            return PassResult(module, False)
        if done:
            raise FxtieError(
                f"A part of what these rules tie is derived already: {', '.join(sorted(done))}. "
                f"Give the other rules a TiePass of their own."
            )
        return PassResult(transform(module, self.rules), True)

    def __repr__(self) -> str:
        return f"TiePass({list(self.rules)!r})"

    def _targets(self, tied: nn.Module) -> set[str]:
        """What the rules name in the untied form of a tied model."""
        resolver = Resolver(_untied(tied))
        for rule in self.rules:
            resolver.resolve(rule)
        return {tie.target for tie, _, _ in resolver.resolved.values()}


def _untied(tied: nn.Module) -> nn.Module:
    """The untied model with its names but not its values: nothing is computed or copied."""
    copies = copy_paths(tied, [m for m in tied.modules() if isinstance(m, PathCopy)])
    for name, owner, derived in derived_tensors(tied):
        if not derived.stored:
            attr = name.rpartition(".")[2]
            value = nn.Parameter(torch.empty(derived.shape, device="meta"), requires_grad=False)
            copies[owner]._parameters[attr] = value
    return copies[tied]
