"""Groups of processes, which the tests of a session share, and which of these are slow."""

import pytest
from ranks import Ranks

FEW = ("across", "learned")
"""Kinds of ties: sources in other modules, and a transform with parameters of its own."""


def pytest_collection_modifyitems(items):
    """Of kinds that are not among the few, most settings are slow tests."""
    for item in items:
        parameters = item.callspec.params if hasattr(item, "callspec") else {}
        is_setting = item.get_closest_marker("setting") is not None
        is_of_few = parameters.get("kind", FEW[0]) in FEW
        if is_setting and not is_of_few and item.originalname != "test_equals_one_process":
            item.add_marker(pytest.mark.slow)


@pytest.fixture(scope="session")
def two_ranks():
    ranks = Ranks(2)
    yield ranks
    ranks.stop()


@pytest.fixture(scope="session")
def four_ranks():
    ranks = Ranks(4)
    yield ranks
    ranks.stop()
