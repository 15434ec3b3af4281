"""Text for `print`, and pages for a browser or a notebook.

In: a plan, a report, a diff and their like. Out: their text and their page, by the two functions
below. The files of `looking/` register how each class is shown; no other folder has to know.
"""

from __future__ import annotations

import functools
import os
from typing import Any


@functools.singledispatch
def text(shown: Any) -> str:
    """What `print` shows."""
    raise NotImplementedError(type(shown))


@functools.singledispatch
def page(shown: Any) -> Any:
    """A `fxtie.looking.page.Page`."""
    raise NotImplementedError(type(shown))


class Printed:
    """Base of what `print` shows by `text`."""

    __slots__ = ()

    def __str__(self) -> str:
        return text(self)


class Paged(Printed):
    """Base of what has a page as well."""

    __slots__ = ()

    def html(self, path: str | os.PathLike[str]) -> None:
        """Write a page that shows this with pictures: one file, which needs no network.

        Raises:
            FxtieError: if what draws it is not installed (`pip install fxtie[viz]`, and graphviz).
        """
        page(self).write(path)

    def _repr_html_(self) -> str:
        html: str = page(self).notebook(text(self))
        return html
