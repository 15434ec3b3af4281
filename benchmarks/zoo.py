"""The zoo: every torchvision model and every timm family, tied and compared with the oracle.

In: names of models. Out: a JSON-lines file with one line per model and pass, a table, and by choice
the same as Markdown. Called as `./run zoo`; calls itself once per model, so that a crash or a model
that takes too long loses nothing but its own lines.

Two passes per model: all layers of equal type and shape are tied, then one pair only. Each is
compared in evaluation and in training, outputs and gradients (tests/oracle.py).
"""

from __future__ import annotations

import argparse
import collections
import concurrent.futures
import copy
import json
import math
import os
import re
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tabulate import tabulate
from torch import fx, nn
from tqdm import tqdm

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1] / "tests")]

from vision import import_torchvision

PASSES = ("all", "pair")
LARGE = 100_000_000  # parameters from which on a model has the machine for itself
GRADIENT_TOLERANCE = 1e-5
Row = dict[str, Any]

CI = """
torchvision/resnet18 torchvision/densenet121 torchvision/googlenet torchvision/vit_b_32
torchvision/swin_v2_t torchvision/deeplabv3_mobilenet_v3_large torchvision/raft_small
torchvision/fasterrcnn_mobilenet_v3_large_320_fpn torchvision/ssdlite320_mobilenet_v3_large
torchvision/s3d timm/resnetv2_50 timm/mobilenetv3_small_050 timm/regnetx_002
timm/tf_mobilenetv3_small_075 timm/nf_resnet26 timm/convnext_zepto_rms timm/levit_128s
timm/coat_lite_tiny timm/crossvit_tiny_240 timm/hrnet_w18_small timm/lambda_resnet26t
timm/repvgg_a0
""".split()

# Beside the smallest of each family: convolutions with arithmetic of their own, and models that
# the stock tracer gets wrong without a word.
ALSO = "resnetv2_50 resnetv2_50x1_bit nf_resnet26 tf_efficientnet_b0 coat_lite_tiny".split()


# -- which models -----------------------------------------------------------------------------


def torchvision_names() -> list[str]:
    names = import_torchvision().models.list_models()
    return [f"torchvision/{name}" for name in names if not name.startswith("quantized_")]


def timm_names(cache: Path) -> list[str]:
    """The cheapest architecture of each family: of each file of timm and name in it."""
    import_torchvision()
    import timm

    if cache.exists() and (stored := json.loads(cache.read_text()))["timm"] == timm.__version__:
        return list(stored["names"])
    cheapest: dict[tuple[str, str], tuple[float, str]] = {}
    everything = [
        (file, name) for file in timm.list_modules() for name in timm.list_models(module=file)
    ]
    for file, name in tqdm(everything, "sizes of timm's models", disable=None):
        family = re.match(r"(tf_|legacy_)?[a-z]+", name)
        if family and not name.startswith("test_"):
            with torch.device("meta"):
                model = timm.create_model(name)
            cost = count_parameters(model) * math.prod(model.pretrained_cfg["input_size"])
            key = (file, family.group())
            cheapest[key] = min(cheapest.get(key, (cost, name)), (cost, name))
    names = sorted({f"timm/{name}" for _, name in cheapest.values()} | {f"timm/{n}" for n in ALSO})
    cache.parent.mkdir(parents=True, exist_ok=True)
    cache.write_text(json.dumps({"timm": timm.__version__, "names": names}))
    return names


def count_parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def is_large(name: str) -> bool:
    with torch.device("meta"):
        return count_parameters(make(name).model) > LARGE


# -- one model and its inputs -------------------------------------------------------------------

Inputs = tuple[tuple[Any, ...], dict[str, Any]]


@dataclass
class Specimen:
    """A model, and how to make inputs for it.

    Attributes:
        model: with random weights.
        sizes: heights (and widths) of an image to try; the last one is known to work.
        inputs: makes arguments from a size and the mode.
    """

    model: nn.Module
    sizes: tuple[int, ...]
    inputs: Callable[[int, bool], Inputs]


def images(size: int, train: bool) -> Inputs:
    return (torch.randn(2, 3, size, size),), {}


def videos(size: int, train: bool) -> Inputs:
    return (torch.randn(2, 3, 16, size, size),), {}


def image_pairs(size: int, train: bool) -> Inputs:
    return tuple(torch.rand(1, 3, size, size) * 2 - 1 for _ in range(2)), {"num_flow_updates": 3}


def scenes(size: int, train: bool) -> Inputs:
    """Images of two shapes and, for training, two objects in each."""
    shapes = [(size, size), (size, size + 32)]
    pictures = [torch.rand(3, *shape) for shape in shapes]
    targets = [
        {
            "boxes": torch.tensor([[4.0, 6.0, 50.0, 60.0], [20.0, 10.0, 90.0, 80.0]]),
            "labels": torch.tensor([1, 2]),
            "masks": (torch.rand(2, *shape) > 0.5).to(torch.uint8),
            "keypoints": torch.cat([torch.rand(2, 17, 2) * 50 + 10, torch.ones(2, 17, 1)], 2),
        }
        for shape in shapes
    ]
    return ((pictures, targets) if train else (pictures,)), {}


def make(name: str) -> Specimen:
    suite, name = name.split("/")
    return make_torchvision(name) if suite == "torchvision" else make_timm(name)


def make_torchvision(name: str) -> Specimen:
    models = import_torchvision().models
    kind = models.get_model_builder(name).__module__
    options: dict[str, Any] = {}
    sizes, inputs = (64, 96, 128, 160, 224, 299), images
    if ".detection." in kind:
        # Untrained scores stay below the usual threshold: nothing would be detected.
        sizes, inputs, options = (96,), scenes, {"weights_backbone": None, "score_thresh": 0.0}
        if "rcnn" in name:
            options |= {"box_score_thresh": 0.0, "box_detections_per_img": 8}
            options |= {"rpn_post_nms_top_n_train": 32, "rpn_post_nms_top_n_test": 16}
            options |= {"rpn_pre_nms_top_n_train": 64, "rpn_pre_nms_top_n_test": 64}
            del options["score_thresh"]
        else:
            options |= {"detections_per_img": 8, "topk_candidates": 32}
        if "ssd" not in name:  # those have one size
            options |= {"min_size": 96, "max_size": 128}
    elif ".video." in kind:
        sizes, inputs = (64, 112, 224), videos
        if name.startswith("mvit"):
            sizes, options = (64,), {"spatial_size": (64, 64)}
    elif ".optical_flow." in kind:
        sizes, inputs = (128,), image_pairs
    elif ".segmentation." in kind:
        options = {"weights_backbone": None} | ({} if "lraspp" in name else {"aux_loss": True})
    elif name.startswith("vit_"):
        size = 4 * int(name.rpartition("_")[2])
        sizes, options = (size,), {"image_size": size}
    elif name in ("googlenet", "inception_v3"):
        options = {"init_weights": True}
    return Specimen(models.get_model(name, weights=None, **options), sizes, inputs)


def make_timm(name: str) -> Specimen:
    import_torchvision()
    import timm

    model = timm.create_model(name)
    about = model.pretrained_cfg
    native = about["input_size"][-1]
    smaller = [s for s in (64, 96, 128, 160, 192, 224, 256) if s < native]
    if about.get("fixed_input_size"):
        smaller = []
    elif least := about.get("min_input_size"):
        smaller = sorted({least[-1], *(s for s in smaller if s > least[-1])})
    return Specimen(model, (*smaller, native), images)


def smallest_size(specimen: Specimen) -> int:
    """The first size that the model takes, tried on a copy."""
    *smaller, last = specimen.sizes
    for size in smaller:
        args, kwargs = specimen.inputs(size, True)
        try:
            with torch.no_grad():
                copy.deepcopy(specimen.model).train()(*args, **kwargs)
        except Exception:  # whatever a model says to a size that it can't take
            continue
        return size
    return last


def make_alive(specimen: Specimen, size: int) -> None:
    """Weights and statistics with which every branch contributes and nothing explodes, in place.

    Zero-initialised scales and heads get random values; batch norms the statistics of one batch.
    """
    from grouping import enliven

    model = specimen.model
    enliven(model)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.numel() == 1 and parameter.is_floating_point() and parameter == 0:
                parameter.fill_(0.5)  # a gate of a residual branch
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    momenta = [norm.momentum for norm in norms]
    args, kwargs = specimen.inputs(size, True)
    for norm in norms:
        norm.momentum = 1.0
    with torch.no_grad():
        model.train()(*args, **kwargs)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum


# -- one model, tied: runs in a process of its own ----------------------------------------------


def examine(name: str) -> Iterator[Row]:
    """The lines of one model."""
    from grouping import tie_groups

    torch.manual_seed(0)
    specimen = make(name)
    size = smallest_size(specimen)
    make_alive(specimen, size)
    warm_up()
    for which in PASSES:
        ties = tie_groups(specimen.model, only_pair=which == "pair")
        row: Row = {"model": name, "pass": which, "size": size, "ties": len(ties)}
        if not ties:
            yield row | {"status": "no ties"}
            continue
        try:
            row |= tie_and_compare(specimen, size, ties)
        except Exception as error:
            row |= {"status": "failed", "error": describe(error)}
        if which == "all":
            row |= stock_trace(specimen.model)
        yield row


def warm_up() -> None:
    """What the first call imports is no part of a model's time."""
    import fxtie

    net = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    fxtie.transform(net, fxtie.Rule("1", "0"))
    fx.symbolic_trace(net)


def tie_and_compare(specimen: Specimen, size: int, ties: list[Any]) -> Row:
    from oracle import compare

    import fxtie

    start = time.perf_counter()
    tied = fxtie.transform(specimen.model, ties)
    row: Row = {"pass_s": round(time.perf_counter() - start, 3)}
    report = fxtie.report(tied)
    row["regions"] = report.regions
    row["unused"] = len(report.unused)
    row["parameters"] = report.parameters
    row["kept"] = [
        {
            "name": k.name,
            "type": k.type,
            "reason": k.reason,
            "at": f"{package_path(k.file)}:{k.line}",
        }
        for k in report.kept
    ]
    faults = []
    for mode in ("eval", "train"):
        args, kwargs = specimen.inputs(size, mode == "train")
        try:
            result = compare(specimen.model, tied, ties, args, kwargs, train=mode == "train")
        except Exception as error:
            faults.append(f"{mode}: {describe(error)}")
            continue
        row[mode] = vars(result)
        if not result.exact:
            faults.append(f"{mode}: outputs differ by {result.output_error:.1e}")
        if not result.gradient_error < GRADIENT_TOLERANCE:
            faults.append(f"{mode}: gradients differ by {result.gradient_error:.1e}")
    row["status"] = "differs" if faults else "equal"
    return row | ({"error": "; ".join(faults)} if faults else {})


def stock_trace(model: nn.Module) -> Row:
    """Time of torch.fx's own tracer, on a copy: where it fails it may leave proxies behind."""
    model = copy.deepcopy(model).eval()
    start = time.perf_counter()
    try:
        fx.symbolic_trace(model)
    except Exception as error:
        return {"stock_error": describe(error)}
    return {"stock_s": round(time.perf_counter() - start, 3)}


def describe(error: Exception) -> str:
    text = str(error).strip() or "no message"
    return f"{type(error).__name__}: {text.splitlines()[0][:300]}"


def package_path(file: str) -> str:
    return file.rpartition("site-packages/")[2]


def work(name: str, memory: int) -> None:
    """Print the lines of one model; too much memory is an error here, not the end of others."""
    resource.setrlimit(resource.RLIMIT_AS, (memory << 30, resource.RLIM_INFINITY))
    torch.set_num_threads(1)
    for row in examine(name):
        print(json.dumps(row), flush=True)


# -- all models, each in its process ------------------------------------------------------------


def run_worker(name: str, timeout: float, memory: int) -> list[Row]:
    """One line per pass, whatever happens to the process."""
    command = [sys.executable, "-W", "ignore", __file__, "--worker", name, "--memory", str(memory)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=timeout, env=environment
        )
        output, status = done.stdout, "crashed"
        error = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
    except subprocess.TimeoutExpired as late:
        output = late.stdout.decode() if late.stdout else ""
        status, error = "timeout", f"not done after {timeout:.0f} s"
    rows = [json.loads(line) for line in output.splitlines() if line.startswith("{")]
    done_passes = {row["pass"] for row in rows}
    lost: Row = {"model": name, "ties": 0, "status": status, "error": error}
    return rows + [lost | {"pass": which} for which in PASSES if which not in done_passes]


def run_all(names: list[str], out: Path, jobs: int, timeout: float) -> None:
    """Append the lines of each model to `out` as they come; large models one by one, at the end."""
    large = {name for name in names if is_large(name)}
    shares = [([n for n in names if n not in large], jobs), ([n for n in names if n in large], 1)]
    with out.open("a") as file, tqdm(total=len(names), unit="model", disable=None) as bar:
        for share, workers in shares:
            with concurrent.futures.ThreadPoolExecutor(workers) as pool:
                runs = [pool.submit(run_worker, n, timeout, 20 // workers) for n in share]
                for run in concurrent.futures.as_completed(runs):
                    for row in run.result():
                        file.write(json.dumps(row) + "\n")
                        if not is_good(row):
                            bar.write(f"{row['model']} ({row['pass']}): {row['error']}")
                    file.flush()
                    bar.update()


def is_good(row: Row) -> bool:
    return row["status"] in ("equal", "no ties")


def read_rows(out: Path) -> dict[str, dict[str, Row]]:
    """The last line of each model and pass."""
    found: dict[str, dict[str, Row]] = collections.defaultdict(dict)
    if out.exists():
        for line in out.read_text().splitlines():
            row = json.loads(line)
            found[row["model"]][row["pass"]] = row
    return found


# -- what came out --------------------------------------------------------------------------------

HEADERS = (
    "model",
    "ties",
    "regions",
    "kept",
    "largest relative error",
    "output norm",
    "bit for bit",
    "one pair",
    "pass, s",
    "symbolic_trace, s",
)


def table(found: dict[str, dict[str, Row]], style: str) -> str:
    rows = [table_row(name, found[name]) for name in sorted(found)]
    return tabulate(rows, HEADERS, tablefmt=style, disable_numparse=True)


def table_row(name: str, rows: dict[str, Row]) -> tuple[str, ...]:
    row, pair = rows["all"], rows["pair"]
    if row["status"] == "no ties":
        return (name, "0", *["-"] * 6, "-", stock_time(row))
    modes = [row[mode] for mode in ("eval", "train") if mode in row]
    error = max((max(m["output_error"], m["gradient_error"]) for m in modes), default=math.nan)
    return (
        name,
        str(row["ties"]),
        str(row.get("regions", "-")),
        str(len(row["kept"])) if "kept" in row else "-",
        f"{error:.1e}",
        f"{modes[0]['output_norm']:.2g}" if modes else "-",
        " ".join(m for m in ("eval", "train") if row.get(m, {}).get("exact")) or row["status"],
        pair["status"],
        f"{row['pass_s']:.2f}" if "pass_s" in row else "-",
        stock_time(row),
    )


def stock_time(row: Row) -> str:
    return f"{row['stock_s']:.2f}" if "stock_s" in row else "fails"


def totals(found: dict[str, dict[str, Row]]) -> str:
    """What the table says, in a few lines."""
    first = [rows["all"] for rows in found.values()]
    tied = [row for row in first if row["status"] != "no ties"]
    both = [row for rows in found.values() for row in rows.values()]
    modes = [row[mode] for row in both for mode in ("eval", "train") if mode in row]

    def exact(mode: str) -> int:
        return sum(row.get(mode, {}).get("exact", False) for row in tied)

    whole = sum(row.get("regions") == 1 and not row["kept"] for row in tied)
    pairs = [rows["pair"] for rows in found.values() if rows["pair"]["status"] != "no ties"]
    untied = len(first) - len(tied)
    lines = [
        f"{sum('regions' in row for row in tied)} of {len(tied)} models tied"
        + (f" ({untied} more have no two equal layers)." if untied else "."),
        f"Outputs equal bit for bit: {exact('eval')} in eval, {exact('train')} in train.",
        f"Outputs, gradients and buffers equal in both modes: "
        f"{sum(map(is_good, tied))} with all layers tied, "
        f"{sum(map(is_good, pairs))} of {len(pairs)} with one pair.",
        f"Captured as one whole graph: {whole}. "
        f"torch.fx.symbolic_trace traces {sum('stock_s' in row for row in first)} of {len(first)}.",
    ]
    if modes:
        lines.append(
            f"Largest relative error of a gradient: {max(m['gradient_error'] for m in modes):.1e}."
        )
    return "\n".join(lines)


def kept_table(found: dict[str, dict[str, Row]], style: str) -> str:
    """Why forwards stayed as they are: each statement that stopped a trace, once."""
    places: dict[tuple[str, str, str], set[str]] = collections.defaultdict(set)
    for name, rows in found.items():
        for kept in rows["all"].get("kept", ()):
            places[kept["type"], kept["at"], kept["reason"]].add(name)
    rows = [(*place, str(len(names))) for place, names in sorted(places.items())]
    return tabulate(rows, ("module", "statement", "reason", "models"), tablefmt=style)


def markdown(found: dict[str, dict[str, Row]]) -> str:
    lines = "\n".join(f"- {line}" for line in totals(found).splitlines())
    return (
        "# The zoo\n\n"
        "Written by `./run zoo --docs`. Every group of layers of equal type and shape is tied (and, "
        "in a second pass, only one pair), with transforms that keep activations alive. Outputs, "
        "gradients and buffers are compared with plain `torch.func.functional_call`. torch "
        f"{torch.__version__}, CPU, one thread.\n\n"
        f"{lines}\n\n{table(found, 'github')}\n\n"
        f"## Kept forwards, and the statements that stopped a trace\n\n{kept_table(found, 'github')}\n"
    )


def choose_names(subset: str, out: Path) -> list[str]:
    names = []
    if subset in ("all", "torchvision"):
        names += torchvision_names()
    if subset in ("all", "timm"):
        names += timm_names(out.parent / "zoo_timm.json")
    return names or CI


def main() -> int:
    parser = argparse.ArgumentParser("zoo", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--subset", default="all", choices=("all", "torchvision", "timm", "ci"))
    parser.add_argument("--only", metavar="REGEX", default="", help="models whose name it finds")
    parser.add_argument("--out", type=Path, default=Path("out/zoo.jsonl"), help="the lines")
    parser.add_argument("--fresh", action="store_true", help="do again what is done and good")
    parser.add_argument("--docs", type=Path, metavar="FILE", help="write the table as Markdown")
    parser.add_argument("--jobs", type=int, default=2, help="models at a time")
    parser.add_argument("--timeout", type=float, default=900, help="seconds for one model")
    parser.add_argument("--worker", metavar="MODEL", help="only print the lines of one model")
    parser.add_argument("--memory", type=int, default=20, help="GiB of addresses for --worker")
    options = parser.parse_args()
    if options.worker:
        work(options.worker, options.memory)
        return 0
    options.out.parent.mkdir(parents=True, exist_ok=True)
    names = [n for n in choose_names(options.subset, options.out) if re.search(options.only, n)]
    done = {} if options.fresh else read_rows(options.out)
    todo = [n for n in names if n not in done or not all(map(is_good, done[n].values()))]
    print(f"{len(names)} models, {len(names) - len(todo)} of them done before ({options.out})")
    run_all(todo, options.out, options.jobs, options.timeout)
    rows = read_rows(options.out)
    found = {name: rows[name] for name in names}
    print(table(found, "simple"), kept_table(found, "simple"), totals(found), sep="\n\n")
    if options.docs:
        options.docs.write_text(markdown(found))
    return 0 if all(is_good(row) for both in found.values() for row in both.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
