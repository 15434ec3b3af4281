"""Type checkers infer the class that each public function returns."""

import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SIGNATURES = Path(__file__).parent / "signatures.py"


def run(*command):
    """Run a type checker with this Python on the fxtie of this checkout."""
    environment = {**os.environ, "MYPYPATH": str(ROOT), "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-m", *map(str, command)],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=280,
    )
    return done.stdout + done.stderr


def mypy(paths, folder):
    """As `./run test` has just run it, so that it reads torch and fxtie from its cache."""
    return run("mypy", *paths)


def basedpyright(paths, folder):
    """pyright with its Node.js in the wheel: it downloads nothing when it runs."""
    settings = {
        "include": [*map(str, paths)],
        "extraPaths": [str(ROOT)],
        "typeCheckingMode": "strict",
        "reportUnnecessaryTypeIgnoreComment": "error",
        "reportUnknownMemberType": "none",  # torch leaves arguments of its own untyped
    }
    project = folder / "pyrightconfig.json"
    project.write_text(json.dumps(settings), encoding="utf-8")
    return run("basedpyright", "--project", project, "--pythonpath", sys.executable)


@pytest.mark.parametrize("check", [mypy, basedpyright])
def test_signatures(check, tmp_path):
    """The file has no errors, and a copy with one wrong assertion has that one."""
    if importlib.util.find_spec(check.__name__) is None:
        pytest.skip(f"{check.__name__} is not installed")
    code = SIGNATURES.read_text(encoding="utf-8")
    wrong = tmp_path / "wrong.py"
    wrong.write_text(code.replace("assert_type(tied, Net)", "assert_type(tied, nn.Linear)"))
    output = check([SIGNATURES, wrong], tmp_path)
    # mypy may find errors in fxtie, with another torch than the pinned one.
    errors = [
        line for line in output.splitlines() if re.search(r"(signatures|wrong)\.py.* error: ", line)
    ]
    (error,) = errors or [output]
    assert "wrong.py:" in error, output
    assert '"Net"' in error and '"Linear"' in error, output
