"""What documents say of each other's figures."""

import doctest
import re
from pathlib import Path

import pytest

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
