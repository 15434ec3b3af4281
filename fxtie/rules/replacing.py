"""Files that are written whole or not at all: to a temporary file, which is then renamed."""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Iterator
from typing import TypeAlias

FilePath: TypeAlias = str | os.PathLike[str]


@contextlib.contextmanager
def replacing(path: FilePath) -> Iterator[str]:
    """The name of a temporary file beside `path`, which takes its place if all goes well."""
    path = os.path.realpath(path)  # a link stays a link
    folder, name = os.path.split(path)
    temporary = os.path.join(folder, f".{name}.{secrets.token_hex(8)}.tmp")
    try:
        yield temporary
        _sync(temporary, os.O_RDWR)
        os.replace(temporary, path)
        with contextlib.suppress(OSError):  # not every system can
            _sync(folder, os.O_RDONLY)
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)


def _sync(path: str, flags: int) -> None:
    """Have the system write it to the disk."""
    descriptor = os.open(path, flags)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
