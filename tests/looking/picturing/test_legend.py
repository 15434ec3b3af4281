"""Which colour stands for which transforms, and what the legend says of them."""

import torch
from drawn_ties import drawn, linears, texts, with_class

import fxtie
from fxtie import Rule
from fxtie import transforms as T


def test_colours_are_told_apart_or_told_of():
    functions = [torch.sin, torch.cos, torch.tan, torch.abs, torch.neg, torch.exp, torch.tanh]
    more = [torch.square, torch.sigmoid]
    rules = [Rule(str(i), "0", f, bias=None) for i, f in enumerate([*functions, *more], 1)]
    root = drawn(linears(10), *rules)
    names = [e.get("class").split()[1] for e in with_class(root, "tie")]
    assert sorted(names) == [*("others",) * 2, *(f"t{i}" for i in range(7))]
    assert {f.__name__ for f in functions} | {"2 others"} <= set(texts(root))


def test_parts_of_one_transform_share_a_colour():
    both = fxtie.Tie(("1.weight", "2.weight"), "0.weight", lambda w: (w, -w))
    root = drawn(linears(3), both)
    assert {e.get("class") for e in with_class(root, "tie")} == {"tie t0"}
    assert "<lambda>(…) ×2" in texts(root)


def test_transforms_that_differ_in_arguments_share_a_colour():
    root = drawn(linears(3), Rule("1", "0", T.scale(2), None), Rule("2", "0", T.scale(3), None))
    assert "scale(…) ×2" in texts(root)
    assert {e.get("class") for e in with_class(root, "tie")} == {"tie t0"}
