"""`transform`: rules + model -> tied model.

In: a model and rules, or a checked `Plan`. Out: the tied model.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any, Literal, TypeVar, overload

import torch
from torch import nn
from torch.export import ExportedProgram

from fxtie.capturing.capture import Capture
from fxtie.errors import CaptureError
from fxtie.planning.plan import Plan, plan
from fxtie.rules.rule import Rules
from fxtie.tied.state import state_of

M = TypeVar("M", bound=nn.Module)


@overload
def transform(
    model: M,
    rules: Rules | Plan,
    *,
    compile: Literal[False] = False,
    recompute: bool = False,
    strict: bool = False,
    trace: bool = True,
) -> M: ...
@overload
def transform(
    model: nn.Module,
    rules: Rules | Plan,
    *,
    compile: bool | dict[str, Any],
    recompute: bool = False,
    strict: bool = False,
    trace: bool = True,
) -> nn.Module: ...
@overload
def transform(
    model: ExportedProgram,
    rules: Rules | Plan,
    *,
    compile: Literal[False] = False,
    recompute: Literal[False] = False,
    strict: bool = False,
    trace: bool = True,
) -> ExportedProgram: ...
def transform(
    model: nn.Module | ExportedProgram,
    rules: Rules | Plan,
    *,
    compile: bool | dict[str, Any] = False,
    recompute: bool = False,
    strict: bool = False,
    trace: bool = True,
) -> nn.Module | ExportedProgram:
    """Tie tensors of a model by rules, as a graph.

    Args:
        model: any module, or a program of `torch.export`, whose tensors are tied by their names in
            its state_dict. It is not changed and goes on working.
        rules: a `Rule`, a `Tie`, several of them, or a `Plan` made for this model.
        compile: `True`, or a dict of `torch.compile`'s arguments, returns the compiled module.
        recompute: compute derived tensors again in the backward pass instead of storing them, and
            gather again the sources that FSDP2 shards. Less memory for more time. For eager
            training: a compiled model decides by itself, and `torch.func.grad` doesn't go through
            it. Left out are derivations by modules and by random numbers, and forwards that were
            kept, if they are inside of no graph.
        trace: make graphs of the forwards. With False, all of them stay as you wrote them and read
            derived tensors as attributes: if you want no graph, or only use `torch.compile`, which
            sees through attributes by itself.
        strict: raise where a forward can't be captured, instead of keeping it as it is. A program
            is captured already.

    Returns:
        The tied model. Its class is a subclass of the model's own, and of `torch.fx.GraphModule` if
        the root's forward could be captured; then `graph` and `code` show it. All tensors that are
        not derived are the model's own objects, and so are the modules that lead to no target and
        to no source among torch's own layers.

        Of a program: a tied one (see `fxtie.pipelines.exported`). The targets are no
        inputs of its graph and not in its state_dict.

    Raises:
        PlanError: if the rules don't fit the model.
        CaptureError: with `strict=True`, naming the kept modules with file, line and reason.

    Notes:
        * Derived tensors are no parameters any more and have no key in the state_dict; the other
          keys keep their names. A checkpoint of the untied model loads.
        * Training and evaluation are captured both; `.train()` and `.eval()`, of the whole or of a
          part, choose between them.
        * Reading `tied.conv_2.weight` gives the derived value. It is made for that read: what
          changes it in place (`nn.init.zeros_`) is lost. Change the sources instead.
        * What holds none of the modules on the way to a target is shared with `model`: tensors,
          other modules, lists and plain objects. Use `copy.deepcopy` for two independent models.
          Of a model of transformers, which hooks and replaces modules in use, none are shared.
        * A graph holds for what the trace has read: attributes, globals, modules. After a change
          of these, calls run the forward as written, which is right and slower;
          `fxtie.report(tied).missed` counts them.

    Example:
        >>> import fxtie, torch
        >>> net = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))
        >>> tied = fxtie.transform(net, fxtie.Rule("2", "0", weight=torch.square))
        >>> sorted(tied.state_dict())
        ['0.bias', '0.weight']
        >>> x = torch.ones(1, 4)
        >>> expected = net[0](x).relu() @ net[0].weight.square().T + net[0].bias
        >>> torch.testing.assert_close(tied(x), expected)
    """
    tied: nn.Module | ExportedProgram
    tied = tie_model(model, rules, Options(compile, recompute, strict, trace))
    return tied


@dataclass(frozen=True)
class Options:
    """The keyword arguments of `transform`."""

    compile: bool | dict[str, Any]
    recompute: bool
    strict: bool
    trace: bool


@functools.singledispatch
def tie_model(model: Any, rules: Rules | Plan, options: Options) -> Any:
    """`transform`, by what is tied: `pipelines/exported.py` registers exported programs."""
    checked = rules if isinstance(rules, Plan) else plan(model, rules)
    capture = Capture(model, checked, trace=options.trace, recompute=options.recompute)
    if checked is rules:
        capture.check_plan()
    result = capture.run()
    kept = state_of(result).report.kept
    if options.strict and kept:
        listed = "\n".join(f"  {k}" for k in kept)
        raise CaptureError(f"Modules whose forward can't be captured:\n{listed}")
    if options.compile:
        arguments = options.compile if isinstance(options.compile, dict) else {}
        return torch.compile(result, **arguments)
    return result
