"""Files that are written whole or not at all."""

import os

import pytest

from fxtie.rules.replacing import replacing


@pytest.fixture
def path(tmp_path):
    return tmp_path / "rules.toml"


def test_replacing_keeps_the_old_file_until_the_end(path):
    path.write_bytes(b"old")
    with replacing(path) as temporary:
        with open(temporary, "wb") as file:
            file.write(b"new")
        assert path.read_bytes() == b"old"
    assert path.read_bytes() == b"new"


def test_what_fails_leaves_the_old_file_and_nothing_else(path):
    path.write_bytes(b"old")
    with pytest.raises(ZeroDivisionError), replacing(path) as temporary:
        with open(temporary, "wb") as file:
            file.write(b"half")
        raise ZeroDivisionError
    assert path.read_bytes() == b"old"
    assert os.listdir(path.parent) == [path.name]
