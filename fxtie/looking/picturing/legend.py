"""A `Scene` -> which class of the style sheet each kind of transform has, and what these mean."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fxtie.looking.grouping import grouped
from fxtie.looking.picturing.palette import TRANSFORMS
from fxtie.looking.picturing.scene import SHARED, DrawnTie, Scene
from fxtie.words import cut

_OWN = [name for name in TRANSFORMS if name not in ("others", "shared")]
_LONGEST = 30  # characters


@dataclass(frozen=True)
class Entry:
    """A class of the style sheet, its meaning, and whether arcs have it or squares."""

    style: str
    label: str
    is_arc: bool


class Legend:
    """The colours of a scene."""

    def __init__(self, scene: Scene) -> None:
        kinds = grouped((t for ties in scene.ties.values() for t in ties), lambda tie: tie.kind)
        ranked = sorted(kinds, key=lambda kind: (kind == SHARED, -_saved(kinds[kind])))
        own = zip((kind for kind in ranked if kind != SHARED), _OWN, strict=False)
        # The class of each kind of transform. Those that save most have one of their own.
        self.styles = dict.fromkeys(ranked, "others") | dict(own)
        if SHARED in kinds:
            self.styles[SHARED] = "shared"
        # What the classes mean.
        self.entries = [Entry("stored", "stored", False), Entry("derived", "derived", False)]
        learned = (kind for kind in ranked if any(tie.learned for tie in kinds[kind]))
        if (first := next(learned, None)) is not None:
            self.entries.append(Entry(f"{self.styles[first]} learned", "learned", False))
        for style, alike in grouped(ranked, self.styles.__getitem__).items():
            ties = [tie for kind in alike for tie in kinds[kind]]
            self.entries.append(Entry(style, _label(alike, ties), True))


def _saved(ties: Sequence[DrawnTie]) -> int:
    return sum(tie.saved for tie in ties)


def _label(kinds: Sequence[str], ties: Sequence[DrawnTie]) -> str:
    spelled = {tie.transform for tie in ties}
    if len(kinds) > 1:
        label = f"{len(kinds)} others"
    elif len(spelled) > 1:
        label = f"{kinds[0]}(…)"
    else:
        label = cut(min(spelled), _LONGEST)
    return label if len(ties) == len(kinds) else f"{label} ×{len(ties)}"
