"""What a report says that no other test asks for."""

import torch
from decoder import Decoder
from tied_forms import TwoConvs
from torch import nn

import fxtie
from fxtie import Rule


def test_unused_targets_are_told():
    net = TwoConvs()
    net.aux = nn.Conv2d(16, 32, 3)
    tied = fxtie.transform(net, [Rule("conv_2", "conv_1"), Rule("aux", "conv_1", torch.neg)])
    assert fxtie.report(tied).unused == ("aux.weight", "aux.bias")
    assert "aux.weight" not in tied.state_dict()


class KeptBlocks(Decoder):
    def forward(self, x):
        return super().forward(x.clamp(min=1 if x.max() > 10 else 0))


def test_what_repeats_shares_a_row():
    tied = fxtie.transform(KeptBlocks(12), Rule("layers.*", "layers.0"))
    _, rows = fxtie.report(tied).table()
    assert [row[:2] for row in rows] == [
        ("(root)", "kept"),
        ("layers.1…11", "region"),
    ]
    tied.load_state_dict(KeptBlocks(12).state_dict())
    distances = fxtie.report(tied).distances
    derived = [row for row in fxtie.report(tied).table()[1] if row[1] == "derived"]
    assert len(distances) == 66 and len(derived) == 6
    (up,) = (row for row in derived if row[0] == "layers.1…11.up.weight")
    alike = [distance for name, distance in distances.items() if name.endswith("up.weight")]
    assert up[2] == f"{min(alike):.1%} to {max(alike):.1%} away from the checkpoint's value"


def test_the_whole_plan_has_the_earlier_ties():
    net = nn.Sequential(*(nn.Linear(4, 4) for _ in range(4)))
    twice = fxtie.transform(fxtie.transform(net, Rule("1", "0")), Rule("3", "2"))
    found = fxtie.report(twice)
    assert found.parameters == (60, 40)
    assert (found.whole_plan.parameters, found.whole_plan.parameters_after) == (80, 40)
