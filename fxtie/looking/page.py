"""What a page says -> one HTML file.

In: a `Page`. Out: HTML with its style, its script and its pictures inside, which needs no network.

All text comes from the model and is the template's to escape (`page.html`, by jinja2's autoescape).
The page's content security policy allows its own script, by its hash, and no request.
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
from typing import Any

from fxtie.errors import FxtieError
from fxtie.looking.layout import Picture, draw

_HEIGHT = 640  # pixels of a notebook


@dataclass(frozen=True)
class Table:
    """Rows of text."""

    headers: tuple[str, ...]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True)
class Section:
    """A foldable part of a page.

    Attributes:
        title: what stands in its head.
        note: text after the title, in small print.
        pictures: side by side, each with a caption; none where there is nothing on that side.
        table: below them.
        code: text that is shown as it is, below that. Lines marked `+` and `-` are coloured.
        id: its id in the page, for links.
        is_open: whether it is unfolded at first.
        is_quiet: whether it is of less interest than others.
    """

    title: str
    note: str = ""
    pictures: Sequence[tuple[str, Picture | None]] = ()
    table: Table | None = None
    code: str = ""
    id: str = ""
    is_open: bool = True
    is_quiet: bool = False


@dataclass(frozen=True)
class Page:
    """What a page says.

    Attributes:
        title: its name.
        summary: the one line that matters.
        facts: names and values.
        sections: in order.
        map: a picture that stays in sight beside the sections.
        legend: the kinds of boxes, and what they mean.
    """

    title: str
    summary: str
    facts: Sequence[tuple[str, str]] = ()
    sections: Sequence[Section] = ()
    map: Picture | None = None
    legend: Sequence[tuple[str, str]] = ()

    def html(self) -> str:
        """The page as one HTML document.

        Raises:
            FxtieError: if what draws it is not installed.
        """
        pictures = [picture for section in self.sections for _, picture in section.pictures]
        drawn = [picture for picture in (*pictures, self.map) if picture is not None]
        drawings = dict(zip(map(id, drawn), draw(drawn), strict=True))
        style, script = _resource("page.css"), _resource("page.js")
        return str(
            _template().render(
                page=self,
                drawing=lambda picture: drawings[id(picture)],
                style=style,
                style_hash=_hash(style),
                script=script,
                script_hash=_hash(script),
            )
        )

    def write(self, path: str | os.PathLike[str]) -> None:
        """Write the page into a file."""
        Path(path).write_text(self.html(), encoding="utf-8")

    def notebook(self, text: str) -> str:
        """The page for a notebook, in a frame of its own; `text` where it can't be drawn.

        Nothing in the frame reaches the notebook: neither its style, nor what a model is named.
        """
        try:
            document = self.html()
        except FxtieError as error:
            return f"<pre>{html.escape(text)}</pre><small>{html.escape(str(error))}</small>"
        return (
            f'<iframe srcdoc="{html.escape(document)}" sandbox="allow-scripts" width="100%" '
            f'height="{_HEIGHT}" style="border: 0"></iframe>'
        )


@functools.cache
def _template() -> Any:
    try:
        import jinja2
    except ImportError as error:
        raise FxtieError(
            "Pages need the Python package jinja2: `pip install fxtie[viz]`."
        ) from error
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
