"""Tensors that a model's own library keeps the same, such as a head and the embeddings.

In: a model, and the rules that were resolved so far. Out: ties of the targets of these.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from fxtie.foreign import foreign_classes
from fxtie.planning.names import Slot, join
from fxtie.planning.resolve import Resolver
from fxtie.rules.rule import Tie


def own_ties(modules: Mapping[str, nn.Module]) -> list[Tie]:
    """What the libraries of these modules keep the same."""
    classes = foreign_classes(modules.values())
    return [
        Tie(join(prefix, target), join(prefix, source))
        for prefix, module in modules.items()
        for foreign in classes.get(type(module), ())
        for target, source in foreign.own_ties(module).items()
    ]


def add_own_ties(resolver: Resolver) -> None:
    """Let tensors follow one that rules derive, if no rule is for themselves."""
    for tie in own_ties(resolver.names.modules):
        target, source = map(resolver.names.find, (tie.target, *tie.sources))
        if isinstance(target, Slot) and isinstance(source, Slot):
            derived = resolver.resolved
            if source.key in derived and target.key not in derived:
                resolver.resolve(tie)
