"""Tie every model of torchvision, and one of every timm family, and compare each with the oracle.

    ./run zoo --subset ci            about 20 models that cover every way a model can be tied
    ./run zoo --only 'timm/vit.*'    by name
    ./run zoo --docs docs/zoo.md     everything, with the table for the docs
    ./run zoo --transformers         small models of all architectures of transformers instead

Each model is built, tied (all groups of equal layers, and again only one pair), run in eval and in
train, forward and backward, in a process of its own. Results go to a JSON-lines file; models that
are in it already are not run again.
"""

from __future__ import annotations

import argparse
import gc
import json
import multiprocessing
import os
import re
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, as_completed
from multiprocessing.connection import Connection
from pathlib import Path
from types import ModuleType
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "tests" / "helpers"), str(ROOT / "benchmarks")]

CI = {
    "torchvision": [
        "torchvision/resnet18",
        "torchvision/densenet121",
        "torchvision/googlenet",
        "torchvision/shufflenet_v2_x0_5",
        "torchvision/swin_t",
        "torchvision/vit_b_32",
        "torchvision/raft_small",
        "torchvision/deeplabv3_mobilenet_v3_large",
        "torchvision/ssdlite320_mobilenet_v3_large",
        "torchvision/r3d_18",
        "timm/resnetv2_50",
        "timm/mobilenetv3_small_050",
        "timm/regnetx_002",
        "timm/tf_efficientnet_b0",
        "timm/levit_128s",
        "timm/coat_lite_tiny",
        "timm/crossvit_tiny_240",
        "timm/hrnet_w18_small",
        "timm/nf_resnet26",
        "timm/swin_tiny_patch4_window7_224",
    ],
    "transformers": [
        "transformers/bert",
        "transformers/clip",
        "transformers/gemma3_text",
        "transformers/mamba",
        "transformers/mixtral",
        "transformers/resnet",
        "transformers/t5",
        "transformers/whisper",
    ],
}


def catalogue(suite: str) -> ModuleType:
    """The file that knows the models of a suite: the first part of their names."""
    if suite == "transformers":
        import zoo_transformers

        return zoo_transformers
    import zoo_models

    return zoo_models


# -- one model, in a process of its own ---------------------------------------------------------


def measure(name: str) -> dict[str, Any]:
    """Tie one model in both ways and compare. Returns a row of the results."""
    import torch
    from grouping import tie_groups
    from oracle import Vacuous, compare
    from torch import fx
    from zoo_models import NotTried, calibrate, smallest_size

    import fxtie

    torch.manual_seed(0)
    try:
        specimen = catalogue(name.partition("/")[0]).make(name)
    except NotTried as reason:
        return {"model": name, "not_tried": str(reason)[:200]}
    size = smallest_size(specimen)
    model = specimen.model
    row: dict[str, Any] = {"model": name}
    try:
        _, row["symbolic_trace_s"] = timed(fx.symbolic_trace, model)
    # Any failure of the stock tracer is one figure of this table.
    except Exception as error:
        row["symbolic_trace_error"] = f"{type(error).__name__}: {error}"[:200]
    for which in ("all", "pair"):
        ties = tie_groups(model, only_pair=which == "pair")
        if not ties:
            return {"model": name, "not_tried": "no two layers are of equal type and shape"}
        calibrate(specimen, size, ties)
        tied, row[f"{which}_pass_s"] = timed(fxtie.transform, model, ties)
        report = fxtie.report(tied)
        row |= {
            f"{which}_ties": report.ties,
            f"{which}_regions": report.regions,
            f"{which}_kept": [str(kept).replace(sys.prefix, "") for kept in report.kept],
            f"{which}_parameters": report.parameters,
            f"{which}_graph": isinstance(tied, fx.GraphModule),
        }
        for train in (False, True):
            args, kwargs = specimen.inputs(size, train)
            try:
                result = compare(model, tied, report.plan.ties, args, kwargs, train=train)
            except Vacuous as reason:  # there is nothing to be equal to
                return {"model": name, "not_tried": f"tied so, it computes nothing: {reason}"}
            mode = "train" if train else "eval"
            row |= {
                f"{which}_{mode}_error": result.output_error,
                f"{which}_{mode}_gradient_error": result.gradient_error,
                f"{which}_{mode}_exact": result.exact,
                f"{which}_{mode}_norm": result.output_norm,
            }
    row["ok"] = all(
        row[f"{which}_eval_exact"]
        and row[f"{which}_train_exact"]
        and max(row[f"{which}_eval_gradient_error"], row[f"{which}_train_gradient_error"]) < 1e-5
        for which in ("all", "pair")
    )
    return row


def timed(function: Callable[..., Any], *args: Any) -> tuple[Any, float]:
    """What a call returns, and the processor time that it takes, in seconds."""
    function(*args)  # the first run imports and fills caches
    gc.collect()  # so that each function pays for its own garbage
    start = time.process_time()
    result = function(*args)
    return result, time.process_time() - start


_PROCESSES = multiprocessing.get_context("forkserver")
_PRELOADED = ["fxtie", "grouping", "oracle"]


def measure_apart(name: str, timeout: float) -> dict[str, Any]:
    """`measure` in a process of its own: a crash loses one row."""
    mine, theirs = _PROCESSES.Pipe(duplex=False)
    process = _PROCESSES.Process(target=_serve, args=(name, theirs), daemon=True)
    process.start()
    theirs.close()  # so that the death of the process is seen
    try:
        row: dict[str, Any] = mine.recv() if mine.poll(timeout) else {}
    except EOFError:
        process.join()
        return {"model": name, "ok": False, "error": f"exit code {process.exitcode}"}
    finally:
        process.kill()
        process.join()
    return row or {"model": name, "ok": False, "error": f"took more than {timeout:.0f} s"}


def _serve(name: str, end: Connection) -> None:
    """What the process does."""
    import torch

    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    torch._dynamo.config.disable = True  # torchvision compiles a helper of roi_align: minutes here
    try:
        end.send(measure(name))
    # Any failure of a model is a row of this table.
    except Exception as error:
        what = f"{type(error).__name__}: {error}".splitlines()[0]
        end.send({"model": name, "ok": False, "error": what[:300]})


# -- tables -------------------------------------------------------------------------------------


def table(rows: list[dict[str, Any]], form: str) -> str:
    """One line per model."""
    from tabulate import tabulate

    body = []
    for row in sorted(rows, key=lambda r: r["model"]):
        if "error" in row:
            body.append([row["model"], "", "", "", "", "", "", "", row["error"]])
            continue
        modes = [f"{which}_{mode}" for which in ("all", "pair") for mode in ("eval", "train")]
        error = max(row[f"{m}_error"] for m in modes)
        gradient = max(row[f"{m}_gradient_error"] for m in modes)
        stock = row.get("symbolic_trace_s")
        body.append(
            [
                row["model"],
                row["all_ties"],
                row["all_regions"],
                len(row["all_kept"]),
                "0" if error == 0 else f"{error:.0e}",
                f"{gradient:.0e}",
                f"{row['all_eval_norm']:.2g}",
                f"{row['all_pass_s']:.2f} / {row['pair_pass_s']:.2f}",
                "fails" if stock is None else f"{stock:.2f}",
            ]
        )
    headers = (
        "model",
        "ties",
        "regions",
        "kept",
        "output error",
        "gradient error",
        "output norm",
        "pass, s (all / one)",
        "symbolic_trace, s",
    )
    return tabulate(body, headers, tablefmt=form, disable_numparse=True)


def totals(rows: list[dict[str, Any]]) -> str:
    """The figures that matter, in a sentence each."""
    ran = [row for row in rows if "error" not in row]
    lines = [
        f"{sum(row['ok'] for row in rows)} of {len(rows)} models tied and equal to the oracle.",
        f"{sum(row['all_eval_exact'] and row['pair_eval_exact'] for row in ran)} bit for bit in "
        f"eval, {sum(row['all_train_exact'] and row['pair_train_exact'] for row in ran)} in train.",
        f"{sum(row['all_graph'] for row in ran)} as one graph from the root, with every group of "
        f"layers tied; {sum(not row['all_kept'] for row in ran)} with no module kept.",
        f"{sum('symbolic_trace_s' in row for row in ran)} can be traced by "
        f"torch.fx.symbolic_trace.",
    ]
    traced = [row for row in ran if "symbolic_trace_s" in row]
    if traced:
        for which, what in (("all", "everything tied"), ("pair", "one pair tied")):
            ratio = statistics.median(
                row[f"{which}_pass_s"] / row["symbolic_trace_s"] for row in traced
            )
            lines.append(f"Time of the pass with {what}: {ratio:.2f} of symbolic_trace, median.")
    return "\n".join(lines)


def not_tried(rows: list[dict[str, Any]], form: str) -> str:
    """Which models were not tried, and what they say to numbers or inputs."""
    from tabulate import tabulate

    body = [
        (row["model"], f"`{row['not_tried'].replace('`', chr(39)).replace('|', '/')}`")
        for row in sorted(rows, key=lambda r: r["model"])
    ]
    return tabulate(body, ("model", "what it says"), tablefmt=form, disable_numparse=True)


_PAGES = {
    "torchvision": """\
# The zoo

Written by `./run zoo --docs docs/zoo.md`. All groups of layers of equal type and shape are tied,
each derived from its first layer by a flip; and once more only one pair. Outputs and gradients, in
eval and in train, are compared with `torch.func.functional_call`.""",
    "transformers": """\
# The zoo of transformers

Written by `./run zoo --transformers --docs docs/zoo-transformers.md`: all that `AutoModel` of
transformers {version} knows, with the numbers of each configuration made small, tied and compared
as in [the zoo](zoo.md). Inputs are chosen by the names of the arguments: tokens, pixels, sound.""",
}


def page(suite: str, rows: list[dict[str, Any]], missing: int) -> str:
    """The page of the docs.

    Args:
        missing: how many have no row yet.
    """
    from importlib.metadata import version

    tried = [row for row in rows if "not_tried" not in row]
    left_out = [row for row in rows if "not_tried" in row]
    parts = [_PAGES[suite].format(version=version(suite)), totals(tried)]
    if missing:
        parts.append(f"{missing} more have not been run yet.")
    parts.append(table(tried, "github"))
    if left_out:
        parts += [
            "## Not tried",
            f"{len(left_out)} more can't be made small by the same rules, or are called in a way "
            f"that the names of\ntheir arguments don't tell. What they say, untied, to the first "
            f"try:",
            not_tried(left_out, "github"),
        ]
    return "\n\n".join(parts) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--subset", choices=["ci", "all"], default="all")
    parser.add_argument("--only", metavar="REGEX", help="models whose name matches")
    parser.add_argument("--transformers", action="store_true", help="small ones of AutoModel")
    parser.add_argument("--out", type=Path, help="the JSON lines; in out/ by default")
    parser.add_argument("--docs", type=Path, help="write the table here, as markdown")
    parser.add_argument("--jobs", type=int, default=2, help="0 shows what there is")
    parser.add_argument("--timeout", type=float, default=900, help="seconds per model")
    options = parser.parse_args()

    from tqdm import tqdm

    suite = "transformers" if options.transformers else "torchvision"
    wanted = CI[suite] if options.subset == "ci" else catalogue(suite).names()
    if options.only:
        wanted = [name for name in wanted if re.search(options.only, name)]
    out = options.out or ROOT / "out" / f"zoo-{suite}.jsonl"
    out.parent.mkdir(parents=True, exist_ok=True)
    rows = {}
    if out.exists():
        for line in out.read_text().splitlines():
            row = json.loads(line)
            rows[row["model"]] = row
    pending = [name for name in wanted if name not in rows] if options.jobs else []
    os.environ |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    os.environ |= {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error"}
    _PROCESSES.set_forkserver_preload([*_PRELOADED, *catalogue(suite).PRELOADED])
    with out.open("a") as file, ThreadPoolExecutor(options.jobs or 1) as pool:
        progress = tqdm(total=len(wanted), initial=len(wanted) - len(pending), unit="model")
        runs = [pool.submit(measure_apart, name, options.timeout) for name in pending]
        for row in (run.result() for run in as_completed(runs)):
            rows[row["model"]] = row
            file.write(json.dumps(row) + "\n")
            file.flush()
            progress.update()
            if not row.get("ok", True):
                progress.write(f"{row['model']}: {row.get('error', 'differs from the oracle')}")
        progress.close()
    shown = [rows[name] for name in wanted if name in rows]
    tried = [row for row in shown if "not_tried" not in row]
    print(table(tried, "simple"))
    print(totals(tried))
    if left_out := len(shown) - len(tried):
        print(f"{left_out} were not tried.")
    if missing := len(wanted) - len(shown):
        print(f"{missing} have not been run yet.")
    if options.docs:
        options.docs.write_text(page(suite, shown, missing))
    return 0 if all(row["ok"] for row in tried) and not missing else 1


if __name__ == "__main__":
    sys.exit(main())
