"""Tie every model of torchvision, and one of every timm family, and compare each with the oracle.

    ./run zoo --subset ci            about 20 models that cover every way a model can be tied
    ./run zoo --only 'timm/vit.*'    by name
    ./run zoo --docs docs/zoo.md     everything, with the table for the docs

Each model is built, tied (all groups of equal layers, and again only one pair), run in eval and in
train, forward and backward, in a process of its own. Results go to a JSON-lines file; models that
are in it already are not run again.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import re
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "tests" / "helpers"), str(ROOT / "benchmarks")]

CI = [
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
]


# -- one model, in a process of its own ---------------------------------------------------------


def measure(name: str) -> dict[str, Any]:
    """Tie one model in both ways and compare. Returns a row of the results."""
    import torch
    from grouping import tie_groups
    from oracle import compare
    from torch import fx
    from zoo_models import calibrate, make, smallest_size

    import fxtie

    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    torch._dynamo.config.disable = True  # torchvision compiles a helper of roi_align: minutes here
    torch.manual_seed(0)
    specimen = make(name)
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
            result = compare(model, tied, report.plan.ties, args, kwargs, train=train)
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


def measure_apart(name: str, timeout: float) -> dict[str, Any]:
    """`measure` in a process of its own: a crash loses one row."""
    command = [sys.executable, __file__, "--one", name]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=timeout, env=environment
        )
    except subprocess.TimeoutExpired:
        return {"model": name, "ok": False, "error": f"took more than {timeout:.0f} s"}
    if done.returncode == 0:
        row: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        return row
    lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
    return {"model": name, "ok": False, "error": lines[-1][:300]}


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


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--subset", choices=["ci", "all"], default="all")
    parser.add_argument("--only", metavar="REGEX", help="models whose name matches")
    parser.add_argument("--out", type=Path, default=ROOT / "out" / "zoo.jsonl")
    parser.add_argument("--docs", type=Path, help="write the table here, as markdown")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--timeout", type=float, default=900, help="seconds per model")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measure(options.one)))
        return 0

    from tqdm import tqdm
    from zoo_models import names

    wanted = CI if options.subset == "ci" else names()
    if options.only:
        wanted = [name for name in wanted if re.search(options.only, name)]
    options.out.parent.mkdir(parents=True, exist_ok=True)
    rows = {}
    if options.out.exists():
        for line in options.out.read_text().splitlines():
            row = json.loads(line)
            rows[row["model"]] = row
    pending = [name for name in wanted if name not in rows]
    with options.out.open("a") as file, ThreadPoolExecutor(options.jobs) as pool:
        progress = tqdm(total=len(wanted), initial=len(wanted) - len(pending), unit="model")
        for row in pool.map(lambda name: measure_apart(name, options.timeout), pending):
            rows[row["model"]] = row
            file.write(json.dumps(row) + "\n")
            file.flush()
            progress.update()
            if not row["ok"]:
                progress.write(f"{row['model']}: {row.get('error', 'differs from the oracle')}")
        progress.close()
    shown = [rows[name] for name in wanted]
    print(table(shown, "simple"))
    print(totals(shown))
    if options.docs:
        options.docs.write_text(
            "# The zoo\n\nWritten by `./run zoo --docs docs/zoo.md`. All groups of layers of equal "
            "type and shape are tied, each\nderived from its first layer by a flip; and once more "
            "only one pair. Outputs and gradients, in eval and\nin train, are compared with "
            "`torch.func.functional_call`.\n\n"
            f"{totals(shown)}\n\n{table(shown, 'github')}\n"
        )
    return 0 if all(row["ok"] for row in shown) else 1


if __name__ == "__main__":
    sys.exit(main())
