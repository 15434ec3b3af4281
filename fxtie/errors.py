"""The exceptions and warnings of fxtie, and how a list of faults is worded."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence


class FxtieError(Exception):
    """Base of every error that fxtie raises on purpose."""


class RuleError(FxtieError):
    """A rule that makes no sense by itself, whatever the model."""


class PlanError(FxtieError):
    """Rules that don't fit the model. Carries every fault of the rule set, one sentence each.

    Attributes:
        faults: the sentences, in the order of the rules.
    """

    def __init__(self, faults: str | Sequence[str]) -> None:
        faults = [faults] if isinstance(faults, str) else faults
        # A rule may have the same fault for each of its targets.
        self.faults: tuple[str, ...] = tuple(dict.fromkeys(faults))
        if len(self.faults) == 1:
            super().__init__(self.faults[0])
        else:
            lines = "\n".join(f"  {i}. {fault}" for i, fault in enumerate(self.faults, 1))
            super().__init__(f"{len(self.faults)} faults in the rules:\n{lines}")

    def __reduce__(self) -> tuple[type[PlanError], tuple[tuple[str, ...]]]:
        return type(self), (self.faults,)


class CaptureError(FxtieError):
    """A forward could not be captured, and `strict=True` was given."""


class FileError(FxtieError):
    """A file that can't be written or loaded. The model, or the old file, is unchanged."""


class Outdated(UserWarning):
    """A captured module has changed. It runs the user's forward from now on."""


def closest(name: str, names: Iterable[str]) -> str:
    """A hint that lists the existing names most like `name`, or the empty string."""
    found = difflib.get_close_matches(name, list(names), cutoff=0.5)
    return f" Closest names: {', '.join(map(repr, found))}." if found else ""
