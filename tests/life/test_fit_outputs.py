"""What a fit does to the model's outputs, and the inputs that it asks for."""

import pytest
import torch
from blocks import Blocks
from chain_net import chain_net
from torch import nn

import fxtie
from fxtie import Rule


def test_the_output_before_and_after():
    net = nn.Sequential(*chain_net(3), nn.Dropout(0.5))
    with torch.no_grad():
        net[2].weight.copy_(net[0].weight + 0.01 * torch.randn(6, 6))
    net[1].eval()
    x = torch.randn(7, 6)
    trained = [p.detach().clone() for p in net.parameters()]
    found = fxtie.fit(net, Rule("2", "0"), inputs=[x[:3], [x[3:]]])
    assert net.training and not net[1].training
    before = [trained[i].double() for i in (0, 1, 2, 3, 0, 1)]
    mean = [(trained[i] + trained[i + 4]).double() / 2 for i in (0, 1)]
    after = [*mean, *(t.double() for t in trained[2:4]), *mean]

    def output(p):
        y = x.double()
        for w, b in zip(p[::2], p[1::2], strict=True):
            y = nn.functional.linear(y, w, b)
        return y

    expected = output([t.double() for t in trained])
    for value, told in ((before, found.output_before), (after, found.output_after)):
        change = (output(value) - expected).norm() / expected.norm()
        assert told == pytest.approx(change.item(), rel=1e-3)
    assert found.output_after < found.output_before


def test_inputs_by_name_and_none_at_all():
    net = Blocks(3)
    found = fxtie.fit(net, fxtie.suggest(net, "repeat"), inputs=[{"x": torch.randn(2, 8)}])
    assert found.output_after > 0
    assert fxtie.fit(Blocks(2), Rule("blocks.1", "blocks.0")).output_after is None
    for inputs, told in (
        ([], "holds no batch"),
        (torch.randn(2, 8), r"not one Tensor: write inputs=\[batch\]"),
        (3, "not one int"),
    ):
        with pytest.raises(fxtie.FxtieError, match=told):
            fxtie.fit(net, Rule("blocks.1", "blocks.0"), inputs=inputs)


def test_outputs_without_numbers():
    class Counts(Blocks):
        def forward(self, x):
            return super().forward(x).argmax(1)

    with pytest.raises(fxtie.FxtieError, match="returns no floating-point tensor"):
        fxtie.fit(Counts(2), Rule("blocks.1", "blocks.0"), inputs=[torch.randn(2, 8)])
