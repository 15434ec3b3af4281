"""Networks of `orbit` filters are equivariant: what turns their input turns their feature maps."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import fxtie
from fxtie import Rule
from fxtie import transforms as T


class GroupNet(nn.Module):
    """Two group convolutions, a third for the classes, and the mean over group and space."""

    def __init__(self, n: int, kernel: int = 3) -> None:
        super().__init__()
        self.n = n
        self.lift = nn.Conv2d(3, 4 * n, kernel, padding=kernel // 2)
        self.hidden = nn.Conv2d(4 * n, 5 * n, kernel)
        self.last = nn.Conv2d(5 * n, 2 * n, kernel)

    def maps(self, x: Tensor) -> Tensor:
        """The last feature maps, as (batch, feature, group element, height, width)."""
        maps = self.last(self.hidden(self.lift(x).relu()).relu())
        return maps.unflatten(1, (2, self.n))

    def forward(self, x: Tensor) -> Tensor:
        return self.maps(x).mean((2, 3, 4))


def rules(group: str, n: int, kernel: int = 3) -> list[Rule]:
    def bank(*shape: int) -> fxtie.Bank:
        return fxtie.Bank(1, shape, dtype=torch.float64)

    square = (kernel, kernel)
    return [
        Rule("lift", bank(4, 3, *square), T.orbit(group, lifting=True), None),
        Rule("hidden", bank(5, 4 * n, *square), T.orbit(group), None),
        Rule("last", bank(2, 5 * n, *square), T.orbit(group), None),
        Rule("lift.bias", bank(4), T.repeat_interleave(n, 0)),
        Rule("hidden.bias", bank(5), T.repeat_interleave(n, 0)),
        Rule("last.bias", bank(2), T.repeat_interleave(n, 0)),
    ]


def act(x: Tensor, g: int) -> Tensor:
    """An image under one element of the group: a reflection first, then quarter turns."""
    return torch.rot90(x.flip(-1) if g >= 4 else x, g % 4, (-2, -1))


def product(g: int, h: int) -> int:
    """The group's product, read off what both do to an image without symmetries."""
    image = torch.arange(9.0).reshape(3, 3)
    both = act(act(image, h), g)
    return next(k for k in range(8) if torch.equal(act(image, k), both))


@pytest.mark.parametrize(("group", "n"), [("p4", 4), ("p4m", 8)])
@pytest.mark.parametrize("kernel", [3, 5])
@pytest.mark.parametrize("train", [False, True])
def test_a_network_is_equivariant(group: str, n: int, kernel: int, train: bool) -> None:
    torch.manual_seed(0)
    net = GroupNet(n, kernel).double()
    tied = fxtie.transform(net, rules(group, n, kernel)).train(train)
    x = torch.randn(2, 3, 13, 13, dtype=torch.float64)
    maps, classes = tied.maps(x), tied(x)
    assert (classes[0] - classes[1]).abs().min() > 1e-4  # they say something
    for g in range(n):
        expected = torch.empty_like(maps)
        for h in range(n):
            expected[:, :, product(g, h)] = act(maps[:, :, h], g)
        torch.testing.assert_close(tied.maps(act(x, g)), expected)
        torch.testing.assert_close(tied(act(x, g)), classes)
        if g:
            assert not torch.allclose(net.double()(act(x, g)), net(x))  # untied, it is not


def test_p4_knows_no_reflections() -> None:
    torch.manual_seed(0)
    tied = fxtie.transform(GroupNet(4).double(), rules("p4", 4))
    x = torch.randn(1, 3, 9, 9, dtype=torch.float64)
    assert not torch.allclose(tied(x.flip(-1)), tied(x))


def test_it_stays_equivariant_in_training() -> None:
    torch.manual_seed(0)
    tied = fxtie.transform(GroupNet(4).double(), rules("p4", 4))
    saved = sum(p.numel() for p in tied.parameters())
    assert saved * 4 == sum(p.numel() for p in GroupNet(4).parameters())
    optimizer = torch.optim.SGD(tied.parameters(), lr=0.1)
    x, y = torch.randn(8, 3, 9, 9, dtype=torch.float64), torch.arange(8) % 2
    losses = []
    for _ in range(5):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(tied(x), y)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    torch.testing.assert_close(tied(x.rot90(1, (-2, -1))), tied(x))


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 3), st.integers(1, 3), st.integers(1, 5), st.sampled_from(["p4", "p4m"]))
def test_shapes(out: int, features: int, kernel: int, group: str) -> None:
    n = 4 if group == "p4" else 8
    base = torch.randn(out, features * n, kernel, kernel)
    weight = T.orbit(group)(base)
    assert weight.shape == (out * n, features * n, kernel, kernel)
    assert torch.equal(weight[::n], base)  # the neutral element
    lifted = T.orbit(group, lifting=True)(base)
    for g in range(n):
        assert torch.equal(lifted[g::n], act(base, g))


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: T.orbit("p6"), "orbit(group): group is 'p4' or 'p4m', not 'p6'."),
        (lambda: T.orbit("p4", 1), "orbit(lifting): True or False, not 1."),
        (
            lambda: T.orbit("p4")(torch.ones(2, 3, 3, 3)),
            "takes a source of shape (out, in * 4, k, k), not (2, 3, 3, 3). For the first layer, "
            "whose input is an image, write orbit('p4', lifting=True).",
        ),
        (
            lambda: T.orbit("p4m")(torch.ones(2, 8, 3, 5)),
            "orbit('p4m') takes a source of shape (out, in, k, k), not (2, 8, 3, 5).",
        ),
        (lambda: T.orbit("p4")(torch.ones(2, 8)), "not (2, 8)."),
    ],
)
def test_mistakes(make: Any, says: str) -> None:
    with pytest.raises(ValueError) as error:
        make()
    assert says in str(error.value)
