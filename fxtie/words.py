"""Numbers and names as people write them.

In: counts, bytes, lists of names. Out: short text.
"""

from __future__ import annotations

import itertools
import re
import unicodedata
from collections.abc import Container, Iterable, Sequence

_MOST_NAMES = 8


def human_count(n: float) -> str:
    """`25.6M`: a number of parameters, short."""
    for size, suffix in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        # What rounds to a thousand of the smaller unit is one of this.
        if n >= size * 0.99995:
            return f"{n / size:.1f}{suffix}"
    return str(n)


def human_bytes(n: int) -> str:
    """`19.6 MB`, in powers of ten."""
    short = human_count(n)
    return f"{short[:-1]} {short[-1].replace('B', 'G')}B" if short[-1].isalpha() else f"{short} B"


def count(n: int, noun: str) -> str:
    """`1 layer`, `2 layers`."""
    return f"{n} {noun}{'' if n == 1 else 's'}"


def parameter_change(before: int, after: int) -> str:
    """`parameters 25.6M -> 14.2M (55.6%)`."""
    share = f" ({after / before:.1%})" if before else ""
    return f"parameters {human_count(before)} -> {human_count(after)}{share}"


def role(name: str) -> str:
    """A module's name without the indices by which equal parts of a model are told apart.

    >>> role("blocks.3.norm1"), role("layer2.0.conv1"), role("conv_2")
    ('blocks.#.norm1', 'layer#.#.conv1', 'conv_#')
    """
    parents, dot, own = name.rpartition(".")
    return re.sub(r"\d+", "#", parents) + dot + re.sub(r"(?<![^_])\d+$", "#", own)


def natural_key(name: str) -> list[tuple[int, str]]:
    """A key that sorts `a.9` before `a.10`."""
    return [(int(d), "") if d else (-1, w) for w, d in re.findall(r"(\D+)|(\d+)", name)]


def free_name(name: str, taken: Container[str]) -> str:
    """`name`, or the first of `name_2`, `name_3`, ... that is not taken."""
    numbered = (f"{name}_{i}" for i in itertools.count(2))
    return next(n for n in itertools.chain([name], numbered) if n not in taken)


def cut(text: str, longest: int) -> str:
    """`text` without its middle, if it is too long."""
    if len(text) <= longest:
        return text
    head = longest // 2
    return f"{text[:head]}…{text[head + 1 - longest :]}"


def columns(text: str) -> int:
    """How wide a text is, in characters of a fixed width: some of East Asia take two."""
    return sum(2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text)


def list_names(names: Sequence[str]) -> str:
    """Names in short: `layers.1 … layers.9, layers.12, layers.14 … layers.20`.

    `a.1 … a.9` stands for all of these, `a.1, a.3 … a.9` for every second one.
    """
    parts: list[str] = []
    i = 0
    while i < len(names):
        step, length = _progression(names[i:])
        if length >= 3:
            first = [names[i]] if step == 1 else [names[i], names[i + 1]]
            parts.append(f"{', '.join(first)} … {names[i + length - 1]}")
            i += length
        else:
            parts.append(names[i])
            i += 1
    if len(parts) > _MOST_NAMES:
        parts = [*parts[: _MOST_NAMES - 1], f"… {parts[-1]}"]
    return ", ".join(parts) + (f" ({len(names)} in all)" if len(parts) >= _MOST_NAMES else "")


def list_tensors(names: Iterable[str]) -> str:
    """Names of tensors in short: those that differ in indices of their layers only, together."""
    alike: dict[tuple[str, str], list[str]] = {}
    for name in names:
        owner, _, attr = name.rpartition(".")
        alike.setdefault((role(owner), attr), []).append(name)
    return ", ".join(map(list_names, alike.values()))


def _progression(names: Sequence[str]) -> tuple[int, int]:
    """How far names count up in one of their indices by equal steps: the step, the number."""
    split = [re.split(r"(\d+)", name) for name in names[:2]]
    if len(names) < 2 or len(split[0]) != len(split[1]):
        return 0, 1
    differ = [k for k, (a, b) in enumerate(zip(*split, strict=True)) if a != b]
    if len(differ) != 1 or differ[0] % 2 == 0:
        return 0, 1
    k = differ[0]
    start, step = int(split[0][k]), int(split[1][k]) - int(split[0][k])
    length = 1
    for name in names[1:]:
        expected = [*split[0][:k], str(start + length * step), *split[0][k + 1 :]]
        if step < 1 or name != "".join(expected):
            break
        length += 1
    return step, length
