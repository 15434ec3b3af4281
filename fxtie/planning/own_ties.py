"""What is the same in a model as it is, such as a head and the embeddings, as ties.

Its library keeps such tensors the same, or several modules hold one Parameter.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from fxtie.foreign import foreign_classes
from fxtie.planning.names import Names, Slot
from fxtie.planning.resolve import Resolver
from fxtie.rules.rule import Tie
from fxtie.words import join


def own_ties(modules: Mapping[str, nn.Module]) -> list[Tie]:
    """What the libraries of these modules keep the same."""
    classes = foreign_classes(modules.values())
    return [
        Tie(join(prefix, target), join(prefix, source))
        for prefix, module in modules.items()
        for foreign in classes.get(type(module), ())
        for target, source in foreign.own_ties(module).items()
    ]


def known_ties(names: Names) -> list[Tie]:
    """What is the same in a model already; each tensor once, whatever names it has."""
    known = {
        target.key: tie
        for tie in own_ties(names.modules)
        if isinstance(target := names.find(tie.target), Slot)
    }
    first: dict[nn.Parameter, Slot] = {}
    for name in names.tensors:
        slot = names.find(name)
        if not isinstance(slot, Slot):
            continue
        if (parameter := slot.owner._parameters.get(slot.attr)) is not None:
            holder = first.setdefault(parameter, slot)
            if holder.key != slot.key:
                known.setdefault(slot.key, Tie(name, holder.name))
    return list(known.values())


def add_own_ties(resolver: Resolver) -> None:
    """Let tensors follow one that rules derive, if no rule is for themselves."""
    for tie in own_ties(resolver.names.modules):
        target, source = map(resolver.names.find, (tie.target, *tie.sources))
        if isinstance(target, Slot) and isinstance(source, Slot):
            derived = resolver.resolved
            if source.key in derived and target.key not in derived:
                resolver.resolve(tie)
