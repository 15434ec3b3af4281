"""Results of `gpu.py` as a page.

In: `Results`. Out: `docs/gpu.md` and its plots, which say it if nothing has run on a GPU.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from figures import Figure
from gpu_cases import (
    COMPILED,
    DEPTH,
    EAGER,
    GOALS,
    GRAPHS,
    INFERENCE,
    KERNELS,
    LONGEST,
    MANY,
    MANY_KERNELS,
    MEMORY,
    MODES,
    ONE_BY_ONE,
    PEAK,
    PIXELS,
    RECOMPUTED,
    SAVED,
    TIES,
    TOKENS,
    TRAIN,
    WIDTH,
    Goal,
    cases,
)
from gpu_results import BAD, DONE, Attempt, Results
from speed_report import number, plot, pyplot_of_files, spread, table
from tabulate import tabulate

INTRODUCTION = """# On a GPU

Written by `./run gpu --docs`, not by hand, from `benchmarks/gpu.jsonl`, which `./run gpu` writes on
a machine with a GPU, without a network; commit both. It takes under 8 minutes, for what is worth
most first: a run whose time is up, or that is cut off, keeps what it has found, and the next one
goes on from there. Where nothing can be installed, `python benchmarks/gpu.py` does the same with
any Python that has torch, pytest and numpy.
"""

NEVER = """**Never run on a GPU.** There are no figures yet. A test runs the same code on the CPU,
at small sizes; what that measures says nothing about a GPU, and is not told here.
"""

HOW = f"""## How it is measured

The cases run in the order of their worth, each in a process of its own and with a part of the time.

1. **Tests**: those of the whole suite whose parameters name the device.
2. **Speed**: a train step (forward, backward, Adam) and inference, timed by CUDA events: *untied*,
   *hand-linked*, *parametrize* and *fxtie* run in turn. Medians, with the quartiles around them.
   *{EAGER}* is the model as it is, *{COMPILED}* `torch.compile(model)`, *{GRAPHS}*
   `torch.compile(model, mode="reduce-overhead")`. All ways to tie give the same outputs, which is
   checked before they are timed. The decoder is in bfloat16: {DEPTH} layers of width {WIDTH} on
   {TOKENS} tokens; all derive from the first by `torch.square`. ResNet-50 and ViT-B/16 are in
   float32, with matrix products in TF32, on images of {PIXELS} x {PIXELS} pixels, tied as in
   [speed.md](speed.md). The learning rate is 0, so that the weights stay what they are.
3. **Kernels**: those that `torch.profiler` sees in one train step.
4. **Memory**: the most that tensors take in a train step (`torch.cuda.max_memory_allocated`).
5. **Many derivations as one**: {TIES} layers derive by `torch.square`, each from a layer of its
   own: by a call for each, by one of `torch._foreach_mul`, by that compiled, or by all the calls
   compiled as one function with Inductor's `combo_kernels`.
6. **What fits**: the longest sequence whose train step takes at most {MEMORY / 2**30:g} GiB.
"""

WORTH = 0.95  # of a step: what one call for all derivations must reach to be built

PARTS: dict[str, tuple[str, ...]] = {
    "Speed": tuple(f"{what}, {mode}" for mode in MODES for what in (TRAIN, INFERENCE)),
    "Kernels": tuple(f"{KERNELS}, {mode}" for mode in MODES),
    "Memory": (PEAK, SAVED, RECOMPUTED),
    "Many derivations as one": (MANY, MANY_KERNELS),
    "What fits": (LONGEST,),
}


def of_a_gpu(results: Iterable[Results]) -> Results | None:
    """What was measured last on a GPU, in full size."""
    found = [r for r in results if r.environment["type"] == "cuda" and not r.environment["small"]]
    return found[-1] if found else None


def page(results: Results | None) -> str:
    """All that there is to tell; without results, that there are none."""
    if results is None:
        return "\n".join([INTRODUCTION, NEVER, _goals([]), HOW])
    attempts = _attempts(results)
    figures = [figure for attempt in attempts.values() for figure in attempt.figures]
    parts = [INTRODUCTION, _environment(results), _goals(figures), _tests(attempts)]
    for heading, whats in PARTS.items():
        tables = [columns(figures, what) for what in whats if any(f.what == what for f in figures)]
        parts.append("\n".join([f"## {heading}\n", *(tables or ["Not measured.\n"])]))
        if heading == "Speed" and tables:
            parts.append("![Ratios to the untied model](gpu.png)\n")
        if heading == "Memory" and tables:
            parts.append("![Peak memory of a train step](gpu-memory.png)\n")
        if heading == "Many derivations as one" and tables:
            parts.append(verdict(figures))
    return "\n".join([*parts, _cases(results), HOW])


def write_docs(results: Sequence[Results], folder: Path) -> None:
    """`gpu.md`, and with figures `gpu.png` and `gpu-memory.png` beside it."""
    found = of_a_gpu(results)
    (folder / "gpu.md").write_text(page(found), encoding="utf-8")
    if found is None:
        return
    figures = [f for attempt in _attempts(found).values() for f in attempt.figures]
    if any(f.what in PARTS["Speed"] for f in figures):
        plot(figures, folder / "gpu.png", PARTS["Speed"])
    if any(f.what == PEAK for f in figures):
        plot_memory([f for f in figures if f.what == PEAK], folder / "gpu-memory.png")


def _attempts(results: Results) -> dict[str, Attempt]:
    found = {name: results.case(name) for name in results.attempts}
    return {name: attempt for name, attempt in found.items() if attempt is not None}


def _environment(results: Results) -> str:
    told = {k: v for k, v in results.environment.items() if k not in ("type", "small")}
    told["fxtie"] = ", ".join(results.commits)
    return tabulate(told.items(), ("run on", ""), "github", disable_numparse=True) + "\n"


def _goals(figures: Sequence[Figure]) -> str:
    """What is to be reached, and whether it is."""
    found = [figure for figure in figures if figure.goal is not None]
    missing = [goal for goal in GOALS if not any(goal.is_of(figure) for figure in figures)]
    parts = ["## Goals\n"]
    if found:
        met = sum(figure.met is True for figure in found)
        parts += [f"{met} of {len(found)} are met.\n", table(found, "github") + "\n"]
    if missing:
        parts += ["Not measured:\n", *(f"* {_told(goal)}" for goal in missing), ""]
    return "\n".join(parts)


def _told(goal: Goal) -> str:
    batch = ", batch 1" if goal.batch_1 else ""
    sign = ">=" if goal.at_least else "<="
    compared = f"{goal.subject} / {goal.against}"
    if goal.what == SAVED:
        compared = f"{goal.subject}, times the dropped bytes,"
    return f"{goal.what}{batch}: {compared} {sign} {goal.value:g}"


def _tests(attempts: dict[str, Attempt]) -> str:
    """How many passed, and which did not."""
    outcomes = {name: o for attempt in attempts.values() for name, o in attempt.tests.items()}
    counts = Counter(outcome.word for outcome in outcomes.values())
    told = ", ".join(f"{count} {word}" for word, count in counts.most_common()) or "Not run"
    bad = [f"* `{n}`, {o.word}: {o.why}\n" for n, o in outcomes.items() if o.word in BAD]
    return "\n".join(["## Tests\n", f"{told}.\n", "".join(bad)])


def columns(figures: Sequence[Figure], what: str) -> str:
    """One line per workload; a column for each way, and one for each pair that is compared."""
    found: dict[str, dict[str, Figure]] = {}
    for figure in figures:
        if figure.what == what:
            against = f" / {figure.against}" if figure.against and not figure.unit else ""
            unit = f", {figure.unit}" if figure.unit else ""
            row = found.setdefault(figure.workload, {})
            row[f"{figure.subject}{against}{unit}"] = figure
    every = dict.fromkeys(name for row in found.values() for name in row)
    names = sorted(every, key=lambda name: " / " in name)
    body = [
        [label, *(_cell(row[name]) if name in row else "" for name in names)]
        for label, row in found.items()
    ]
    return tabulate(body, [what, *names], "github", disable_numparse=True) + "\n"


def _cell(figure: Figure) -> str:
    median = figure.ratio.median
    value = f"{median:,}" if isinstance(median, int) else number(median)  # counts are exact
    return f"{value} ({spread(figure)})".removesuffix(" ()")


def verdict(figures: Sequence[Figure]) -> str:
    """Whether one call for many derivations is worth building."""
    tried = [f for f in figures if f.what == MANY and f.against == ONE_BY_ONE]
    if not tried:
        return "Nothing was compared.\n"
    best = min(tried, key=lambda figure: figure.ratio.median)
    worth = "is worth building" if best.ratio.median < WORTH else "is not worth building"
    return (
        f"The fastest, *{best.subject}*, takes {number(best.ratio.median)} of the step with one "
        f"call for each. One call for all {worth}: the bar is {WORTH:g}.\n"
    )


def _cases(results: Results) -> str:
    """What ran, and how it ended."""
    body = []
    for name in dict.fromkeys([*(case.name for case in cases(small=False)), *results.attempts]):
        attempt = results.case(name)
        if attempt is None:
            body.append([name, "not begun", "", ""])
        else:
            body.append([name, attempt.ended, f"{attempt.seconds:.0f} s", _remark(attempt)])
    return "## What ran\n\n" + tabulate(body, ("case", "", "", ""), "github") + "\n"


def _remark(attempt: Attempt) -> str:
    """Why it did not come to its end, or where CUDA graphs were not used."""
    lines = attempt.log.replace("|", r"\|").splitlines()
    if attempt.ended == DONE:
        lines = [line for line in lines if "skipping cudagraphs" in line]
    return lines[-1][:200] if lines else ""


def plot_memory(figures: Sequence[Figure], path: Path) -> None:
    """The peak of each way, as a bar, by workload."""
    pyplot = pyplot_of_files()
    workloads = list(dict.fromkeys(figure.workload for figure in figures))
    subjects = list(dict.fromkeys(figure.subject for figure in figures))
    drawing, axes = pyplot.subplots(
        1, len(workloads), figsize=(3 * len(workloads), 3.2), squeeze=False, layout="constrained"
    )
    for workload, axis in zip(workloads, axes.flat, strict=True):
        for figure in figures:
            if figure.workload == workload:
                color = f"C{subjects.index(figure.subject)}"
                axis.bar(figure.subject, figure.ratio.median, color=color)
        axis.set_title(workload, fontsize="medium")
        axis.tick_params(axis="x", rotation=45)
        axis.set_ylabel("MiB")
    drawing.savefig(path, dpi=90)
    pyplot.close(drawing)
