"""How plans, reports, diffs and their like are shown: as text, tables and pages.

The files of `looking/` register how each class is shown; no other folder has to know.
"""

from __future__ import annotations

import functools
import html
import os
from collections.abc import Sequence
from typing import Any


@functools.singledispatch
def parts(shown: Any) -> Sequence[Any]:
    """Lines of text and `fxtie.looking.tables.Table`s, in order."""
    raise NotImplementedError(type(shown))


@functools.singledispatch
def text(shown: Any) -> str:
    """What `print` shows: the parts, unless something else is registered."""
    return "\n".join(map(str, parts(shown)))


@functools.singledispatch
def page(shown: Any) -> Any:
    """A `fxtie.looking.page.Page`."""
    raise NotImplementedError(type(shown))


class Printed:
    """Base of what `print` shows by `text`, and a notebook as HTML tables."""

    __slots__ = ()

    def summary(self) -> str:
        """The whole as one line."""
        raise NotImplementedError

    def __str__(self) -> str:
        return text(self)

    def __repr__(self) -> str:
        return f"<{type(self).__name__}: {self.summary()}>"

    def _repr_html_(self) -> str:
        found = parts(self)
        return "".join(
            f"<p>{html.escape(p)}</p>" if isinstance(p, str) else p.html() for p in found
        )


class Paged(Printed):
    """Base of what has a page as well."""

    __slots__ = ()

    def html(self, path: str | os.PathLike[str]) -> None:
        """Write a page that shows this with pictures: one file, which needs no network."""
        page(self).write(path)

    def _repr_html_(self) -> str:
        html: str = page(self).notebook()
        return html
