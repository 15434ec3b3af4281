"""One safetensors file <-> tensors by name, and a record of JSON's own types.

The record is a text in the file's metadata. safetensors itself refuses a file that is cut off; a
CRC-32 over the record and all tensors finds other damage.
"""

from __future__ import annotations

import json
import os
import zlib
from collections import Counter
from collections.abc import Mapping
from typing import Any

import torch

from fxtie.errors import FileError
from fxtie.rules.replacing import FilePath, replacing

STORABLE = frozenset(
    {
        *(torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.complex64, torch.bool),
        *(torch.int64, torch.int32, torch.int16, torch.int8),
        *(torch.uint64, torch.uint32, torch.uint16, torch.uint8),
        *(torch.float8_e4m3fn, torch.float8_e4m3fnuz, torch.float8_e5m2, torch.float8_e5m2fnuz),
    }
)
"""What a file can hold."""

_PICKLES = (".pt", ".pth", ".bin", ".ckpt", ".pkl")
_VERSION = 1
_RECORD, _SUM = "fxtie", "fxtie.crc32"


def write(path: FilePath, tensors: Mapping[str, torch.Tensor], record: Mapping[str, Any]) -> None:
    """Write a file of tensors, as `writable` makes them; if writing fails, the old file stays.

    Raises:
        FileError: if the file can't be written, or its name is a pickle's.
    """
    if os.fspath(path).endswith(_PICKLES):
        raise FileError(
            f"{os.fspath(path)!r} can't be written: torch.load would not read it by that name. End "
            f"it in .safetensors, which is what the file is; torch.save(tied, path) pickles."
        )
    safetensors = _safetensors()
    text = json.dumps({"version": _VERSION, **record}, allow_nan=False)
    metadata = {"format": "pt", _RECORD: text, _SUM: _sum(text, tensors)}
    try:
        with replacing(path) as temporary:
            safetensors.torch.save_file(dict(tensors), temporary, metadata=metadata)
    except (OSError, safetensors.SafetensorError) as error:  # a full disk comes as the second
        raise FileError(f"{os.fspath(path)!r} can't be written: {error}") from error


def read(path: FilePath) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """The record and the tensors of a file.

    Raises:
        FileError: unless it is a whole file that `write` has written.
    """
    safetensors = _safetensors()
    if not os.path.isfile(path):
        raise FileError("there is no such file.")
    try:
        with safetensors.safe_open(path, framework="pt", device="cpu") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, safetensors.SafetensorError) as error:
        raise FileError(
            f"it is not a whole safetensors file, but truncated, damaged or of another kind "
            f"({error})."
        ) from error
    if _RECORD not in metadata:
        raise FileError("it was not written by fxtie.save, or is damaged.")
    text = metadata[_RECORD]
    if metadata.get(_SUM) != _sum(text, tensors):
        raise FileError("it is damaged: its checksum differs.")
    return parsed(text, _VERSION, "its record"), tensors


def parsed(text: str | bytes, expected: int, what: str) -> dict[str, Any]:
    """A record of JSON, if it has the version that is expected."""
    try:
        record: dict[str, Any] = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise FileError(f"{what} is no JSON: {error}") from error
    version = record.get("version") if isinstance(record, dict) else None
    if version != expected:
        raise FileError(
            f"it has the format {version}, and this fxtie reads {expected}. Use the version of "
            f"fxtie that wrote it, or a newer one."
        )
    return record


def first_names(state: Mapping[str, Any]) -> dict[str, str]:
    """For each name the first, by sort order, of the same tensor."""
    firsts: dict[int, str] = {}
    return {name: firsts.setdefault(id(state[name]), name) for name in sorted(state)}


def writable(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The tensors on the CPU, contiguous, none overlapping another; copied only where needed."""
    tensors = {
        name: value.detach().resolve_conj().resolve_neg().cpu().contiguous()
        for name, value in state.items()
    }
    storages = Counter(value.untyped_storage().data_ptr() for value in tensors.values())
    return {
        name: value.clone() if storages[value.untyped_storage().data_ptr()] > 1 else value
        for name, value in tensors.items()
    }


def _sum(text: str, tensors: Mapping[str, torch.Tensor]) -> str:
    total = zlib.crc32(text.encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        total = zlib.crc32(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode(), total)
        if tensor.numel():
            total = zlib.crc32(tensor.reshape(-1).view(torch.uint8).numpy().data, total)
    return f"{total:08x}"


def _safetensors() -> Any:
    try:
        import numpy  # noqa: F401 (safetensors writes by it)
        import safetensors.torch
    except ImportError as error:
        raise FileError(
            f"Files need the package {error.name}: pip install 'fxtie[files]'"
        ) from error
    return safetensors
