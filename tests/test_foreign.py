"""What is declared of classes of other libraries, and for which modules it holds."""

import contextlib

import pytest
from torch import nn

from fxtie import foreign
from fxtie.foreign import Foreign


class Base(nn.Module):
    pass


class Derived(Base):
    pass


@pytest.fixture
def declared(monkeypatch):
    """Both classes, declared."""
    monkeypatch.setattr(foreign, "_declared", {})
    found = [Foreign(type("Methods", (), {})) for _ in range(2)]
    for cls, one in zip((Base, Derived), found, strict=True):
        foreign.declare(f"{__name__}.{cls.__qualname__}", one)
    return found


def test_what_is_declared_of_an_ancestor_holds_and_the_nearest_comes_first(declared):
    base, derived = declared
    assert foreign.foreign_of(Derived) == [derived, base]
    assert foreign.foreign_of(Base) == [base]
    assert foreign.foreign_classes([Base(), nn.Linear(1, 1), Base()]) == {Base: [base]}


def test_tensors_that_are_kept_elsewhere_are_loaded_by_the_attribute_of_their_module(monkeypatch):
    monkeypatch.setattr(foreign, "_offloading", {})
    foreign.declare_offloading("_kept_elsewhere", contextlib.nullcontext)
    module = nn.Linear(1, 1)
    assert foreign.loading_of(module) is None
    module._kept_elsewhere = True
    with foreign.loading_of(module) as loaded:
        assert loaded is module
