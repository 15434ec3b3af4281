"""How many of Python's instructions the pass takes: the guard against its getting slower, for CI.

In: fixed models. Out: counts, and what has grown against the committed ones in
`instructions.json`. Called by `speed.py --count` and the tests.

Seconds can't be asserted on a shared machine; counts repeat exactly. They are those of one version
of Python and torch, so others have none to be compared with until `--count --update` writes them.
"""

from __future__ import annotations

import json
import platform
from pathlib import Path

import torch
from measure import instructions
from speed_models import chain, decoder, one_source, sixteen_blocks

import fxtie

COMMITTED = Path(__file__).with_name("instructions.json")
MARGIN = 1.10


def versions() -> str:
    """What a count depends on."""
    python, torch_ = platform.python_version_tuple(), torch.__version__.split(".")
    return f"Python {'.'.join(python[:2])}, torch {'.'.join(torch_[:2])}"


def counts() -> dict[str, int]:
    """Instructions of `fxtie.transform`, by model."""
    found = {}
    for make in (sixteen_blocks, decoder, one_source, chain):
        workload = make()
        for which in ("all tied", "one tie"):
            rules = workload.rules if which == "all tied" else workload.rules[-1:]
            found[f"{workload.name}, {which}"] = instructions(
                lambda m=workload.model, r=rules: fxtie.transform(m, r)
            )
    return found


def _everything() -> dict[str, dict[str, int]]:
    return json.loads(COMMITTED.read_text()) if COMMITTED.exists() else {}


def committed() -> dict[str, int]:
    """The committed counts for these versions; empty if there are none."""
    return _everything().get(versions(), {})


def update(found: dict[str, int]) -> None:
    """Commit to counts, for these versions."""
    everything = _everything()
    everything[versions()] = found
    COMMITTED.write_text(json.dumps(everything, indent=2) + "\n")


def grown(found: dict[str, int]) -> list[str]:
    """What takes more instructions than is committed, beyond the margin: a sentence each."""
    return [
        f"{name}: {found[name]:,} instructions, {found[name] / before:.2f} times the {before:,} "
        f"that are committed."
        for name, before in committed().items()
        if found[name] > MARGIN * before
    ]
