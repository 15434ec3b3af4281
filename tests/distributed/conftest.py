"""Groups of processes, which the tests of a session share, and the tables that these write."""

from pathlib import Path

import pytest
from ranks import Ranks
from settings_table import Tables

FEW = ("across", "learned")
"""Kinds of ties: sources in other modules, and a transform with parameters of its own."""


def pytest_addoption(parser):
    parser.addoption(
        "--distributed-table", metavar="PATH", help="write what works to the tables of a page"
    )


def pytest_configure(config):
    config.addinivalue_line(
        "markers",
        "setting(name): a row of docs/distributed.md; {units} stands for a parameter of the test",
    )
    path = config.getoption("--distributed-table", default=None)
    if path is not None and not hasattr(config, "workerinput"):
        config.pluginmanager.register(Tables(Path(path)))


def pytest_collection_modifyitems(items):
    """Reports carry the rows. Of kinds that are not among the few, most settings are slow tests."""
    for item in items:
        marker = item.get_closest_marker("setting")
        parameters = item.callspec.params if hasattr(item, "callspec") else {}
        if marker is not None and "kind" in parameters:
            setting, kind = marker.args[0].format(**parameters), parameters["kind"]
            item.user_properties.append(("setting", (setting, kind)))
            if item.originalname != "test_equals_one_process" and kind not in FEW:
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
