"""Counts, bytes and lists of names as people write them."""

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


def split_index(name: str) -> tuple[str, str]:
    """`layer12` -> `("layer", "12")`; the index is empty if there is none."""
    word = name.rstrip("0123456789")
    return word, name.removeprefix(word)


def natural_key(name: str) -> list[tuple[int, str]]:
    """A key that sorts `a.9` before `a.10`."""
    return [(int(d), "") if d else (-1, w) for w, d in re.findall(r"(\D+)|(\d+)", name)]


def join(*parts: str) -> str:
    """A dotted name; empty parts, such as the root's name, are left out."""
    return ".".join(filter(None, parts))


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
    """Names in short: `layers.1…9.up, layers.12.up, layers.14…20.up`.

    `a.1…9` stands for all from `a.1` to `a.9`, `a.1,3…9` for every second one.
    """
    parts: list[str] = []
    names = _by_index(names)
    done = 0
    while done < len(names):
        length, text = _progression(names[done:])
        parts.append(text)
        done += length
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


def _by_index(names: Sequence[str]) -> Sequence[str]:
    """Names with several indices, sorted so that the one that counts furthest comes last."""
    split = [re.split(r"(\d+)", name) for name in names]
    if len({tuple(parts[::2]) for parts in split}) != 1:
        return names
    indices = [[int(number) for number in parts[1::2]] for parts in split]
    values = [len(set(column)) for column in zip(*indices, strict=True)]
    if sum(n > 1 for n in values) < 2:
        return names
    furthest = values.index(max(values))
    order = sorted(
        range(len(names)),
        key=lambda i: (indices[i][:furthest], indices[i][furthest + 1 :], indices[i][furthest]),
    )
    return [names[i] for i in order]


def _progression(names: Sequence[str]) -> tuple[int, str]:
    """How many of the first names count up in one of their indices, and these in short."""
    split = [re.split(r"(\d+)", name) for name in names[:2]]
    if len(names) < 3 or len(split[0]) != len(split[1]):
        return 1, names[0]
    differ = [k for k, (a, b) in enumerate(zip(*split, strict=True)) if a != b]
    if len(differ) != 1 or differ[0] % 2 == 0:  # in one index and nothing else
        return 1, names[0]
    k = differ[0]
    before, after = "".join(split[0][:k]), "".join(split[0][k + 1 :])
    first, second = int(split[0][k]), int(split[1][k])
    step, length = second - first, 1
    for name in names[1:]:
        if step < 1 or name != f"{before}{first + length * step}{after}":
            break
        length += 1
    if length < 3:
        return 1, names[0]
    last = first + (length - 1) * step
    numbers = f"{first}…{last}" if step == 1 else f"{first},{second}…{last}"
    return length, f"{before}{numbers}{after}"
