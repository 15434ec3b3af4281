"""Make a trained Llama recursive, train on, and compare: perplexity against parameters.

    python examples/recursive_decoder.py              three seeds; goes on where it was cut off
    python examples/recursive_decoder.py --docs docs  ... and writes the figures of its page

The text is the manual of Python's language that ships with Python, byte by byte. Needs
`pip install 'fxtie[transformers]' matplotlib`. Takes seven minutes on one core.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import json
import math
import platform
import statistics
import tempfile
from pathlib import Path
from pydoc_data.topics import topics

import torch
import transformers
from tabulate import tabulate
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments

import fxtie
from fxtie import transforms as T

LAYERS, SHARED, WIDTH, LENGTH, BATCH = 6, 3, 32, 64, 8
TEXT = torch.tensor(list("".join(topics.values()).encode()))
ROWS = [{"input_ids": row, "labels": row} for row in TEXT.split(LENGTH)[:-1]]
HELD_OUT = ROWS[::10]
Results = dict[str, tuple[int, float]]  # parameters and perplexity, by model

# Three layers, run twice. The second time each has the norms of the layer that was there, and ...
TARGETS, SOURCES = "model.layers.*.*.*_proj", f"model.layers.{{0 % {SHARED}}}.{{1}}.{{2}}_proj"
RECURSIVE = fxtie.Rule(TARGETS, SOURCES)  # ... nothing else of its own
RELAXED = fxtie.Rule(TARGETS, SOURCES, weight=T.LowRank(4))  # ... residuals of low rank


def llama(seed: int, layers: int = LAYERS, hidden: int = 2 * WIDTH) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    sizes = {"vocab_size": 256, "hidden_size": WIDTH, "intermediate_size": hidden}
    sizes |= {"num_hidden_layers": layers, "num_attention_heads": 2}
    return LlamaForCausalLM(LlamaConfig(**sizes, tie_word_embeddings=True, initializer_range=0.1))


def as_large_as(size: int, seed: int) -> LlamaForCausalLM:
    """As many layers as a recursive one stores, with wider MLPs in place of the residuals."""
    models = (llama(seed, SHARED, hidden) for hidden in itertools.count(2 * WIDTH))
    return next(model for model in models if model.num_parameters() >= size)


def recursive(model: LlamaForCausalLM, rule: fxtie.Rule, how: str = "lower") -> LlamaForCausalLM:
    """Tie a copy of a trained model, close to what it was."""
    model = copy.deepcopy(model)
    return fxtie.transform(model, fxtie.fit(model, rule, how=how).plan)


def trainer(model: LlamaForCausalLM, **more: int) -> Trainer:
    arguments = TrainingArguments(
        output_dir=tempfile.gettempdir(),
        per_device_train_batch_size=BATCH,
        per_device_eval_batch_size=128,
        learning_rate=5e-3,
        lr_scheduler_type="cosine",
        weight_decay=0.1,
        save_strategy="no",
        report_to="none",
        use_cpu=True,  # a model this small gains nothing from a GPU
        **more,
    )
    data = [row for i, row in enumerate(ROWS) if i % 10]
    return Trainer(model, arguments, train_dataset=data, eval_dataset=HELD_OUT)


def train(model: LlamaForCausalLM, steps: int, seed: int) -> LlamaForCausalLM:
    trainer(model, max_steps=steps, warmup_steps=steps // 10, seed=seed).train()
    return model


def perplexity(model: LlamaForCausalLM) -> float:
    return math.exp(trainer(model).evaluate()["eval_loss"])


@torch.no_grad()
def check_saved(tied: LlamaForCausalLM) -> None:
    """What it saves is loaded as the same tied model, and without fxtie as a plain one."""
    with tempfile.TemporaryDirectory() as folder:
        tied.save_pretrained(folder)
        again = fxtie.from_pretrained(folder, LlamaForCausalLM)
        plain = LlamaForCausalLM.from_pretrained(folder)
    tokens = TEXT[None, :LENGTH]
    expected = tied.eval()(tokens).logits
    assert torch.equal(again(tokens).logits, expected)
    torch.testing.assert_close(plain(tokens).logits, expected)


def compare(steps: int, seed: int) -> Results:
    """Train all models: for `steps` those that begin as the trained one, else for twice as many."""
    trained = train(llama(seed), steps, seed)
    second = seed + 1000  # of the second half, which has the rows in another order
    relaxed = train(recursive(trained, RELAXED), steps, second)
    check_saved(relaxed)
    small = as_large_as(relaxed.num_parameters(), seed)
    models = {
        "untied, half the steps": copy.deepcopy(trained),
        "untied": train(copy.deepcopy(trained), steps, second),
        "recursive": train(recursive(trained, RECURSIVE), steps, second),
        "relaxed": relaxed,
        "relaxed, fit to the mean": train(recursive(trained, RELAXED, "mean"), steps, second),
        "relaxed, from scratch": train(fxtie.transform(llama(seed), RELAXED), 2 * steps, seed),
        "small, from scratch": train(copy.deepcopy(small), 2 * steps, seed),
        "small, half the steps": train(small, steps, seed),
    }
    return {name: (model.num_parameters(), perplexity(model)) for name, model in models.items()}


def plot(rows: list[tuple[str, int, float, float]], path: Path) -> None:
    """Perplexity against parameters, in colours that can be read on white and on black."""
    import matplotlib.figure

    parts = ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color")
    settings = {"svg.fonttype": "none", "svg.hashsalt": "fxtie"}
    with matplotlib.rc_context(dict.fromkeys(parts, "gray") | settings):
        figure = matplotlib.figure.Figure(figsize=(7, 4), layout="constrained")
        axis = figure.subplots(subplot_kw={"xlabel": "parameters", "ylabel": "perplexity"})
        for i, (name, *point) in enumerate(rows):
            axis.errorbar(*point, fmt="Do^sv*<>"[i], color=f"C{i}", label=name)
        figure.legend(loc="outside right center", frameon=False)
        figure.savefig(path, transparent=True, metadata={"Date": None})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=700, help="of each half of a training")
    parser.add_argument("--out", type=Path, default=Path("out/recursive_decoder.json"))
    parser.add_argument("--docs", type=Path, help="the folder of the page, to write its figures")
    options = parser.parse_args()

    options.out.parent.mkdir(parents=True, exist_ok=True)
    done = json.loads(options.out.read_text()) if options.out.exists() else {}
    keys = [f"{options.steps} steps, seed {seed}" for seed in range(options.seeds)]
    for seed, key in enumerate(keys):
        done[key] = done.get(key) or compare(options.steps, seed)
        options.out.write_text(json.dumps(done, indent=1))

    rows = []
    for name, (size, _) in done[keys[0]].items():
        values = [done[key][name][1] for key in keys]
        spread = statistics.stdev(values) if len(values) > 1 else math.nan
        rows.append((name, size, statistics.mean(values), spread))
    headers = ("model", "parameters", "perplexity", "spread")
    shown = tabulate(rows, headers, "github", floatfmt=".2f", intfmt=",")
    alone = torch.distributions.Categorical(torch.bincount(TEXT).float()).entropy().exp()
    shown += (
        f"\n\nMean and standard deviation of {options.seeds} seeds; half a training is "
        f"{options.steps} steps of {BATCH} rows of {LENGTH} bytes, of a text of {len(TEXT):,}. "
        f"Bytes by how frequent each is: a perplexity of {alone:.2f}. "
        f"Python {platform.python_version()}, torch {torch.__version__}, "
        f"transformers {transformers.__version__}.\n"
    )
    print(shown)
    if options.docs:
        plot(rows, options.docs / "recursive_decoder.svg")
        page = options.docs / "recursive_decoder.md"
        mark = "<!-- written by the example -->\n"
        written = page.read_text(encoding="utf-8").partition(mark)[0]
        page.write_text(f"{written}{mark}\n{shown}", encoding="utf-8")


if __name__ == "__main__":
    main()
