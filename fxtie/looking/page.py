"""A `Page` -> one HTML file, with its style, script and pictures inside, which needs no network.

Text comes from the model: the template escapes it (`page.html`), and so do `tables.py` and
`picturing/svg.py`. A content security policy allows the page's own script and no request.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import html
import os
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

import jinja2

from fxtie.looking.layout import Flow, draw
from fxtie.looking.picturing.palette import page_style
from fxtie.looking.picturing.scene import Scene
from fxtie.looking.picturing.svg import tie_height
from fxtie.looking.picturing.views import tie_views
from fxtie.looking.tables import Table

_HEIGHT, _HEAD = 640, 110  # pixels of a notebook: at most, and of what is around the picture


@dataclass(frozen=True)
class Section:
    """A foldable part of a page."""

    title: str  # what stands in its head
    note: str = ""  # text after the title, in small print
    # Side by side, each with a caption; none where there is nothing on that side.
    flows: Sequence[tuple[str, Flow | None]] = ()
    table: Table | None = None  # below them
    code: str = ""  # text that is shown as it is, below that. Lines marked `+` and `-` are coloured
    id: str = ""  # its id in the page, for links
    is_open: bool = True  # whether it is unfolded at first
    is_quiet: bool = False  # whether it is of less interest than others


@dataclass(frozen=True)
class Page:
    """What a page says."""

    title: str
    summary: str  # the one line that matters
    facts: Sequence[tuple[str, str]] = ()
    scene: Scene | None = None  # what the tie picture above the sections shows
    sections: Sequence[Section] = ()
    legend: Sequence[tuple[str, str]] = ()  # the kinds of boxes, and what they mean

    def html(self) -> str:
        style = _resource("page.css") + page_style()
        script = _resource("page.js")
        return _template().render(
            page=self,
            views=[] if self.scene is None else tie_views(self.scene),
            draw=draw,
            style=style,
            style_hash=_hash(style),
            script=script,
            script_hash=_hash(script),
        )

    def write(self, path: str | os.PathLike[str]) -> None:
        Path(path).write_text(self.html(), encoding="utf-8")

    def notebook(self) -> str:
        """The page for a notebook, in a frame of its own.

        Nothing in the frame reaches the notebook: neither its style, nor what a model is named.
        """
        height = _HEIGHT
        if self.scene is not None and not self.sections:
            height = min(height, _HEAD + tie_height(self.scene))
        return (
            f'<iframe srcdoc="{html.escape(self.html())}" sandbox="allow-scripts" width="100%" '
            f'height="{height}" style="border: 0"></iframe>'
        )


@functools.cache
def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    return environment.from_string(_resource("page.html"))


@functools.cache
def _resource(name: str) -> str:
    return files("fxtie.looking").joinpath(name).read_text(encoding="utf-8")


def _hash(content: str) -> str:
    """How a content security policy refers to an inline script or style."""
    digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
    return f"sha256-{digest}"
