"""Where a test writes its file."""

from __future__ import annotations

import pytest


@pytest.fixture
def path(tmp_path):
    return tmp_path / "tied.safetensors"
