"""`chain`: one transform after the other."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fxtie.transforms import ChannelScale, LowRank, Mix, chain, crop, neg, scale, square, tile


def test_chain_gives_the_target_to_those_that_adapt() -> None:
    fitted = chain(crop(shape=(2,)), tile(), scale(2)).for_target(torch.empty(5))
    assert fitted == chain(crop(shape=(2,)), tile(shape=(5,)), scale(2))
    assert fitted(torch.tensor([1.0, 2.0, 3.0])).tolist() == [2.0, 4.0, 2.0, 4.0, 2.0]


def test_chain_without_one_that_adapts_stays_itself() -> None:
    for f in (chain(square, neg), chain(Mix(2).for_target(torch.empty(3)), neg)):
        assert f.for_target(torch.empty(3)) is f


def test_chain_lays_chains_flat() -> None:
    assert chain(chain(square, neg), chain(scale(2))) == chain(square, neg, scale(2))
    assert chain(neg, square)(torch.tensor(3.0)) == 9
    assert chain(square, neg)(torch.tensor(3.0)) == -9


def test_chain_of_modules_is_a_module_with_their_parameters() -> None:
    mix = Mix(2).for_target(torch.empty(4, 3))
    f = chain(mix, square, tile(), LowRank(1), ChannelScale())
    assert isinstance(f, nn.Module)
    fitted = f.for_target(torch.empty(4, 3))
    names = [name for name, _ in fitted.named_parameters()]
    assert names == ["0.weights", "3.A", "3.B", "4.scale"]
    assert next(fitted.parameters()) is mix.weights
    assert list(f.for_target(torch.empty(4, 3)).parameters())[1] is not fitted.transforms[3].A
    a, b = torch.randn(2, 3), torch.randn(2, 3)
    once = mix(a, b) ** 2
    torch.testing.assert_close(fitted(a, b), torch.cat([once, once]))


class Column(nn.Module):
    """A user's own adapting transform, which makes a module for each target."""

    def for_target(self, target: Tensor) -> nn.Module:
        return nn.Linear(1, target.shape[1], bias=False)


def test_a_user_module_adapts_in_a_chain() -> None:
    fitted = chain(lambda w: w.unsqueeze(1), Column()).for_target(torch.empty(4, 3))
    assert [tuple(p.shape) for p in fitted.parameters()] == [(3, 1)]
    assert fitted(torch.ones(4)).shape == (4, 3)
