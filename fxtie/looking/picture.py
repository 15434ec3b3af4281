"""The tie picture: a model's layers in a row, and arcs from sources to targets of ties."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeAlias, get_args

from torch import nn

from fxtie.capturing.report import Report, report
from fxtie.errors import FxtieError
from fxtie.looking.picturing.order import as_called
from fxtie.looking.picturing.palette import Theme, style_sheet
from fxtie.looking.picturing.scene import Scene, scene_of
from fxtie.looking.picturing.svg import tie_svg
from fxtie.planning.plan import Plan
from fxtie.shown import Paged
from fxtie.tied.path_copy import tied_model
from fxtie.tied.region import Region

_Path: TypeAlias = str | os.PathLike[str]


@dataclass(frozen=True, repr=False)
class TiePicture(Paged):
    """A picture of what is derived from what. Made by `fxtie.picture`; a notebook shows it.

    Each layer is a square whose area is the number of its parameters. What is stored is solid, what
    is derived is hollow, and what a transform learns is solid in the colour of the transform. An
    arc leads from a source to a target. Blocks that are alike and tied alike are drawn once, with
    their number, if there are many layers. Pointing at a square or an arc shows names, shapes,
    transform and saving.

    The layers of a tied model stand "as called" by its graphs, those of a plan or a report, which
    have no graph, "as defined" in the model; the picture says which.

    Attributes:
        scene: what there is to draw, as plain data.
    """

    scene: Scene

    def svg(self, path: _Path, *, theme: Theme = "auto", folded: bool = True) -> None:
        """Write the picture as SVG.

        Args:
            path: the file.
            theme: "light", "dark", or "auto" for what the reader's system prefers.
            folded: whether blocks that are alike are drawn once. Of more than 2,000 layers they are
                in any case.

        Raises:
            FxtieError: for another theme.
        """
        Path(path).write_text(self._svg(theme, folded), encoding="utf-8")

    def png(
        self, path: _Path, *, theme: Theme = "light", folded: bool = True, scale: float = 2.0
    ) -> None:
        """Write the picture as PNG, with the fonts of this machine.

        Args:
            path: the file.
            theme: "light" or "dark".
            folded: whether blocks that are alike are drawn once.
            scale: pixels of the file for each of the SVG.

        Raises:
            FxtieError: for another theme, or if `resvg_py` is missing (`pip install 'fxtie[viz]'`).
        """
        if theme == "auto":
            raise FxtieError("A PNG has one theme: 'light' or 'dark'.")
        svg = self._svg(theme, folded)
        try:
            from resvg_py import svg_to_bytes
        except ImportError as error:
            raise FxtieError("PNG needs the package resvg_py: pip install 'fxtie[viz]'") from error
        Path(path).write_bytes(svg_to_bytes(svg_string=svg, zoom=scale))

    def summary(self) -> str:
        """The totals, as one line."""
        return self.scene.summary

    def _svg(self, theme: Theme, folded: bool) -> str:
        if theme not in get_args(Theme):
            raise FxtieError(f"The theme is 'auto', 'light' or 'dark', not {theme!r}.")
        return tie_svg(self.scene, style_sheet(theme), folded=folded)

    def _repr_svg_(self) -> str:
        return self._svg("auto", folded=True)


def picture(of: Plan | Report | nn.Module) -> TiePicture:
    """A picture of a model's layers and of what is derived from what.

    Args:
        of: a plan, a report, or a tied model.

    Raises:
        FxtieError: for anything else.

    Example:
        >>> import fxtie, torch
        >>> net = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8))
        >>> tied = fxtie.transform(net, fxtie.Rule("2", "0", weight=torch.square))
        >>> found = fxtie.picture(tied)
        >>> print(found)
        2 ties, parameters 144 -> 72 (50.0%)
        >>> found._repr_svg_().startswith("<svg")
        True
    """
    if isinstance(of, Plan):
        return TiePicture(scene_of(of))
    if isinstance(of, Report):
        return TiePicture(scene_of(of.whole_plan))
    plan, modules = report(of).whole_plan, tied_model(of).named_modules()
    graphs = [(name, one.graph) for name, one in modules if isinstance(one, Region)]
    if not graphs:
        return TiePicture(scene_of(plan))
    called = replace(plan, layers=as_called(plan.layers, graphs))
    return TiePicture(scene_of(called, "as called"))
