"""The colours and fonts of the tie picture, for SVG of its own or in a page."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, TypeAlias

Theme: TypeAlias = Literal["auto", "light", "dark"]
Pair: TypeAlias = tuple[str, str]  # on light ground, on dark

_COLOURS: dict[str, Pair] = {
    "ground": ("#ffffff", "#11151c"),
    "ink": ("#1f2733", "#e6eaf0"),
    "faint": ("#5d6878", "#98a3b3"),
    "line": ("#d4dae3", "#3a4352"),
    "panel": ("#f5f7fa", "#1a2029"),
    "stored": ("#3b4657", "#a9b5c6"),
}
TRANSFORMS: dict[str, Pair] = {
    "t0": ("#2f6bff", "#7aa5ff"),
    "t1": ("#e07a10", "#ffb454"),
    "t2": ("#0e9f6e", "#3fd7a2"),
    "t3": ("#8b46ff", "#b794ff"),
    "t4": ("#e0286b", "#ff7aa8"),
    "t5": ("#0b95b8", "#4fd0ec"),
    "t6": ("#6b8e14", "#b5d84c"),
    "others": ("#b0389f", "#f08be4"),
    "shared": ("#8a94a3", "#7c8797"),
}
_RULES = """
.ties .ground { fill: $ground; }
.ties .ink { fill: $ink; }
.ties .faint { fill: $faint; }
.ties .stored { fill: $stored; }
.ties .key.derived { stroke: $stored; }
.ties .panel { fill: $panel; stroke: $line; }
.ties .bracket { stroke: $line; }
"""
_FIXED = """
.ties { font-family: system-ui, -apple-system, "Segoe UI", Helvetica, Arial, "Liberation Sans",
  "DejaVu Sans", sans-serif; font-size: 12.5px; }
.ties .big { font-size: 40px; font-weight: 700; letter-spacing: -0.5px; }
.ties .label { font-family: ui-monospace, SFMono-Regular, Menlo, Consolas, "Liberation Mono",
  "DejaVu Sans Mono", monospace; font-size: 10px; }
.ties .times { font-size: 12px; font-weight: 700; }
.ties .arc { fill: none; stroke-opacity: 0.85; }
.ties .near { fill: none; stroke: none; stroke-width: 9; pointer-events: stroke; }
.ties .derived { fill-opacity: 0.1; }
.ties .key.derived { fill: none; stroke-width: 1.5; }
.ties .bracket { fill: none; }
"""


def style_sheet(theme: Theme) -> str:
    """For SVG that stands alone."""
    light, dark = _coloured(lambda pair: pair[0]), _coloured(lambda pair: pair[1])
    if theme != "auto":
        return _FIXED + (light if theme == "light" else dark)
    return f"{_FIXED}{light}@media (prefers-color-scheme: dark) {{{dark}}}\n"


def page_style() -> str:
    """For SVG in a page that sets `color-scheme`."""
    return _FIXED + _coloured(lambda pair: f"light-dark({pair[0]}, {pair[1]})")


def _coloured(pick: Callable[[Pair], str]) -> str:
    rules = _RULES
    for name, pair in _COLOURS.items():
        rules = rules.replace(f"${name};", f"{pick(pair)};")
    for name, pair in TRANSFORMS.items():
        rules += f".ties .{name} {{ stroke: {pick(pair)}; }}\n"
        rules += f".ties .{name} .tip, .ties rect.{name} {{ fill: {pick(pair)}; }}\n"
        rules += f".ties .{name}.learned {{ stroke: none; }}\n"
    return rules
