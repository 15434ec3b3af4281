"""Call both sides in the same way, and list all that differs afterwards."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch

from fxtie.life.verifying.oracle import gradient_error, gradient_of, scale
from fxtie.life.verifying.results import VerifiedCall
from fxtie.life.verifying.sides import CALLS, KINDS, Call, Side
from fxtie.life.verifying.values import Differ, norm_of, tensors_in


class Pair:
    """Two sides, compared after each call."""

    def __init__(self, found: Side, expected: Side) -> None:
        self.found, self.expected = found, expected
        self.added = found.state().keys() - expected.state().keys()  # by the pass
        self.apart: dict[str, str] = {}  # what differs before the first call, and how
        for what, _, how in list(self.state(self.differ())):
            self.apart.setdefault(what, how)

    def differ(self) -> Differ:
        return Differ(self.found.names(), self.expected.names())

    def state(self, differ: Differ) -> Iterator[tuple[str, str, str]]:
        """What differs now and did not before: its name, the path inside of it, and how."""
        found, expected = self.found.state(), self.expected.state()
        for what in expected | found:
            if what in self.added or what in self.apart:
                continue
            if what not in found:
                yield what, "", "it is missing"
            elif what not in expected:
                yield what, "", "it is new"
            else:
                for path, how in differ.differences(found[what], expected[what]):
                    yield what, path, how


class Round:
    """One call of both sides, compared."""

    def __init__(self, pair: Pair, inputs: Any, call: Call, autocast: torch.dtype | None) -> None:
        self.pair, self.call, self.autocast = pair, call, autocast
        kind = f", autocast {autocast}".replace("torch.", "") if autocast else ""
        self.name = call.name + kind
        self.found = pair.found.call(inputs, call, autocast)
        self.expected = pair.expected.call(inputs, call, autocast)
        self.differ = pair.differ()
        self.compared: dict[str, None] = {}
        self.gradient_error: float | None = None
        self.nothing_proved = ""  # why equality after a first call proves nothing; empty if it does
        self.cause = self.found.error or self.expected.error  # what a side raised
        self.differences = list(self.compare())  # everything that differs and how, outputs first

    def row(self, mode: str) -> VerifiedCall:
        errors = self.differ.error, self.gradient_error
        return VerifiedCall(mode, self.name, tuple(self.compared), self.differ.tensors, *errors)

    def compare(self) -> Iterator[tuple[str, str]]:
        if self.cause is not None:
            yield from self.errors()
        else:
            yield from self.outputs()
            if self.call.grad:
                yield from self.gradients()
            if self.call is CALLS[0]:
                self.nothing_proved = self.proves_nothing()
            yield from self.inputs()
        for what, path, how in self.pair.state(self.differ):
            yield what + path, how
        kinds = {what.split(" ")[1] for what in self.pair.expected.state()}
        self.compared |= {f"{kind}s": None for kind in sorted(kinds, key=KINDS.index)}

    def errors(self) -> Iterator[tuple[str, str]]:
        found, expected = self.found.error, self.expected.error
        if type(found) is not type(expected):
            told = [
                "returns" if error is None else f"raises {type(error).__name__}: {error}"
                for error in (found, expected)
            ]
            yield "the call", f"the tied model {told[0]}, the oracle {told[1]}"
        elif self.call is CALLS[0] and expected is not None:
            raise expected  # the model can't be run with these inputs
        else:
            self.compared[f"both raise {type(found).__name__}"] = None

    def outputs(self) -> Iterator[tuple[str, str]]:
        self.compared["outputs"] = None
        found, expected = self.found.output, self.expected.output
        places = [path for path, _ in tensors_in(expected, self.differ.expected)]
        for path, how in self.differ.differences(found, expected):
            what = f"the output{path}"
            if path in places:
                place = places.index(path)
                what = f"output {place}" + (f" ({path})" if path not in ("", f"[{place}]") else "")
            yield what, how

    def gradients(self) -> Iterator[tuple[str, str]]:
        self.compared["gradients"] = None
        self.gradient_error = 0.0
        found = self.pair.found.gradients(self.found)
        expected = self.pair.expected.gradients(self.expected)
        for what in (what for what in expected if what in found):
            tolerance = _tolerance(expected[what].dtype, self.autocast)
            fault, error = gradient_error(found[what], expected[what], tolerance / 100)
            if error is not None:
                self.differ.tensors += 1
                self.gradient_error = max(self.gradient_error, error)
                fault = "" if error < tolerance else f"relative error {error:.1e}"
            if fault:
                yield what, fault

    def inputs(self) -> Iterator[tuple[str, str]]:
        """What the calls have made of their copies of the inputs."""
        found, expected = self.found.arguments, self.expected.arguments
        for name in expected:
            self.compared["inputs"] = None
            for path, how in self.differ.differences(found[name], expected[name]):
                yield f"{name}{path} after the call", how

    def proves_nothing(self) -> str:
        outputs = [tensor for _, tensor in tensors_in(self.expected.output, self.differ.expected)]
        if not outputs:
            return "the output holds no tensor"
        leaves = self.pair.expected.gradients(self.expected).values()
        norm = sum(norm_of(gradient_of(tensor)) for tensor in leaves)
        if norm == 0:
            return "all gradients vanish"
        _, reason = scale([output for output in outputs if output.requires_grad] or outputs)
        return reason or ("" if norm < math.inf else "gradients are not finite")


def _tolerance(dtype: torch.dtype, autocast: torch.dtype | None) -> float:
    """How far gradients may be apart: they are sums, added up in any order."""
    low = 0.0 if autocast is None else 4 * torch.finfo(autocast).eps
    if dtype in (torch.float64, torch.complex128):
        return max(1e-12, low)
    return max(1e-5, low, 4 * torch.finfo(dtype).eps if dtype.itemsize < 4 else 0.0)
