"""Verify a tied model: run it beside the oracle and compare everything after each call."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from fxtie.capturing.report import report
from fxtie.errors import FxtieError
from fxtie.life.verifying.oracle import dropped, gradient_of, same_random_states, slot
from fxtie.life.verifying.results import Vacuous, Verification, VerificationError, VerifiedCall
from fxtie.life.verifying.rounds import Pair, Round
from fxtie.life.verifying.sides import CALLS, Side
from fxtie.planning.lowering import Lowered

_REACHED = (
    "by something that copy.deepcopy does not copy, such as a closure, a weak reference, or a "
    "module of TorchScript"
)


def verify(
    model: nn.Module,
    tied: nn.Module,
    *args: Any,
    autocast: torch.dtype | None = None,
    **kwargs: Any,
) -> Verification:
    """Check a tied model on inputs of yours, against `torch.func.functional_call`.

    The tied model and the oracle (the untied model with the derived tensors swapped in) run on
    copies, in eval and then in train. In each mode the same copies are called three times: twice
    with gradients, so that what one call leaves behind must serve the next, and once under
    `torch.no_grad()`. After each call, these must agree:

    * outputs: structure, types and values, tensors bit for bit;
    * gradients of parameters, of learnable transforms and banks, and of inputs, up to rounding: a
      relative error of 1e-5, 1e-12 in float64, four machine epsilons in half precision or autocast;
    * the inputs, which a forward may change in place;
    * parameters, buffers, and plain attributes of modules, with all that these hold: counters,
      lists, dicts, objects.

    Args:
        model: the model that was tied.
        tied: the result of `transform`. Of a compiled one, the module inside is verified.
        *args: inputs of the forward. Each call gets its own copies.
        autocast: `torch.bfloat16` or `torch.float16`, to run each forward under `torch.autocast` on
            the devices of model and inputs. Never passed to the forward: if that has an argument
            of this name, pass it by position.
        **kwargs: named inputs of the forward.

    Returns:
        One row per call: what was compared, how many tensors, the largest errors. `print` shows a
        table.

    Raises:
        VerificationError: naming the first difference, its mode and call. Also if a copy of a model
            changes the original, which it may reach through a closure. The subclass `Vacuous` says
            that nothing is proved: outputs or gradients are zero, constant or not finite, or two
            runs of the oracle differ.
        FxtieError: if `tied` is not a tied model, or `autocast` is not one of these.

    Notes:
        * The oracle takes from the pass the ties of its plan: their order, the names of targets
          and sources, and the transforms as bound to their targets. A fault there shows on both
          sides and is not found. Nor is one in state outside of the modules, such as a global.
        * A tied model that was copied or pickled has lost its lambdas and local functions. For
          these the oracle runs the lowered graphs of the pass, and the result names them.
        * `model`, `tied`, their gradients and modes, and all random generators stay as they are.
        * Attributes that differ before the first call, or between two runs of the oracle (a time,
          say), are not compared, and the result names them. Nor are those of learnable transforms,
          since how often these run is not promised.
        * If a later call of the oracle raises, as a forward that needs gradients does under
          `no_grad`, the tied model must raise an error of the same type; the result says so.
        * Of objects that pickle cannot take apart, such as a lock, only the class is compared.
        * Needs memory for a copy of each model, and for one of each side while they run.

    Example:
        >>> import fxtie
        >>> net = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 4))
        >>> tied = fxtie.transform(net, fxtie.Rule("2", "0", torch.square))
        >>> proof = fxtie.verify(net, tied, torch.randn(3, 4), autocast=torch.bfloat16)
        >>> print(proof)  # doctest: +ELLIPSIS
        mode    call                            compared ...
        >>> all(call.output_error == 0 for call in proof.calls)
        True
    """
    if autocast not in (None, torch.bfloat16, torch.float16):
        raise FxtieError(
            f"autocast= is an argument of verify, and torch.bfloat16 or torch.float16, not "
            f"{autocast!r}. Pass a forward's argument of this name by position."
        )
    verifier = _Verifier(model, getattr(tied, "_orig_mod", tied), (args, kwargs), autocast)
    with same_random_states(), verifier.originals.without_gradients():
        verifier.run()
    return Verification(tuple(verifier.calls), verifier.skipped)


class _Verifier:
    """One run of `verify`."""

    def __init__(
        self, model: nn.Module, tied: nn.Module, inputs: Any, autocast: torch.dtype | None
    ) -> None:
        self.model, self.tied, self.inputs, self.autocast = model, tied, inputs, autocast
        self.plan = report(tied).plan
        self.originals = _Originals({"the model": model, "the tied model": tied})
        self.calls: list[VerifiedCall] = []
        self.skipped = {
            f"the graph of {tie.target}'s transform": "is what the oracle runs"
            for tie in self.plan.ties
            if isinstance(tie.transform, Lowered)
        }

    def run(self) -> None:
        try:
            for train in (False, True):
                self.run_mode(train)
        except VerificationError as error:
            if reached := self.originals.changed() or " and ".join(self.originals.trained()):
                raise type(error)(f"{error} A copy reaches {reached}, {_REACHED}.") from error
            raise
        self.check_originals()

    def run_mode(self, train: bool) -> None:
        mode = "train" if train else "eval"
        pair = self.pair(Side.tied(self.tied), train)
        for what, how in pair.apart.items():
            if not what.startswith("the attribute "):
                raise VerificationError(
                    f"The tied model and the model differ before any call, in {what}: {how}. Pass "
                    f"the model that was tied, with the tensors that the tied model has now."
                )
            self.skipped[what] = f"differs before the first call ({how})"
        rounds = self.rounds(pair)
        if any(round.differences for round in rounds):
            self.judge(rounds, train, mode)
        if reason := rounds[0].nothing_proved:
            raise Vacuous(f"In {mode}, {reason}.")
        self.calls += [round.row(mode) for round in rounds]

    def pair(self, found: Side, train: bool) -> Pair:
        expected = Side.oracle(self.model, self.plan)
        for side in (found, expected):
            side.train(train)
        return Pair(found, expected)

    def rounds(self, pair: Pair) -> list[Round]:
        return [Round(pair, self.inputs, call, self.autocast) for call in CALLS]

    def judge(self, rounds: list[Round], train: bool, mode: str) -> None:
        """Raise for what differs, unless two oracles differ there too: a time, say."""
        oracles = self.pair(Side.oracle(self.model, self.plan), train)
        noise = {what for round in self.rounds(oracles) for what, _ in round.differences}
        found = [(round, *difference) for round in rounds for difference in round.differences]
        for round, what, how in found:
            if what not in noise:
                message = f"{what} in {mode}, {round.name}: {how}."
                for attribute, before in round.pair.apart.items():
                    message += f" Before the first call, {attribute} differs: {before}."
                raise VerificationError(
                    f"The tied model differs from the oracle: {message}"
                ) from round.cause
        for round, what, _ in found:
            if not what.startswith("the attribute "):
                raise Vacuous(
                    f"Nothing is proved: two runs of the oracle differ as well, in {what} in "
                    f"{mode}, {round.name}. The model depends on something else than the random "
                    f"seeds of torch, random and numpy."
                )
            self.skipped[what] = "differs between two runs of the oracle"

    def check_originals(self) -> None:
        """Raise if a copy has changed an original, or has used a tensor that is derived."""
        if changed := self.originals.changed():
            raise VerificationError(f"A copy changes {changed}: it reaches it {_REACHED}.")
        gone = dropped(self.model, self.plan.ties)
        for name in self.originals.trained():
            if slot(self.model, name) in gone:
                raise VerificationError(f"A copy uses {name} of the model, {_REACHED}.")
            self.skipped[f"the gradient of {name}"] = f"reaches the model itself {_REACHED}"


class _Originals:
    """The models that were passed in, which nothing here may change."""

    def __init__(self, models: dict[str, nn.Module]) -> None:
        self.models, copies = models, copy.deepcopy(models)
        self.pairs = {n: Pair(Side(model), Side(copies[n])) for n, model in models.items()}

    @contextlib.contextmanager
    def without_gradients(self) -> Iterator[None]:
        """A block after which all gradients are as they were before it."""
        parameters = [p for model in self.models.values() for p in model.parameters() if p.is_leaf]
        gradients = {parameter: parameter.grad for parameter in parameters}
        for parameter in parameters:
            parameter.grad = None
        try:
            yield
        finally:
            for parameter, gradient in gradients.items():
                parameter.grad = gradient

    def changed(self) -> str:
        """What the copies have changed in the originals; empty for nothing."""
        for name, pair in self.pairs.items():
            for what, path, how in pair.state(pair.differ()):
                return f"{what}{path} of {name} ({how})"
        return ""

    def trained(self) -> list[str]:
        """Parameters of the originals that got a gradient."""
        named = [pair for model in self.models.values() for pair in model.named_parameters()]
        return list(dict.fromkeys(name for name, p in named if gradient_of(p) is not None))
