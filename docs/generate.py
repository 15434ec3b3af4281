"""Writes the pages that are made from the source: transforms, errors, reference.md, llms.txt.

    python docs/generate.py

`tests/test_docs.py` fails if what is here is not what this writes.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from causes import CAUSES, TORCH, Cause, cause_of
from messages import Message, messages
from torch import Tensor

import fxtie
from fxtie import transforms as T
from fxtie.transforms.protocol import fitted_to

DOCS = Path(__file__).parent
FAULTS = DOCS.parent / "tests/planning/fault_texts.txt"
CELL = 9  # pixels

FILTER = torch.tensor(
    [
        [0.9, 0.9, 0.9, 0.9],
        [0.8, -0.2, -0.3, -0.2],
        [0.7, 0.5, -0.6, -0.1],
        [0.6, -0.4, -0.9, -0.1],
    ]
)
OTHER = torch.tensor(
    [
        [0.1, -0.5, 0.2, 0.6],
        [0.0, 0.4, -0.7, 0.3],
        [0.2, 0.1, 0.5, -0.8],
        [0.9, -0.3, 0.0, 0.4],
    ]
)
ONE, TWO = (FILTER,), (FILTER, OTHER)

# Each transform as it is called, what it is given, and the shape of the target.
EXAMPLES: tuple[tuple[str, tuple[Tensor, ...], tuple[int, ...]], ...] = (
    ("T.same()", ONE, (4, 4)),
    ("T.scale(0.5)", ONE, (4, 4)),
    ("T.neg()", ONE, (4, 4)),
    ("T.abs()", ONE, (4, 4)),
    ("T.square()", ONE, (4, 4)),
    ("T.standardize()", ONE, (4, 4)),
    ("T.stop_gradient()", ONE, (4, 4)),
    ("T.transpose()", ONE, (4, 4)),
    ("T.flip(-1)", ONE, (4, 4)),
    ("T.rot90(1)", ONE, (4, 4)),
    ("T.orbit('p4', lifting=True)", (FILTER[None, None],), (4, 1, 4, 4)),
    ("T.slice(1, 0, 2)", ONE, (4, 2)),
    ("T.repeat_interleave(2, 1)", ONE, (4, 8)),
    ("T.tile()", ONE, (6, 8)),
    ("T.crop()", ONE, (3, 3)),
    ("T.pad()", ONE, (4, 6)),
    ("T.resize('bilinear')", ONE, (8, 8)),
    ("T.fake_quant(2)", ONE, (4, 4)),
    ("T.ternary()", ONE, (4, 4)),
    ("T.mean()", TWO, (4, 4)),
    ("T.sum()", TWO, (4, 4)),
    ("T.interpolate(0.25)", TWO, (4, 4)),
    ("T.task_vector(0.5)", TWO, (4, 4)),
    ("T.kronecker()", (FILTER[:2, :2], OTHER[:2, :3]), (4, 6)),
    ("T.chain(T.square(), T.tile())", ONE, (4, 8)),
    ("T.learn(T.scale(0.5))", ONE, (4, 4)),
    ("T.ChannelScale()", ONE, (4, 4)),
    ("T.weight_norm()", ONE, (4, 4)),
    ("T.LowRank(1)", ONE, (4, 4)),
    ("T.Mix(2)", TWO, (4, 4)),
    ("T.basis(4)", ONE, (6, 4)),
)


def main(folder: Path = DOCS) -> None:
    """Write everything into a folder."""
    (folder / "pictures").mkdir(exist_ok=True)
    rows = []
    for call, sources, shape in EXAMPLES:
        transform = fitted(call, sources, shape)
        maker = getattr(T, call.split("(")[0].removeprefix("T."))
        (folder / f"pictures/{maker.__name__}.svg").write_text(svg(sources, transform(*sources)))
        learned = "yes" if any(True for _ in parameters(transform)) else ""
        picture = f"![{maker.__name__}](pictures/{maker.__name__}.svg)"
        rows.append(f"| `{call}` | {picture} | {first_sentence(maker)} | {learned} |")
    (folder / "transforms.md").write_text(TRANSFORMS.format("\n".join(rows)), encoding="utf-8")
    (folder / "errors.md").write_text(
        ERRORS.format(errors(), errors_of_torch(), index()), encoding="utf-8"
    )
    (folder / "reference.md").write_text(reference(), encoding="utf-8")
    (folder / "llms.txt").write_text(llms(), encoding="utf-8")


# -- transforms -----------------------------------------------------------------------------------


def fitted(call: str, sources: tuple[Tensor, ...], shape: tuple[int, ...]) -> Any:
    """A transform that knows its target. What starts at nothing has learned something."""
    torch.manual_seed(0)
    transform = fitted_to(eval(call), torch.empty(shape), sources=len(sources), value=OTHER)
    with torch.no_grad():
        for name, value in parameters(transform):
            if name in ("B", "scale"):
                value.copy_(torch.linspace(-1, 1, value.numel()).reshape(value.shape))
    return transform


def parameters(transform: Any) -> Iterator[tuple[str, Tensor]]:
    return transform.named_parameters() if isinstance(transform, torch.nn.Module) else iter(())


def first_sentence(maker: Any) -> str:
    paragraph = (inspect.getdoc(maker) or "").partition("\n\n")[0]
    text = " ".join(paragraph.split())
    return re.split(r"(?<=[.]) (?=[A-Z`])", text)[0].replace("|", "\N{DIVIDES}")  # a | ends a cell


def svg(sources: tuple[Tensor, ...], result: Tensor) -> str:
    """The sources, an arrow and the result, as matrices of coloured cells."""
    parts, x = [], 0
    height = max(t.shape[-2] for t in (*sources, result)) * CELL + 2
    for i, tensor in enumerate((*sources, result)):
        if i == len(sources):
            middle = height / 2
            parts.append(
                f'<path d="M{x + 2} {middle}h12m-4 -4l4 4l-4 4" fill="none" stroke="#888"/>'
            )
            x += 22
        for matrix in tensor.detach().reshape(-1, *tensor.shape[-2:]):
            parts += cells(matrix, x, (height - matrix.shape[0] * CELL) / 2)
            x += matrix.shape[1] * CELL + 6
    size = f'width="{x}" height="{height}" viewBox="0 0 {x} {height}"'
    return f'<svg xmlns="http://www.w3.org/2000/svg" {size}>{"".join(parts)}</svg>\n'


def cells(matrix: Tensor, x: float, y: float) -> Iterator[str]:
    """Blue above zero, red below, pale near it."""
    for i, row in enumerate(matrix.tolist()):
        for j, value in enumerate(row):
            strength = min(1.0, abs(value))
            other = round(245 - 190 * strength)
            color = f"rgb({other},{other},245)" if value >= 0 else f"rgb(245,{other},{other})"
            yield (
                f'<rect x="{x + j * CELL:g}" y="{y + i * CELL:g}" width="{CELL}" height="{CELL}" '
                f'fill="{color}" stroke="#999" stroke-width=".5"/>'
            )


TRANSFORMS = """# Transforms

A transform is any callable on tensors, or an `nn.Module` with parameters of its own. These are
ready-made: `from fxtie import transforms as T`. They compare equal when they do the same, are
computed once for equal sources, and have names in rule files. Each is documented with its shapes,
its errors and its paper: `help(T.orbit)`.

What they do to a filter: the sources, and what comes of them. Blue is above zero, red below. A
learned one is shown with parameters as they might be after some training; an untrained `LowRank` or
`ChannelScale` gives its source.

| call | picture | what it gives | learned |
| --- | --- | --- | --- |
{}

Of your own, any function will do. To save rules with it, [name it](rules.md#rules-as-data) by
`fxtie.register`; if it has to know the shape of its target, give it a method `for_target`
(`help(T.FitsTarget)`).
"""

# -- errors ---------------------------------------------------------------------------------------


def errors() -> str:
    """A row for each exception and warning."""
    found = [value for name in fxtie.__all__ if is_raised(value := getattr(fxtie, name))]
    found.sort(key=lambda cls: len(cls.__mro__))
    return "\n".join(f"| `fxtie.{cls.__name__}` | {first_sentence(cls)} |" for cls in found)


def is_raised(value: Any) -> bool:
    return isinstance(value, type) and issubclass(value, Exception)


def errors_of_torch() -> str:
    """A row for each error of torch."""
    return "\n".join(f"| `{says}` | {why} | {remedy} |" for says, why, remedy in TORCH)


def index() -> str:
    """A section for each cause: why, what to do, its messages, and examples of them."""
    told: dict[Cause, list[Message]] = {cause: [] for cause in CAUSES}
    for message in messages():
        told[cause_of(message.where)].append(message)
    shown: dict[Cause, list[str]] = {cause: [] for cause in CAUSES}
    for title, text in examples():
        fitting = [message for some in told.values() for message in some if message.fits(text)]
        if not fitting:
            raise LookupError(f"docs/messages.py finds no message like this: {text}")
        best = max(fitting, key=lambda message: len(message.text))
        shown[cause_of(best.where)].append(f"### {title}\n\n```text\n{text}\n```")
    sections = []
    for cause, some in told.items():
        listed = dict.fromkeys(f"* `` {message.text} ``" for message in some)
        head = f"## {cause.title}\n\n{cause.why}\n\n**What to do.** {cause.remedy}"
        sections += [head, "\n".join(listed), *shown[cause]]
    return "\n\n".join(sections)


def examples() -> Iterator[tuple[str, str]]:
    """What has gone wrong, and what is said then, of the snapshot."""
    for part in FAULTS.read_text(encoding="utf-8").strip().split("\n\n# "):
        why, _, text = part.removeprefix("# ").partition("\n")
        yield why[0].upper() + why[1:], "\n".join(map(str.rstrip, text.splitlines()))


ERRORS = """# What errors mean

Each message of fxtie, read from its source (… stands for what differs), with why it comes and what
to do. A message itself says what was found, where, and what to write instead. All faults in names
of a rule set are one error, then all in shapes; faults that differ only in their target are one.

| raised | when |
| --- | --- |
{}

## Errors of torch

Where torch looks for a stored tensor and finds a derived one, or the other way round, it is torch
that speaks. [Gotchas](gotchas.md) has examples.

| torch says | why | what to do |
| --- | --- | --- |
{}

{}
"""

# -- reference.md ---------------------------------------------------------------------------------


def reference() -> str:
    """What mkdocstrings fills with signatures and docstrings."""
    names = [f"::: fxtie.{name}" for name in fxtie.__all__ if name not in ("same", "transforms")]
    made = sorted({call.split("(")[0].removeprefix("T.") for call, _, _ in EXAMPLES})
    protocols = ("Transform", "FitsTarget", "ComparesLayers")
    listed = [f"::: fxtie.transforms.{name}" for name in (*made, *protocols)]
    intro = "Filled by `./run docs`. In Python: `help(fxtie.Rule)`."
    parts = ["# Reference", intro, "## fxtie", *names, "## fxtie.transforms", *listed]
    return "\n\n".join(parts) + "\n"


# -- llms.txt -------------------------------------------------------------------------------------


def llms() -> str:
    """What https://llmstxt.org asks for: what this is, and where what stands."""
    pages = [
        (path, re.search(r"^# (.*)$", path.read_text(encoding="utf-8"), re.MULTILINE))
        for path in sorted(DOCS.rglob("*.md"))
    ]
    listed = [f"- [{title[1]}]({path.relative_to(DOCS)})" for path, title in pages if title]
    names = [f"- `fxtie.{n}`: {first_sentence(getattr(fxtie, n))}" for n in fxtie.__all__]
    calls = [f"- `{call}`" for call, _, _ in EXAMPLES]
    return "\n".join(
        [
            "# fxtie",
            "",
            f"> {first_sentence(fxtie).removeprefix('fxtie: ')}",
            "> Rules go in, a tied model of the same class comes out.",
            "",
            "## Pages",
            "",
            *listed,
            "",
            "## Names",
            "",
            *(name for name in names if "fxtie.transforms`" not in name),
            "",
            "## Transforms",
            "",
            *calls,
            "",
        ]
    )


if __name__ == "__main__":
    main()
