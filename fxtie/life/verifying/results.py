"""What `fxtie.verify` returns and raises."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from fxtie.errors import FxtieError
from fxtie.shown import Printed
from fxtie.words import count


class VerificationError(FxtieError):
    """A tied model does not compute what it must."""


class Vacuous(VerificationError):
    """The comparison would prove nothing: outputs or gradients vanish, or don't vary."""


@dataclass(frozen=True)
class VerifiedCall:
    """One call of the tied model and of the oracle, and how far they are apart.

    Attributes:
        mode: "eval" or "train".
        call: which call of this mode it is.
        compared: what was compared.
        tensors: the number of tensors among it.
        output_error: the largest relative error of an output, or of the state after the call.
        gradient_error: the largest relative error of a gradient; None if there are no gradients.
    """

    mode: str
    call: str
    compared: tuple[str, ...]
    tensors: int
    output_error: float
    gradient_error: float | None


@dataclass(frozen=True, repr=False)
class Verification(Printed):
    """What `fxtie.verify` has proved. `print` shows a table.

    Attributes:
        calls: one per mode and circumstance, in the order in which they ran.
        skipped: what could not be compared, by name, and the reason as the end of a sentence.
    """

    calls: tuple[VerifiedCall, ...]
    skipped: Mapping[str, str]

    def summary(self) -> str:
        """How many calls agree, and how well, as one line."""
        errors = (e for call in self.calls for e in (call.output_error, call.gradient_error))
        largest = max((e for e in errors if e is not None), default=0.0)
        calls = f"{count(len(self.calls), 'call')} compared, largest error {largest:.1e}"
        return f"{calls}, {len(self.skipped)} skipped" if self.skipped else calls
