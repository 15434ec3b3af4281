"""A model, its input and its program: made once, since nothing may change a program."""

import copy

import pytest
from programs import made


@pytest.fixture
def net(device):
    return copy.deepcopy(made(device)[0])


@pytest.fixture
def x(device):
    return made(device)[1]


@pytest.fixture
def program(device):
    return made(device)[2]
