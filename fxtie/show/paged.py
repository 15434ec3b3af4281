"""What can be looked at in a browser and a notebook: plans, reports and diffs.

In: an object that knows its page. Out: the page in a file, or in a notebook's frame. The files that
make pages are imported when the first one is made, since most programs make none.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fxtie.show.page import Page


class Paged:
    """Base of what has a page."""

    __slots__ = ()

    def _page(self) -> Page:
        raise NotImplementedError

    def html(self, path: str | os.PathLike[str]) -> None:
        """Write a page that shows this with pictures: one file, which needs no network.

        Raises:
            FxtieError: if what draws it is not installed (`pip install fxtie[viz]`, and graphviz).
        """
        from fxtie.show.page import write_page

        write_page(self._page(), path)

    def _repr_html_(self) -> str:
        from fxtie.show.page import notebook_html

        return notebook_html(self._page, str(self))
