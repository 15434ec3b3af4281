"""Figures as tables and plots.

In: `Figure`s. Out: text, `docs/speed.md` and its plots. Called by `speed.py`.
"""

from __future__ import annotations

import platform
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import instructions
import torch
from figures import Figure
from speed_pass import BY_SIZE
from speed_ways import WAY
from tabulate import tabulate

INTRODUCTION = """# Speed

Written by `python benchmarks/speed.py --docs`. Every ratio was measured side by side: what is
compared runs in turn in one process, on one thread; a figure is the median of the pairs' ratios,
with the quartiles around it. Below 1 is faster, or less, than what it is compared with. The clock
is the processor time of the process, so that other work on the machine counts little.
"""

PEERS = """## Against other ways to tie

Ratios to the untied model. *hand-linked*: layers that call `F.conv2d(x, f(other.weight), ...)`;
*parametrize*: `torch.nn.utils.parametrize`, plain and inside of its `cached()`; *functional_call*:
all tensors derived first, then `torch.func.functional_call`. A train step is forward, backward and
Adam. All ways compute the same, which is checked before they are timed.
"""

WORKLOADS = """## What is run

* **16 blocks**: residual 3 x 3 convs of 16 channels on 16 x 16 images; all derive from the first by
  `torch.square`.
* **ResNet-50**: 64 x 64 images; convs of equal shape in a stage derive from the first of them.
* **ViT-B/16**: 64 x 64 images; the Linears of each block derive from those of the first.
* **decoder**: 24 layers of width 384 on 8 tokens; all Linears derive from those of the first.
* **100 targets**: Linears of width 32; each derives from the first by a roll of its own, so that no
  two derivations are equal.
* **chain of 50**: Linears of width 32; each derives from the one before it by `torch.sin`.
"""

WAYS = """## What makes it fast

Each alone: the same tied model with it and without. The first three are always done, the others on
request (arguments of `fxtie.transform`): they cost more than they save where they don't fit.
"""

REMARKS = """## Remarks

* **Inference.** Deriving is work that the untied model doesn't have. Where many layers share one
  derived tensor it is repaid by weights that stay in the cache. Where a large weight is derived for
  few layers (ResNet-50, ViT-B/16), or each layer derives its own (the chain), it is not; there,
  `derive_once` and `materialize` are for inference. Two columns say what can be had: *derive_once*,
  where nothing is left to derive, and *derivations alone*, which come on top of it.
* **Memory.** A tied model has no gradient, no optimizer states and no storage of a dropped tensor,
  but has the derived one while it is used. With one for many layers that saves close to 4 times the
  dropped bytes, with one per layer close to 3. The 16 small blocks reach their peak where backward
  begins, when the untied model has no gradients yet: 3 times, less the derived tensor.
* **Time of `transform`.** With everything tied, the graph has twice the nodes of a stock trace, and
  where the modes differ, training and evaluation have a graph each: four times the nodes. The code
  of the other mode is generated when that mode is set for the first time, and is not counted here.
* **Equinox**, where installed, is measured against the untied model in Equinox; *train step,
  compiled* is what to compare it with.
* **Chain of 50.** Linked by hand or by plain `parametrize`, each layer derives all that come before
  it again: the work is quadratic. A graph derives each once.
* **Compile time.** What is derived is more to compile than what is stored: 50 more kernels in the
  chain; in the decoder, sums of the gradients of 24 uses. Compiled steps are faster all the same.
"""

INSTRUCTIONS = """## Instructions of the pass

Python's bytecode instructions that `fxtie.transform` runs. They repeat exactly, so that CI compares
them with those that are committed (`python benchmarks/speed.py --count`).
"""


def table(figures: Iterable[Figure], form: str, *, headers: bool = True) -> str:
    """One line per figure."""
    names = ("what", "workload", "subject", "against", "figure", "quartiles", "goal", "")
    body = [
        (
            figure.what,
            figure.workload,
            figure.subject,
            figure.against,
            f"{number(figure.ratio.median)} {figure.unit}".rstrip(),
            spread(figure),
            _goal(figure),
            {True: "met", False: "not met", None: ""}[figure.met],
        )
        for figure in figures
    ]
    return tabulate(body, names if headers else (), tablefmt=form, disable_numparse=True)


def number(value: float) -> str:
    return f"{value:.3f}" if value < 10 else f"{value:.1f}"


def spread(figure: Figure) -> str:
    ratio = figure.ratio
    return "" if ratio.samples == 1 else f"{number(ratio.low)} - {number(ratio.high)}"


def _goal(figure: Figure) -> str:
    if figure.goal is None:
        return ""
    return f"{'>=' if figure.at_least else '<='} {figure.goal:g}"


def against_untied(figures: Iterable[Figure], what: str) -> dict[str, dict[str, Figure]]:
    """Ratios to the untied model: subjects by workload."""
    found: dict[str, dict[str, Figure]] = {}
    for figure in figures:
        if figure.what == what and figure.against == "untied":
            found.setdefault(figure.workload, {})[figure.subject] = figure
    return found


def peers(figures: Sequence[Figure], what: str) -> str:
    """One line per workload, one column per way to tie."""
    rows = against_untied(figures, what)
    subjects = list(dict.fromkeys(subject for row in rows.values() for subject in row))
    body = [
        [label, *(number(row[s].ratio.median) if s in row else "" for s in subjects)]
        for label, row in rows.items()
    ]
    return tabulate(body, [what, *subjects], tablefmt="github", disable_numparse=True)


COMPARED = ("train step, eager", "inference, eager", "train step, compiled")


def write_docs(figures: Sequence[Figure], folder: Path) -> None:
    """`speed.md`, with `speed.png` and `growth.png` beside it."""
    goals = [figure for figure in figures if figure.goal is not None]
    ways = [replace(f, what=f.what.removeprefix(WAY)) for f in figures if f.what.startswith(WAY)]
    rest = [
        f
        for f in figures
        if f.goal is None and f.what not in COMPARED and not f.what.startswith(WAY)
    ]
    met = sum(figure.met is True for figure in goals)
    parts = [
        INTRODUCTION,
        f"Python {platform.python_version()}, torch {torch.__version__}, "
        f"{platform.machine()}, one thread.\n",
        f"## Goals\n\n{met} of {len(goals)} are met.\n",
        table(goals, "github") + "\n",
        PEERS,
        *(peers(figures, what) + "\n" for what in COMPARED),
        "![Ratios to the untied model](speed.png)\n",
        WAYS,
        table(ways, "github") + "\n",
        "## Everything else\n",
        table(rest, "github") + "\n",
        "![Growth of transform](growth.png)\n",
        REMARKS,
        WORKLOADS,
        INSTRUCTIONS,
        tabulate(
            [(name, f"{value:,}") for name, value in instructions.committed().items()],
            (instructions.versions(), "instructions"),
            tablefmt="github",
            disable_numparse=True,
        )
        + "\n",
    ]
    folder.joinpath("speed.md").write_text("\n".join(parts))
    plot(figures, folder / "speed.png")
    plot_growth(figures, folder / "growth.png")


def plot(figures: Sequence[Figure], path: Path, compared: Iterable[str] = COMPARED) -> None:
    """Every way to tie, by workload: medians, with the quartiles as bars."""
    pyplot = pyplot_of_files()
    found = [(what, rows) for what in compared if (rows := against_untied(figures, what))]
    heights = [len(rows) for _, rows in found]
    figure, axes = pyplot.subplots(
        len(found),
        figsize=(8, 1 + 0.55 * sum(heights)),
        height_ratios=heights,
        sharex=True,
        squeeze=False,
        layout="constrained",
    )
    colors = {s: f"C{i}" for i, s in enumerate(dict.fromkeys(f.subject for f in figures))}
    for (what, rows), axis in zip(found, axes.flat, strict=True):
        for row, subjects in enumerate(rows.values()):
            for i, (subject, f) in enumerate(subjects.items()):
                axis.errorbar(
                    f.ratio.median,
                    row + 0.7 * ((i + 0.5) / len(subjects) - 0.5),
                    xerr=[[f.ratio.median - f.ratio.low], [f.ratio.high - f.ratio.median]],
                    fmt="D" if subject == "fxtie" else "o",
                    color=colors[subject],
                    label=subject,
                    markersize=5,
                )
        axis.set_yticks(range(len(rows)), rows)
        axis.set_ylim(len(rows) - 0.5, -0.5)
        axis.set_xscale("log")
        axis.axvline(1, color="black", linewidth=0.8)
        axis.set_title(what, loc="left", fontsize="medium")
    low, high = axes.flat[-1].get_xlim()
    ticks = [10.0**i * j for i in range(-1, 3) for j in (1, 1.5, 2, 3, 5, 7)]
    ticks = [tick for tick in ticks if low <= tick <= high]
    axes.flat[-1].minorticks_off()
    axes.flat[-1].set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.flat[-1].set_xlabel("time, ratio to the untied model (log scale; less is faster)")
    handles = {
        label: handle
        for axis in axes.flat
        for handle, label in zip(*axis.get_legend_handles_labels(), strict=True)
    }
    figure.legend(handles.values(), handles, loc="outside lower center", ncols=4, frameon=False)
    figure.savefig(path, dpi=90)
    pyplot.close(figure)


def plot_growth(figures: Sequence[Figure], path: Path) -> None:
    """Seconds of `transform` by the number of ties, on log-log axes, beside a straight line."""
    pyplot = pyplot_of_files()
    curves: dict[str, dict[int, float]] = {}
    for figure in figures:
        if figure.what == BY_SIZE:
            size, _, case = figure.workload.partition(" ")
            curves.setdefault(case, {})[int(size.replace(",", ""))] = figure.ratio.median
    if not curves:
        return
    drawing, axis = pyplot.subplots(figsize=(5, 3.5), layout="constrained")
    for case, curve in curves.items():
        axis.loglog(list(curve), list(curve.values()), "o-", label=case)
        (least, seconds), *_ = curve.items()
        linear = [seconds * size / least for size in curve]
        axis.loglog(list(curve), linear, ":", color="gray", linewidth=1)
    axis.set_xlabel("ties (dotted: in proportion)")
    axis.set_ylabel("transform, seconds")
    axis.legend(frameon=False)
    drawing.savefig(path, dpi=90)
    pyplot.close(drawing)


def pyplot_of_files() -> Any:
    """matplotlib's pyplot, which needs no display."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot
