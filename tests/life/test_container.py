"""`fxtie.life.container`: a file is whole or refused, whatever happened to it or to its writer."""

import contextlib
import errno
import os
import re
import signal
import sys

import pytest
import torch
from safetensors.torch import save_file

from fxtie.errors import FileError
from fxtie.life import container
from fxtie.life.container import STORABLE, read, write

TENSORS = {"a": torch.tensor([[1.0, -0.0]]), "b": torch.tensor(3), "c": torch.zeros(0, 2)}
RECORD = {"rules": {"rule": [{"target": "é", "k": 0.5}]}}


def bits(tensor):
    return tensor.shape, tensor.dtype, tensor.reshape(-1).view(torch.uint8).tolist()


def assert_read(path):
    record, tensors = read(path)
    assert record == {"version": 1, **RECORD}
    assert {name: bits(t) for name, t in tensors.items()} == {
        n: bits(t) for n, t in TENSORS.items()
    }


def test_round_trip(path):
    write(path, TENSORS, RECORD)
    assert_read(path)
    assert os.listdir(path.parent) == [path.name]


@pytest.mark.parametrize("dtype", sorted(STORABLE, key=str), ids=str)
def test_dtypes(dtype, path):
    value = torch.arange(24, dtype=torch.uint8).view(dtype if dtype.itemsize > 1 else torch.uint8)
    value = value.to(dtype) if dtype.itemsize == 1 else value
    write(path, {"value": value}, {})
    assert bits(read(path)[1]["value"]) == bits(value)


def test_a_link_stays_a_link(path):
    link = path.parent / "latest"
    link.symlink_to(path.name)
    write(link, TENSORS, RECORD)
    assert link.is_symlink()
    assert_read(path)


# --- Damage -----------------------------------------------------------------------------------


def test_truncation(path):
    """At every byte: in the length, in the header, in the data, and none of it."""
    write(path, TENSORS, RECORD)
    whole = path.read_bytes()
    for size in range(len(whole)):
        path.write_bytes(whole[:size])
        with pytest.raises(FileError, match="not a whole safetensors file"):
            read(path)
    path.write_bytes(whole + b"\0")
    with pytest.raises(FileError, match="not a whole safetensors file"):
        read(path)


def test_bit_flips(path):
    """Two bits of each byte: refused, or, where they mean nothing, read the same."""
    write(path, TENSORS, RECORD)
    whole = path.read_bytes()
    header = 8 + int.from_bytes(whole[:8], "little")
    harmless = set()
    for place in range(len(whole)):
        for bit in {place % 8, 5}:
            damaged = bytearray(whole)
            damaged[place] ^= 1 << bit
            path.write_bytes(damaged)
            try:
                assert_read(path)
                harmless.add(place)
            except FileError:
                pass
    # Only in "format", which is for other readers, and in the spaces that fill the header up.
    meaningless = re.search(rb'"format":"pt",?', whole).span()
    padding = len(whole[:header].rstrip())
    assert all(meaningless[0] <= p < meaningless[1] or padding <= p < header for p in harmless)


@pytest.mark.parametrize("data", [b"", b"PK\3\4" + bytes(200), b"{}" * 50, bytes(8), b"\xff" * 99])
def test_foreign_files(data, path):
    path.write_bytes(data)
    with pytest.raises(FileError, match="not a whole safetensors file"):
        read(path)


@pytest.mark.parametrize(
    ("metadata", "says"),
    [
        (None, "not written by fxtie"),
        ({"format": "pt"}, "not written by fxtie"),
        ({"fxtie": "{}"}, "checksum"),
        ({"fxtie": "{}", "fxtie.crc32": "00000000"}, "checksum"),
    ],
)
def test_files_of_other_programs(metadata, says, path):
    save_file({"a": torch.zeros(1)}, path, metadata=metadata)
    with pytest.raises(FileError, match=says):
        read(path)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "no JSON"),
        ("[" * 100_000, "no JSON"),
        ("[]", "format None"),
        ("{}", "format None"),
        ('{"version": 2}', "format 2, and this fxtie reads 1"),
    ],
    ids=range(5),
)
def test_records_of_another_form(text, says, path):
    save_file({}, path, metadata={"fxtie": text, "fxtie.crc32": container._sum(text, {})})
    with pytest.raises(FileError, match=says):
        read(path)


def test_no_file(path):
    for missing in (path, path.parent):
        with pytest.raises(FileError, match="no such file"):
            read(missing)


@pytest.mark.parametrize("missing", ["safetensors", "numpy"])
def test_without_the_extra(missing, path, monkeypatch):
    for name in [name for name in sys.modules if name.split(".")[0] == missing]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, missing, None)
    for call in (lambda: write(path, {}, {}), lambda: read(path)):
        with pytest.raises(FileError, match=re.escape("pip install 'fxtie[files]'")):
            call()


# --- A write that fails -----------------------------------------------------------------------


def test_places_that_can_not_be_written(path):
    for place in (path.parent / "missing" / "x", path.parent):
        with pytest.raises(FileError, match="can't be written"):
            write(place, TENSORS, RECORD)


@pytest.mark.parametrize("step", ["os.fsync", "os.replace", "safetensors.torch.save_file"])
@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "disk full"), KeyboardInterrupt()])
def test_a_failing_write_leaves_nothing(step, error, path, monkeypatch):
    path.write_bytes(b"old")

    def fail(*args, **kwargs):
        if "save_file" in step:
            with open(args[1], "wb") as file:
                file.write(b"half")
        raise error

    monkeypatch.setattr(step, fail)
    with pytest.raises(KeyboardInterrupt if isinstance(error, KeyboardInterrupt) else FileError):
        write(path, TENSORS, RECORD)
    assert path.read_bytes() == b"old"
    assert os.listdir(path.parent) == [path.name]


def die(*args, **kwargs):
    os.kill(os.getpid(), signal.SIGKILL)


def write_half(tensors, path, metadata):
    save_file(tensors, path, metadata)
    os.truncate(path, os.path.getsize(path) // 2)
    die()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
@pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")
@pytest.mark.parametrize(
    ("step", "dies"),
    [("safetensors.torch.save_file", write_half), ("os.fsync", die), ("os.replace", die)],
)
def test_killed_during_a_write(step, dies, path, monkeypatch):
    """While it writes, before the file is on the disk, and before it takes the old one's place."""
    write(path, TENSORS, RECORD)
    monkeypatch.setattr(step, dies)
    if not (child := os.fork()):
        with contextlib.suppress(BaseException):
            write(path, {"a": torch.ones(9)}, {})
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    assert_read(path)
    assert len(os.listdir(path.parent)) == 2  # the old file, and one beside it
