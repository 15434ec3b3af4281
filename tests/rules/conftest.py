"""Where random files of rules go."""

from __future__ import annotations

import pytest
from rule_files import whole_rules

from fxtie.rules.files import dump_rules


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where the random files go, the last one over the others."""
    folder = tmp_path_factory.mktemp("rules")
    dump_rules(whole_rules(), folder / "whole.json")
    return folder
