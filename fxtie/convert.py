"""Between tied and plain: use rules once, or turn derived tensors back into stored ones.

In: a model and rules, or a tied model. Out: plain models and state_dicts. Called by users as
`fxtie.initialize`, `fxtie.materialize` and `fxtie.untied_state_dict`.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn

from fxtie.names import Names
from fxtie.plan import Plan, plan
from fxtie.rules import Rules
from fxtie.runtime.copied import PathCopy, tied_model
from fxtie.runtime.copying import copy_paths
from fxtie.runtime.tied import TiedModule, Ties


@torch.no_grad()
def initialize(model: nn.Module, rules: Rules | Plan) -> Plan:
    """Set the targets' values by the rules, once and in place. The layers stay independent.

    Args:
        model: any module; the targets' values are overwritten, in the order of the plan.
        rules: a `Rule`, a `Tie`, several of them, or a `Plan` made for this model.

    Returns:
        The plan that was carried out.

    Raises:
        PlanError: if the rules don't fit the model; nothing is changed then.

    Example:
        >>> import fxtie
        >>> net = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
        >>> _ = fxtie.initialize(net, fxtie.Rule("1", "0", weight=torch.neg))
        >>> torch.equal(net[1].weight, -net[0].weight)
        True
        >>> len(list(net.parameters()))
        4
    """
    checked = rules if isinstance(rules, Plan) else plan(model, rules)
    names = Names(model)
    for name, module in checked.modules.items():
        names.add_module(f"ties.{name}", module)
    slots = {tie: names.get(tie.target) for tie in checked.ties}
    for tie in checked.ties:
        sources = [names.get(name).tensor for name in tie.sources]
        slots[tie].tensor.copy_(tie.transform(*sources))
    return checked


@torch.no_grad()
def materialize(tied: nn.Module) -> nn.Module:
    """A plain model again: real layers, fresh tensors, the original classes and names.

    Args:
        tied: the result of `transform`, compiled or not.

    Returns:
        A module of the original class whose derived tensors are stored ones, with the values of
        now. Its state_dict loads into the untied model. It shares nothing with `tied` and needs
        nothing of fxtie; its outputs equal those of `tied` bit for bit.

    Raises:
        FxtieError: if `tied` is not a tied model.

    Example:
        >>> import fxtie
        >>> net = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
        >>> plain = fxtie.materialize(fxtie.transform(net, fxtie.Rule("1", "0")))
        >>> type(plain), list(plain.state_dict()) == list(net.state_dict())
        (<class 'torch.nn.modules.container.Sequential'>, True)
    """
    tied = tied_model(tied)
    ours = [module for module in tied.modules() if isinstance(module, PathCopy)]
    copies = copy_paths(tied, ours)
    for module in ours:
        if isinstance(module, TiedModule):
            _store(module, copies[module])
    root = copies[tied]
    if isinstance(root._modules.get("ties"), Ties):
        del root._modules["ties"]
    return copy.deepcopy(root)


def _store(owner: TiedModule, plain: nn.Module) -> None:
    """Put the derived values of `owner` into its plain copy, each in its old place."""
    for attr, derived in owner._fxtie_derived.items():
        value = getattr(owner, attr).detach().clone()
        if derived.requires_grad is None:
            plain._buffers[attr] = value
        else:
            plain._parameters[attr] = nn.Parameter(value, derived.requires_grad)
    members = plain.__dict__
    members.pop("_fxtie_derived", None)
    parameters, buffers = members.pop("_fxtie_order", ((), ()))
    _reorder(plain._parameters, parameters)
    _reorder(plain._buffers, buffers)
    if isinstance(plain, nn.RNNBase):
        plain._init_flat_weights()


def _reorder(members: dict[str, Any], order: tuple[str, ...]) -> None:
    for name in order:
        members[name] = members.pop(name)


def untied_state_dict(tied: nn.Module) -> dict[str, torch.Tensor]:
    """The state_dict of the untied model: with the derived tensors' values of now.

    Args:
        tied: the result of `transform`, compiled or not.

    Returns:
        Fresh tensors under the original names, which load into the untied model.

    Raises:
        FxtieError: if `tied` is not a tied model.

    Example:
        >>> import fxtie
        >>> net = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
        >>> tied = fxtie.transform(net, fxtie.Rule("1", "0"))
        >>> net.load_state_dict(fxtie.untied_state_dict(tied))
        <All keys matched successfully>
    """
    return materialize(tied).state_dict()
