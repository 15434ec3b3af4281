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
import json
import os
import re
import statistics
import subprocess
import sys
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "benchmarks")]

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


def names() -> list[str]:
    """Every model of torchvision but the quantized ones; the smallest of every timm module."""
    from vision import import_torchvision

    torchvision = import_torchvision()
    found = [
        f"torchvision/{name}"
        for name in torchvision.models.list_models()
        if not name.startswith("quantized_")
    ]
    import timm

    for module in timm.list_modules():
        models = timm.list_models(module=module)
        if models:
            found.append(f"timm/{min(models, key=_size_guess)}")
    return found


_SIZES = ["zepto", "atto", "femto", "pico", "nano", "pixie", "micro", "tiny", "mini", "small"]


def _size_guess(name: str) -> tuple[int, int, str]:
    """A key by which small variants come first, without building any."""
    words = name.split("_")
    rank = next((i for i, size in enumerate(_SIZES) if any(size in w for w in words)), len(_SIZES))
    numbers = [int(n) for n in re.findall(r"\d+", name)]
    return rank, sum(numbers), name


# -- one model, in a process of its own ---------------------------------------------------------


def build(name: str) -> tuple[Any, tuple[Any, ...]]:
    """A model with random weights, and inputs for it."""
    import torch
    from vision import import_torchvision

    torchvision = import_torchvision()
    library, _, short = name.partition("/")
    if library == "timm":
        import timm

        model = timm.create_model(short)
        config = model.pretrained_cfg
        size = config.get("input_size", (3, 224, 224))
        if not config.get("fixed_input_size", False):
            size = config.get("min_input_size") or (3, 128, 128)
        return model, (torch.randn(2, *size),)
    options: dict[str, Any] = {"weights": None}
    module = torchvision.models.get_model_builder(short).__module__
    if "detection" in module or "segmentation" in module:
        options["weights_backbone"] = None
    if short in ("googlenet", "inception_v3"):
        options["init_weights"] = False
    model = torchvision.models.get_model(short, **options)
    if "detection" in module:
        model.transform.min_size, model.transform.max_size = (160,), 160
        if hasattr(model.transform, "fixed_size") and model.transform.fixed_size:
            model.transform.fixed_size = (160, 160)
        return model, ([torch.rand(3, 160, 160), torch.rand(3, 150, 160)],)
    if "optical_flow" in module:
        return model, (torch.rand(1, 3, 128, 128), torch.rand(1, 3, 128, 128))
    if "video" in module:
        size = 224 if "mvit" in short or "swin" in short else 112
        return model, (torch.randn(1, 3, 16 if "mvit" in short else 8, size, size),)
    if "segmentation" in module:
        return model, (torch.randn(2, 3, 128, 128),)
    fixed = short.startswith(("vit", "maxvit"))
    size = 299 if short == "inception_v3" else 224 if fixed else 96
    return model, (torch.randn(2, 3, size, size),)


def detection_targets(images: list[Any]) -> list[dict[str, Any]]:
    """What detection models want beside the images in training: two boxes each."""
    import torch

    boxes = torch.tensor([[10.0, 10.0, 80.0, 90.0], [40.0, 30.0, 140.0, 120.0]])
    targets = []
    for image in images:
        masks = torch.zeros(2, *image.shape[1:], dtype=torch.uint8)
        masks[:, 40:80, 40:80] = 1
        keypoints = torch.tensor([[[50.0, 50.0, 1.0]] * 17] * 2)
        labels = torch.tensor([1, 1])
        targets.append({"boxes": boxes, "labels": labels, "masks": masks, "keypoints": keypoints})
    return targets


def measure(name: str) -> dict[str, Any]:
    """Tie one model in both ways and compare. Returns a row of the results."""
    import torch
    from grouping import tie_groups
    from oracle import compare
    from torch import fx

    import fxtie

    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    torch._dynamo.config.disable = True  # torchvision compiles a helper of roi_align: minutes here
    torch.manual_seed(0)
    model, args = build(name)
    row: dict[str, Any] = {"model": name}
    start = time.perf_counter()
    try:
        fx.symbolic_trace(model)
        row["symbolic_trace_s"] = time.perf_counter() - start
    # Any failure of the stock tracer is one figure of this table.
    except Exception as error:
        row["symbolic_trace_error"] = f"{type(error).__name__}: {error}"[:200]
    for which in ("all", "pair"):
        ties = tie_groups(model, only_pair=which == "pair")
        fxtie.transform(model, ties)  # the first run imports and fills caches
        start = time.perf_counter()
        tied = fxtie.transform(model, ties)
        row[f"{which}_pass_s"] = time.perf_counter() - start
        report = fxtie.report(tied)
        row |= {
            f"{which}_ties": report.ties,
            f"{which}_regions": report.regions,
            f"{which}_kept": [str(kept).replace(sys.prefix, "") for kept in report.kept],
            f"{which}_parameters": report.parameters,
            f"{which}_graph": isinstance(tied, fx.GraphModule),
        }
        for train in (False, True):
            inputs = args
            if isinstance(args[0], list) and train:
                inputs = (args[0], detection_targets(args[0]))
            result = compare(model, tied, report.plan.ties, inputs, train=train)
            mode = "train" if train else "eval"
            row |= {
                f"{which}_{mode}_error": result.output_error,
                f"{which}_{mode}_gradient_error": result.gradient_error,
                f"{which}_{mode}_exact": result.exact,
                f"{which}_{mode}_norm": result.output_norm,
            }
    row["ok"] = all(
        row[f"{which}_eval_exact"]
        and row[f"{which}_train_error"] < 1e-5
        and max(row[f"{which}_eval_gradient_error"], row[f"{which}_train_gradient_error"]) < 1e-4
        for which in ("all", "pair")
    )
    return row


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
