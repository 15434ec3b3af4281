"""What documents say of each other's figures, and the code in them."""

import doctest
import re
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import nn

import fxtie
from fxtie.transforms import elementwise, registry

ROOT = Path(__file__).resolve().parents[1]


def test_the_readme_has_the_totals_of_the_zoo():
    zoo = (ROOT / "docs/zoo.md").read_text(encoding="utf-8")
    readme = " ".join((ROOT / "README.md").read_text(encoding="utf-8").split())

    def figure(pattern: str) -> str:
        return re.search(pattern, zoo)[1]

    equal, models = figure(r"(\d+) of \d+ models tied"), figure(r"of (\d+) models tied")
    exact = figure(r"(\d+) bit for bit in eval"), figure(r"bit for bit in eval, (\d+) in train")
    assert exact == (equal, equal), "what the README says of bits is another figure then"
    graphs, stock = figure(r"(\d+) as one graph"), figure(r"(\d+) can be traced by")
    assert (
        f"{equal} of {models} models of torchvision and timm are tied and equal to the oracle bit "
        f"for bit, in eval and in train; {graphs} are one graph (`torch.fx.symbolic_trace` can "
        f"trace {stock})." in readme
    )


@pytest.mark.parametrize("page", ["docs/design.md"])
def test_examples_print_what_they_say(page):
    failed, tried = doctest.testfile(str(ROOT / page), module_relative=False)
    assert tried and not failed


class Case(NamedTuple):
    """As in tests/helpers/transform_cases.py."""

    transform: Any
    shapes: Any
    expected: Any


def test_the_transform_of_contributing(monkeypatch):
    """The transform, its case and its test run as they stand there."""
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    transform, case, test = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    for table in ("_by_name", "_by_object"):
        monkeypatch.setattr(registry, table, dict(getattr(registry, table)))
    names = dict(vars(elementwise), fxtie=fxtie, nn=nn, np=np, W=(4, 6, 3, 3))
    names |= {"Case": Case, "to_spec": registry.to_spec, "from_spec": registry.from_spec}
    exec(transform, names)
    (compared,) = eval(f"{{{case}}}", names).values()
    x = torch.randn(compared.shapes[0])
    assert np.array_equal(compared.transform(x), compared.expected(x.numpy()))
    exec(test, names)
    names["test_clamp"]()
