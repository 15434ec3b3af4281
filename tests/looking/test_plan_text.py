"""Plans as text."""

from chain_net import chain_net

import fxtie
from fxtie import Rule, transforms


def test_print_is_a_table_with_a_total():
    text = str(fxtie.plan(chain_net(2), Rule("1", "0", transforms.scale(0.5))))
    assert text.splitlines() == [
        "target    sources    transform    shape      saved",
        "--------  ---------  -----------  -------  -------",
        "1.weight  0.weight   scale(0.5)   6x6           36",
        "1.bias    0.bias     same         6              6",
        "2 ties, parameters 84 -> 42 (50.0%)",
    ]
