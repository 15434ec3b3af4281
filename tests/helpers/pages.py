"""Runs the code of a Markdown page as a reader would: its Python blocks, in order, as one file.

In: a page. Out: nothing, or a failed assertion. A block marked `text` is what the Python block
before it prints; in one marked `text about`, percentages may be a few points off. `FXTIE_RENEW=1`
writes them anew.
"""

import itertools
import os
import re
import runpy
import shlex
from pathlib import Path
from typing import NamedTuple

from fxtie.cli import main

_FENCE = re.compile(r"^```([\w ]*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
_PERCENT = re.compile(r"[ -]*(\d+\.\d)%")
_POINTS = 8  # by which a percentage may be off: trainings differ from one machine to another
_MARK = "\x1e"  # printed before each block


class Block(NamedTuple):
    """A fenced block.

    Attributes:
        language: what stands behind the fence.
        code: what stands in it.
        start, end: where that is in the page.
        line: the number of its first line.
    """

    language: str
    code: str
    start: int
    end: int
    line: int


def blocks(text: str) -> list[Block]:
    return [
        Block(found[1], found[2], *found.span(2), text.count("\n", 0, found.start(2)) + 1)
        for found in _FENCE.finditer(text)
    ]


def run(page: Path, folder: Path, capsys) -> int:
    """Run a page's Python in an empty folder, compare what it prints. Returns how much ran."""
    text = page.read_text(encoding="utf-8")
    found = blocks(text)
    python = [block for block in found if block.language == "python"]
    printed = dict(zip(python, _printed(python, folder / f"{page.stem}.py", capsys), strict=True))
    told = [
        (after, printed[block])
        for block, after in itertools.pairwise(found)
        if block.language == "python" and after.language.startswith("text")
    ]
    if os.environ.get("FXTIE_RENEW"):
        for block, out in reversed(told):
            text = text[: block.start] + out + text[block.end :]
        page.write_text(text, encoding="utf-8")
        return len(python)
    for block, out in told:
        is_same = is_about if block.language == "text about" else str.__eq__
        assert is_same(out, block.code), f"{page.name}:{block.line} is\n{out}"
    return len(python)


def is_about(one: str, other: str) -> bool:
    """Whether two texts say the same, up to a few points of each percentage."""
    numbers = [list(map(float, _PERCENT.findall(text))) for text in (one, other)]
    is_near = all(abs(a - b) <= _POINTS for a, b in zip(*numbers, strict=False))
    return is_near and _PERCENT.sub("%", one) == _PERCENT.sub("%", other)


def _printed(python: list[Block], script: Path, capsys) -> list[str]:
    """What each block prints."""
    # A file, since a graph needs the source of a forward; each line is where it is in the page.
    lines: list[str] = []
    for block in python:
        lines += [""] * (block.line - 2 - len(lines))
        lines += [f"print({_MARK!r}, end='')", *block.code.splitlines()]
    script.write_text("\n".join(lines), encoding="utf-8")
    capsys.readouterr()
    runpy.run_path(str(script), run_name=script.stem)
    _, *printed = capsys.readouterr().out.split(_MARK)
    return ["\n".join(map(str.rstrip, out.strip("\n").splitlines())) + "\n" for out in printed]


def run_commands(page: Path) -> None:
    """Run the `fxtie` commands of a page here."""
    for block in blocks(page.read_text(encoding="utf-8")):
        for line in block.code.splitlines() if block.language == "sh" else ():
            if line.startswith("fxtie "):
                _, *arguments = shlex.split(line, comments=True)
                assert main(arguments) == 0, line
