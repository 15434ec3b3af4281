"""Tied models of transformers: checkpoints that the plain class loads, and the way back.

transformers is imported by the functions that need it, not by this file.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar, overload

import torch
from torch import nn

from fxtie.errors import FileError, FxtieError
from fxtie.life.plain import (
    HIDDEN,
    RULES,
    completed,
    derived_values,
    only_tensors,
    plain_state,
    tie_again,
    write_ties,
)
from fxtie.planning.own_ties import own_ties as ties_of
from fxtie.rules.rule import Tie
from fxtie.tied.state import state_of
from fxtie.tied.tied_module import derived_tensors
from fxtie.words import list_names

M = TypeVar("M", bound=nn.Module)


class TiedPretrained(nn.Module):
    """What a tied model does in place of the `PreTrainedModel` that its class inherits from."""

    def save_pretrained(
        self,
        save_directory: str | os.PathLike[str],
        is_main_process: bool = True,
        state_dict: Mapping[str, torch.Tensor] | None = None,
        **kwargs: Any,
    ) -> None:
        """As `PreTrainedModel.save_pretrained`: a checkpoint that the plain class loads.

        Derived tensors are computed and written under their names. `fxtie.json` and, where the ties
        have tensors of their own, `fxtie.safetensors` lie beside it: `fxtie.from_pretrained` makes
        the tied model of them. Of a part of a tied model, only the plain checkpoint is written.

        Raises:
            FileError: if the ties can't be saved (see `fxtie.check_saveable`); nothing is written.
            FxtieError: if the model is quantized, and for `distributed_checkpoint` and
                `push_to_hub`.
        """
        save: Any = super().save_pretrained  # type: ignore[misc]
        if getattr(self, "_hf_peft_config_loaded", False):  # adapters, and nothing else
            save(save_directory, is_main_process, state_dict, **kwargs)
            return
        self._refuse(kwargs)
        if not is_main_process and state_dict is not None:  # gathered, and written by another
            save(save_directory, is_main_process, state_dict, **kwargs)
            return
        state = {**self.state_dict(), **(state_dict or {})}
        plain = plain_state(self, state)
        if state_of(self).report is not None:  # not of a part
            folder = Path(save_directory).resolve()
            if is_main_process:
                folder.mkdir(parents=True, exist_ok=True)
                write_ties(self, folder, state)
            state_of(self).saved_in |= {folder: None}
        save(save_directory, is_main_process, plain, **kwargs)

    def _refuse(self, arguments: Mapping[str, Any]) -> None:
        """Raise for what would write a checkpoint without derived tensors or `fxtie.json`."""
        remedy = "Save fxtie.materialize(tied), or use fxtie.save."
        if any(value.is_meta for value in only_tensors(self.state_dict()).values()):
            raise FxtieError(
                "save_pretrained can't save tensors on the meta device. If accelerate has "
                "offloaded them, use accelerate.hooks.remove_hook_from_submodules(tied) first."
            )
        if getattr(self, "hf_quantizer", None) is not None:
            raise FxtieError(f"save_pretrained can't save a tied model that is quantized. {remedy}")
        if arguments.get("distributed_checkpoint"):
            raise FxtieError(f"A distributed checkpoint would lack the derived tensors. {remedy}")
        if arguments.get("push_to_hub"):
            raise FxtieError(
                f"save_pretrained(push_to_hub=True) would upload the folder without {RULES}. "
                f"Use tied.push_to_hub(repo_id)."
            )

    def load_state_dict(
        self, state_dict: Mapping[str, torch.Tensor], strict: bool = True, assign: bool = False
    ) -> Any:
        """As `nn.Module.load_state_dict`. A checkpoint of `save_pretrained` is loaded whole.

        transformers loads those with `strict=False`. Tensors of the ties, which are not in them,
        are those of now or of a folder that this model was saved in, whichever make the derived
        tensors of the checkpoint.

        Raises:
            FxtieError: with `strict=False`, if neither do.
        """
        if not strict:
            state_dict = completed(self, state_dict)
        return super().load_state_dict(state_dict, strict, assign)

    def tie_weights(self, *args: Any, **kwargs: Any) -> None:
        """As `PreTrainedModel.tie_weights`. What is derived stays derived."""
        tie: Any = super().tie_weights  # type: ignore[misc]
        if "recompute_mapping" in kwargs:
            kwargs["recompute_mapping"] = True  # that of before knows of no ties
        tie(*args, **kwargs)

    def get_expanded_tied_weights_keys(self, all_submodels: bool = False) -> dict[str, str]:
        """What `tie_weights` ties: nothing that is derived."""
        expand: Any = super().get_expanded_tied_weights_keys  # type: ignore[misc]
        derived = {name for name, _, _ in derived_tensors(self)}
        pairs = expand(all_submodels=all_submodels).items()
        return {target: source for target, source in pairs if derived.isdisjoint((target, source))}

    def resize_token_embeddings(
        self,
        new_num_tokens: int | None = None,
        pad_to_multiple_of: int | None = None,
        mean_resizing: bool = True,
    ) -> nn.Module:
        """As `PreTrainedModel.resize_token_embeddings`. A derived head follows the embeddings.

        Raises:
            FxtieError: if the embeddings are derived, or the head in a way that does not follow;
                nothing is changed.
        """
        model: Any = self
        now = len(model.get_input_embeddings().weight)
        size = now if new_num_tokens is None else new_num_tokens
        if pad_to_multiple_of is not None:
            size = math.ceil(size / pad_to_multiple_of) * pad_to_multiple_of
        if size != now:
            self._check_resizable(size)
        resize: Any = super().resize_token_embeddings  # type: ignore[misc]
        resized: nn.Module = resize(new_num_tokens, pad_to_multiple_of, mean_resizing)
        return resized

    def _check_resizable(self, size: int) -> None:
        """Raise if what is derived would not be of this size afterwards."""
        model: Any = self
        table, head = model.get_input_embeddings(), model.get_output_embeddings()
        derived = {name: owner for name, owner, _ in derived_tensors(self)}
        names = [name for name, owner in derived.items() if owner in (table, head)]
        fault = (
            f"Derived tensors would not be resized to {size} tokens: {list_names(names)}. Resize "
            f"the model before you tie it."
        )
        if any(derived[name] is table for name in names):
            raise FxtieError(fault)
        resized = table.weight.new_zeros(size, *table.weight.shape[1:])
        given = {name: resized for name, v in self.named_parameters() if v is table.weight}
        try:
            sizes = {len(value) for n, value in derived_values(self, given).items() if n in names}
        except Exception as error:  # of a transform, which may be the user's
            raise FxtieError(fault) from error
        if sizes - {size}:
            raise FxtieError(fault)


def rules_of(model: nn.Module) -> list[Tie]:
    """What transformers itself keeps the same in a model, as ties.

    Example:
        >>> from transformers import LlamaConfig, LlamaForCausalLM
        >>> config = LlamaConfig(
        ...     vocab_size=32, hidden_size=8, intermediate_size=16, num_hidden_layers=1,
        ...     num_attention_heads=2, num_key_value_heads=2, tie_word_embeddings=True)
        >>> rules_of(LlamaForCausalLM(config))
        [Tie('lm_head.weight', 'model.embed_tokens.weight', same)]
    """
    return ties_of(dict(model.named_modules()))


def own_ties(module: Any) -> Mapping[str, str]:
    """For `foreign.py`: what `tie_weights` of a module ties, by the names of that module."""
    expand = getattr(module, "get_expanded_tied_weights_keys", None)  # from version 5 on
    return {} if expand is None else expand(all_submodels=False)


@overload
def from_pretrained(path: str | os.PathLike[str], model_class: type[M], **kwargs: Any) -> M: ...
@overload
def from_pretrained(path: str | os.PathLike[str], model_class: Any, **kwargs: Any) -> nn.Module: ...
def from_pretrained(path: str | os.PathLike[str], model_class: Any, **kwargs: Any) -> nn.Module:
    """Load a tied model of transformers from what its `save_pretrained` wrote.

    Args:
        path: a folder, or a repository of the hub.
        model_class: the plain class, or one of the library's `Auto` classes.
        **kwargs: as for `model_class.from_pretrained`.

    Returns:
        The tied model, in `eval()`, with the same stored and derived tensors.

    Raises:
        FileError: for a checkpoint of an untied model, which has no `fxtie.json`; for damaged
            files; for another class of model; and for a checkpoint that was changed since, so that
            its derived tensors are not what the ties make of the others. Transforms of your own
            must be registered before: import the module that does it.
        OSError: if there is no such checkpoint.

    Notes:
        Nothing in the files is executed: transforms are names that are looked up.

    Example:
        >>> import fxtie, tempfile
        >>> from transformers import LlamaConfig, LlamaForCausalLM
        >>> config = LlamaConfig(
        ...     vocab_size=32, hidden_size=8, intermediate_size=16, num_hidden_layers=2,
        ...     num_attention_heads=2, num_key_value_heads=2)
        >>> rule = fxtie.Rule("model.layers.1.mlp", "model.layers.0.mlp")
        >>> tied = fxtie.transform(LlamaForCausalLM(config), rule)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     tied.save_pretrained(folder)
        ...     plain = LlamaForCausalLM.from_pretrained(folder)
        ...     again = fxtie.from_pretrained(folder, LlamaForCausalLM)
        >>> "model.layers.1.mlp.up_proj.weight" in plain.state_dict()
        True
        >>> len(list(again.parameters())) == len(list(tied.parameters()))
        True
    """
    from transformers.utils import cached_file

    places = ("cache_dir", "force_download", "proxies", "token", "revision", "local_files_only")
    where = {name: kwargs[name] for name in (*places, "subfolder") if name in kwargs}
    rules, hidden = (
        cached_file(path, name, _raise_exceptions_for_missing_entries=False, **where)
        for name in (RULES, HIDDEN)
    )
    if rules is None:
        raise FileError(
            f"{os.fspath(path)!r} has no {RULES}: its model is not tied. Load it by "
            f"{model_class.__name__}.from_pretrained, and tie it with fxtie.transform."
        )
    model: nn.Module = model_class.from_pretrained(path, **kwargs)
    return tie_again(model, Path(rules), None if hidden is None else Path(hidden))
