"""The models of transformers in the zoo: every architecture of `AutoModel`, made small.

In: a name such as `transformers/llama`. Out: a `Specimen` with random weights. Its configuration is
the architecture's own with smaller numbers, chosen by their names; its inputs are chosen by the
names of the arguments that its forward takes. Called by `zoo.py`.
"""

from __future__ import annotations

import copy
import inspect
import re
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from vision import import_torchvision
from zoo_models import NotTried, Specimen

import_torchvision()  # before transformers imports it

PRELOADED = ["zoo_transformers", "transformers.models.llama.modeling_llama"]
"""What is imported once for the processes of all models."""

TOKENS, LENGTH, IMAGE, FRAMES = 128, 8, 32, 64
LARGEST = 30_000_000  # parameters

Limits = Mapping[str, int | None]

# What a number of a configuration becomes at most, by its name: the first pattern that matches
# holds. None: it stays.
LAYERS: Limits = {
    r"num_kv_shared_layers|n_input_layers|n_output_layers": 0,
    r".*layers|n_layer|.*depth|num_blocks|depths|.*blocks_per_stage|stage_num_blocks": 2,
    r".*numb_of_layers|num_block_repeats|first_k_dense_replace": 2,
    r".*vocab_size.*|num_embeddings": TOKENS,
}


def limits(width: int, heads: int) -> Limits:
    """All numbers, for layers of a width with some heads."""
    return {
        r"num_conv_pos_embedding_groups": 4,
        r"num_feat_extract_layers|in_channels|out_channels": None,
        r".*(kernel|stride|chunk|group|factor|ratio|theta|rate|frames|buckets|coeff|n_fft).*": None,
        r".*(token_id|token_index|_index|lang_id|_idx)": None,
        **LAYERS,
        r".*(max_|n_)positions?.*|max_.*position.*|model_max_length": FRAMES,
        r"image_size|resolution|input_size|pretrain_image_size": IMAGE,
        r"patch_size": 8,
        r".*experts_per_tok(en)?|moe_topk|moe_k|top_k": 2,
        r".*(num_experts|local_experts|routed_experts)": 4,
        r".*heads|n_head": heads,
        r"mamba_d_head|mamba_head_dim": 2 * width // heads,
        r".*head_dim|d_kv|d_head|rotary_dim|kv_channels": width // heads,
        r".*lora_rank": width // 2,
        r".*(intermediate|ffn|mlp|d_ff|feedforward|feed_forward|d_inner).*": 2 * width,
        r".*(hidden_size|d_model|n_embd|dim|_width|_units|hidden_channels|emb_size)": width,
        r"width|hidden_size.*|embedding_size|.*output_size|.*hidden_dimension": width,
    }


SMALL = limits(64, 4)
TRIED: tuple[Limits, ...] = (SMALL, limits(256, 4), limits(512, 4), LAYERS)
SERIES = {"prediction_length": 8, "context_length": 16, "lags_sequence": [1, 2]}
OWN: dict[str, dict[str, Any]] = {  # what no rule of names tells
    "autoformer": SERIES,
    "bit": {"num_groups": 4},
    "dots1": {"n_routed_experts": 4, "n_shared_experts": 1, "num_experts_per_tok": 2},
    "informer": SERIES,
    "time_series_transformer": SERIES,
}


def names() -> list[str]:
    """Every type of model that `AutoModel` knows."""
    from transformers.models.auto.modeling_auto import MODEL_MAPPING_NAMES

    return [f"transformers/{kind}" for kind in MODEL_MAPPING_NAMES]


def make(name: str) -> Specimen:
    """Raises `NotTried` if no small model of this type runs."""
    faults = []
    for numbers in TRIED:
        try:
            model = small_model(name.partition("/")[2], numbers)
            arguments = accepted(model)
            break
        # Whatever a model says to numbers or inputs that it can't take.
        except Exception as error:
            faults.append(f"{type(error).__name__}: {error}")
    else:
        raise NotTried(" ".join(faults[0].split()))
    return Specimen(model, (0,), lambda size, train: ((), copy.deepcopy(arguments)))


# -- configurations -----------------------------------------------------------------------------


def small_model(kind: str, numbers: Limits) -> Any:
    """A model of this type with its numbers made small."""
    from transformers import CONFIG_MAPPING, AutoModel

    configuration = CONFIG_MAPPING[kind]
    changed = small(configuration().to_dict(), numbers)
    config = configuration(**(changed | OWN.get(kind, {}) if numbers is SMALL else changed))
    with torch.device("meta"):
        size = sum(p.numel() for p in AutoModel.from_config(copy.deepcopy(config)).parameters())
    if size > LARGEST:
        raise NotTried(f"it has {size:,} parameters with small numbers")
    return AutoModel.from_config(config).float()


def small(config: Mapping[str, Any], numbers: Limits) -> dict[str, Any]:
    """What is to be changed in a configuration, and in those inside of it."""
    stages = [v for k, v in config.items() if k.endswith("heads") and _is_numbers(v)]
    changed: dict[str, Any] = {"use_cache": False} if "use_cache" in config else {}
    for name, value in config.items():
        pattern = next((p for p in numbers if re.fullmatch(p, name)), "")
        limit = numbers.get(pattern)
        if isinstance(value, dict) and "model_type" in value:
            changed[name] = {"model_type": value["model_type"], **small(value, numbers)}
        elif _is_numbers(value) and pattern in LAYERS:
            changed[name] = [min(v, limit or 0) for v in value]
        elif _is_numbers(value) and re.fullmatch(WIDTHS, name) and numbers is SMALL:
            changed[name] = [max(v // 8, min(v, 8)) for v in value]
        elif type(value) is int and limit is not None:
            if name == "image_size" and "window_size" in config:  # windows are parts of it
                limit = 7 * IMAGE
            if "hidden_size" in pattern and stages:  # of the first stage
                limit = 8 * stages[0][0]
            if "heads" in pattern and re.search("key_value|kv", name) and _is_grouped(config):
                limit //= 2
            changed[name] = min(value, limit)
        elif type(value) is int and re.fullmatch(r".*token_(id|index)", name):
            changed[name] = value % TOKENS
    return {name: value for name, value in changed.items() if value != config[name]}


WIDTHS = r".*(hidden_sizes|dims?|channels|embed_dim|hidden_size|per_stage)"


def _is_numbers(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(type(v) is int for v in value)


def _is_grouped(config: Mapping[str, Any]) -> bool:
    return config.get("num_key_value_heads") != config.get("num_attention_heads")


# -- inputs -------------------------------------------------------------------------------------


def accepted(model: Any) -> dict[str, Any]:
    """The first arguments that the model takes, tried on a copy."""
    fault: Exception | None = None
    for arguments in candidates(model):
        try:
            with torch.no_grad():
                copy.deepcopy(model).train()(**arguments)
        except Exception as error:  # whatever it says to them
            fault = fault or error
            continue
        return arguments
    raise fault or NotTried("nothing is known of what it takes")


def candidates(model: Any) -> Iterator[dict[str, Any]]:
    """Sets of arguments that a model may take, the largest first."""
    parameters = inspect.signature(model.forward).parameters
    required = {name for name, p in parameters.items() if p.default is p.empty}
    named = model.main_input_name
    main = {named} if isinstance(named, str) else set(named)
    for form in (0, 1):
        known = {n: v for n in parameters if (v := example(n, model, form)) is not None}
        usual = (USUAL & known.keys()) | required
        given: list[set[str]] = []
        for wanted in (
            {*known},
            usual,
            (USUAL & main) | {"decoder_input_ids"} | required,
            *({name} for name in known),
        ):
            chosen = wanted & known.keys()
            if chosen and chosen not in given:
                given.append(chosen)
                yield {name: known[name] for name in known if name in chosen}


USUAL = {
    *("input_ids", "decoder_input_ids", "pixel_values", "input_values", "input_features"),
    *("past_values", "hidden_states", "grid_thw"),
}


def example(name: str, model: Any, form: int) -> Any:
    """A value of an argument, by its name; None if the name tells nothing.

    Args:
        form: 0 or 1: of sound and series the usual order of dimensions, or another one.
    """
    config = model.config

    def number(*names: str) -> int:
        return next((v for n in names if type(v := getattr(config, n, None)) is int), 0)

    size, channels = number("image_size") or IMAGE, number("num_channels", "in_channels") or 3
    bins, frames = number("num_mel_bins", "feature_size") or 80, number("max_source_positions")
    patch = number("patch_size") ** 2 * (number("temporal_patch_size") or 1)
    steps = number("context_length") + max(getattr(config, "lags_sequence", None) or [0])
    series = (2, steps or FRAMES)
    sound = (2, bins, 2 * (frames or FRAMES))
    shapes = {
        "pixel_values": (2, channels, size, size),
        "pixel_values_videos": (2, 8, channels, size, size),
        "input_values": ((2, 4000), (2, 1, 4000))[form],
        "input_features": (sound, (2, sound[2], bins))[form],
        "hidden_states": (32, channels * patch),
        "past_values": (series, (*series, number("num_input_channels")))[form],
        "past_time_features": (2, steps, 0),
    }
    if name in shapes:
        return torch.randn(shapes[name])
    if name in ("input_ids", "decoder_input_ids"):
        return torch.randint(4, TOKENS // 2, (2, LENGTH))
    if name == "bbox":
        return torch.randint(0, 8, (2, LENGTH, 4)).sort(-1).values
    if name == "grid_thw":
        return torch.tensor([[1, 4, 4], [1, 4, 4]])
    ones = {"attention_mask": (2, LENGTH), "past_observed_mask": series}
    return torch.ones(ones[name], dtype=torch.long) if name in ones else None
