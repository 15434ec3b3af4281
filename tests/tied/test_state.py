"""What fxtie knows of a module: in copies, and of modules that are not tied."""

import copy
import pickle

import torch
from tied_forms import TwoConvs
from torch import nn

import fxtie
from fxtie.tied.state import state_of


def test_one_graph_for_both_modes_is_one_in_copies():
    tied = fxtie.transform(TwoConvs(), fxtie.Rule("conv_2", "conv_1", torch.square))
    for other in (copy.deepcopy(tied), pickle.loads(pickle.dumps(tied))):
        assert other.train().graph is other.eval().graph is not tied.graph


def test_a_copy_made_in_a_block_of_derive_once_derives_for_itself():
    tied = fxtie.transform(TwoConvs(), fxtie.Rule("conv_2", "conv_1", torch.square))
    with fxtie.derive_once(tied):
        other = copy.deepcopy(tied)
    with torch.no_grad():
        other.conv_1.weight.fill_(2)
    assert torch.equal(other.conv_2.weight, torch.full_like(other.conv_1.weight, 4))
    assert other.code == tied.code


def test_a_module_that_is_not_tied_has_an_empty_state_and_keeps_none():
    layer = nn.Linear(2, 2)
    state_of(layer).derived["weight"] = None
    assert not state_of(layer).derived and "_fxtie" not in vars(layer)
