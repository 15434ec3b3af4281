"""A `Scene` -> SVGs: its blocks folded, and unfolded one by one as clicks lead.

What can be clicked in one has the number of the one that it leads to.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TypeAlias

from fxtie.looking.picturing.folding import Block, Item, items_of
from fxtie.looking.picturing.scene import Scene
from fxtie.looking.picturing.svg import MOST_COLUMNS, TieDrawing, row_items

_MOST = 12  # views

_Names: TypeAlias = tuple[str, ...]  # of blocks that share columns
_Opened: TypeAlias = frozenset[_Names]


def tie_views(scene: Scene) -> list[str]:
    """SVGs, the folded one first; one alone if nothing is folded.

    A click on a block unfolds it, or all if that view is not among the first that clicks lead to. A
    click on what is unfolded folds it.
    """
    views = _Views(scene)
    return [views.svg(opened) for opened in views.items]


class _Views:
    """Views by the blocks that are unfolded in them."""

    def __init__(self, scene: Scene) -> None:
        self.scene = scene
        self.items: dict[_Opened, list[Item]] = {frozenset(): row_items(scene, folded=True)}
        self.add_one_by_one()
        done = (view for view, items in self.items.items() if not [*_folded(items)])
        # The one in which all blocks are, or None if there are too many layers.
        self.whole = next(done, None)
        unfolded = row_items(scene, folded=False)
        if self.whole is None and not [*_folded(unfolded)]:
            self.whole = frozenset(block for one in self.items.values() for block in _folded(one))
            self.items[self.whole] = unfolded

    def add_one_by_one(self) -> None:
        """Go where clicks lead, as long as the page is not too long."""
        queue: list[_Opened] = [frozenset()]
        room = MOST_COLUMNS
        for opened in queue:  # which grows
            for block in _folded(self.items[opened]):
                view = opened | {block}
                items = items_of(
                    self.scene, folded=True, opened={n for names in view for n in names}
                )
                length = sum(1 for item in items for _ in item.columns())
                if view not in self.items and len(self.items) < _MOST and length <= room:
                    room -= length
                    self.items[view] = items
                    queue.append(view)

    def svg(self, opened: _Opened) -> str:
        """One view, with links to the others."""
        numbers = {view: i for i, view in enumerate(self.items)}
        folded = [*_folded(self.items[opened])]
        whole = None if self.whole is None else numbers[self.whole]

        def leads(name: str) -> tuple[int, str] | None:
            for block in reversed(folded):  # the inner ones first
                if _is_inside(name, block):
                    view = numbers.get(opened | {block}, whole)
                    return None if view is None else (view, "unfold")
            for block in sorted(opened, key=lambda block: len(block[0]), reverse=True):
                if _is_inside(name, block):
                    return numbers.get(opened - {block}, 0), "fold"
            return None

        return TieDrawing(self.scene, self.items[opened], leads).svg()


def _folded(items: list[Item]) -> Iterator[_Names]:
    """The blocks that share columns, each before those inside of it."""
    for item in items:
        if isinstance(item, Block):
            if item.times > 1:
                yield tuple(item.names)
            yield from _folded(item.items)


def _is_inside(name: str, block: _Names) -> bool:
    return any(f"{name}.".startswith(f"{one}.") for one in block)
