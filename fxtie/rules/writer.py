"""Rules -> plain data of JSON's own types: the reverse of `reader.py`.

What it can't represent is refused here, not on reading.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any

import torch
from torch import nn

from fxtie.errors import RuleError
from fxtie.rules.free import Bank, Entry, Tensors
from fxtie.rules.patterns import Pattern
from fxtie.rules.reader import BANK_DTYPES, Faults, SharedNames, free_in, transforms_of
from fxtie.rules.rule import Each, OneSource, Rule, Tie
from fxtie.transforms import FitsTarget, Transform, same
from fxtie.transforms.registry import to_spec
from fxtie.words import free_name


def write_rules(
    rules: Sequence[Rule | Tie],
    names: Mapping[str, nn.Module] | None = None,
    shapes: Mapping[nn.Module, tuple[int, ...]] | None = None,
) -> dict[str, Any]:
    """The data that `read_rules` makes the same rules of.

    Args:
        rules: what to describe.
        names: of banks and learnable transforms. Without it, those get names that need them: banks,
            and what is shared or fitted to its target.
        shapes: of the targets to which learnable transforms are fitted, where this is known. A
            `shape` of theirs tells of the others.

    Raises:
        RuleDataError: for callables as patterns, and for transforms without a registered name, or
            which the data would not bring back.

    Example:
        >>> import fxtie, torch
        >>> write_rules([Rule("b", "a", torch.square, bias=None)])
        {'rule': [{'target': 'b', 'source': 'a', 'weight': 'square', 'bias': False}]}
    """
    return _Writer(rules, names or {}, shapes or {}).write()


class _Writer:
    def __init__(
        self,
        rules: Sequence[Rule | Tie],
        names: Mapping[str, nn.Module],
        shapes: Mapping[nn.Module, tuple[int, ...]],
    ) -> None:
        self.rules = rules
        self.shapes = shapes
        self.names = {module: name for name, module in names.items()}
        self.has_values = bool(names)
        self.free: dict[str, dict[str, Any]] = {"bank": {}, "tensors": {}}
        self.shared: dict[str, Any] = {}
        self.faults = Faults()
        self.told: set[tuple[str, int]] = set()

    def write(self) -> dict[str, Any]:
        self.choose_names()
        rules = [self.rule(rule) for rule in self.rules]
        self.faults.tell()
        self.check_shared()
        tables = {**self.free, "shared": self.shared}
        return {**{kind: table for kind, table in tables.items() if table}, "rule": rules}

    # -- names ----------------------------------------------------------------------------------

    def choose_names(self) -> None:
        """Names for banks, and for learnable transforms that are shared or fitted to a target."""
        uses: Counter[nn.Module] = Counter()

        def note(module: nn.Module) -> str | None:
            if not module.state_dict():
                return None  # there is nothing to share
            uses[module] += 1
            return "" if uses[module] > 1 else None  # don't count what is inside of it again

        fitted: list[nn.Module] = []
        for transform in chain.from_iterable(map(transforms_of, self.rules)):
            with contextlib.suppress(RuleError):  # told when it is written
                to_spec(transform, note)
            if isinstance(transform, nn.Module) and self.shape_of(transform) is not None:
                fitted.append(transform)
        for rule in self.rules:
            for owner in free_in(rule):
                self.name(owner, "bank" if isinstance(owner, Bank) else "tensors")
        for module in (*(module for module, times in uses.items() if times > 1), *fitted):
            self.name(module, "shared")

    def name(self, module: nn.Module, name: str) -> None:
        if module not in self.names:
            self.names[module] = free_name(name, self.names.values())

    def shape_of(self, module: nn.Module) -> list[int] | None:
        """The shape of the target that a learnable transform is fitted to, if it is."""
        if not isinstance(module, FitsTarget):
            return None
        shapes = [self.shapes.get(module), *(getattr(m, "shape", None) for m in module.modules())]
        return next((list(shape) for shape in shapes if isinstance(shape, tuple)), None)

    # -- entries --------------------------------------------------------------------------------

    def rule(self, rule: Rule | Tie) -> dict[str, Any]:
        if isinstance(rule, Tie):
            spec = self.transform(rule.transform, rule.target)
            sources = _one(list(map(self.source, rule.sources)))
            return {"target": _one(rule.targets), "source": sources, "transform": spec}
        target = _one(list(map(self.pattern, rule.targets)))
        entry: dict[str, Any] = {"target": target}
        entry["source"] = _one(list(map(self.source, rule.sources)))
        for key, transform in rule.transforms.items():
            if key in rule.named_tensors:
                tensors = entry.setdefault("tensors", {})
                tensors[key] = self.transform(transform, f"{target}, {key}")
            elif transform is not same:
                entry[key] = self.transform(transform, f"{target}, {key}")
        if rule.buffers:
            entry["buffers"] = True
        if rule.exclude:
            entry["exclude"] = list(map(self.pattern, rule.exclude))
        if rule.count is not None:
            entry["count"] = rule.count
        return entry

    def pattern(self, pattern: Pattern) -> str:
        if not isinstance(pattern.pattern, str):
            self.fault(f"The pattern {pattern} is code, not data. Use a name pattern instead.")
        return str(pattern)

    def transform(self, transform: Transform | None, what: str) -> Any:
        if transform is None:
            return False
        if isinstance(transform, Each):
            self.fault(
                f"{transform!r} is code, not data. Write a rule for each match.", f"{what!r}: "
            )
            return None
        try:
            return to_spec(transform, self.reference)
        except RuleError as error:
            self.fault(str(error), f"{what!r}: ", transform)

    def fault(self, text: str, what: str = "", of: Any = None) -> None:
        """Note a fault. One of something that many ties have is noted for the first only."""
        if (text, id(of)) not in self.told:
            self.faults.found.append(((), what + text))
        self.told.add((text, id(of)))

    def source(self, source: OneSource) -> Any:
        if isinstance(source, str):
            return source
        owner = source.owner if isinstance(source, Entry) else source
        kind = "bank" if isinstance(owner, Bank) else "tensors"
        data: dict[str, Any] = {kind: (self.bank if kind == "bank" else self.tensors)(owner)}
        if isinstance(source, Entry):
            name = source.name.rpartition(".")[2]
            data["entry"] = int(name) if kind == "bank" else name
        return data

    def tensors(self, tensors: Any) -> str:
        name = self.names[tensors]
        if type(tensors) is not Tensors:
            self.fault(f"The {type(tensors).__name__} {name!r} can't be written: it is a subclass.")
        elif tensors.given and not self.has_values:
            self.fault(
                f"The values of {', '.join(tensors.given)} in the fxtie.Tensors {name!r} can't be "
                f"written: rules hold shapes only. Give the shape, and load the values into the "
                f"tied model; or use fxtie.save, which writes them."
            )
        self.free["tensors"][name] = {
            key: {
                "shape": list(value.shape),
                "dtype": _dtype_name(value.dtype),
                **({"frozen": True} if key in tensors._buffers else {}),
            }
            for key in tensors.tensor_names()
            for value in (getattr(tensors, key),)
        }
        return name

    def bank(self, bank: Any) -> str:
        name = self.names[bank]
        kinds = {(tuple(template.shape), template.dtype) for template in bank.templates}
        if type(bank) is not Bank or len(kinds) != 1:
            self.fault(
                f"The {type(bank).__name__} {name!r} can't be written: it is no plain fxtie.Bank, "
                f"or its templates are not of one shape and dtype."
            )
        for shape, dtype in kinds:
            n = len(bank.templates)
            self.free["bank"][name] = {"n": n, "shape": list(shape), "dtype": _dtype_name(dtype)}
        return name

    def reference(self, module: nn.Module) -> str | None:
        """The name of a shared module, which is described at its first use."""
        name = self.names.get(module)
        if name is not None and name not in self.shared:
            spec = to_spec(module, lambda inner: None if inner is module else self.reference(inner))
            entry: dict[str, Any] = {"transform": spec}
            if (shape := self.shape_of(module)) is not None:
                entry["shape"] = shape
            dtypes = {tensor.dtype for tensor in _tensors(module).values()} & {
                *BANK_DTYPES.values()
            }
            if len(dtypes) == 1:
                entry["dtype"] = _dtype_name(dtypes.pop())
            self.shared[name] = entry
        return name

    def check_shared(self) -> None:
        """Make the shared transforms of their descriptions, and compare: loading must not fail."""
        again = SharedNames()
        with torch.random.fork_rng(devices=[]):
            again.read({"shared": self.shared})
        modules = {name: module for module, name in self.names.items()}
        found = _layouts(again.shared)
        wanted = _layouts({name: modules[name] for name in self.shared})
        for name in self.shared:
            if found[name] != wanted[name]:
                self.fault(
                    f"The tensors of {modules[name]!r} can't be told from its registered name and "
                    f"arguments: it has {wanted[name]}, but what these make has {found[name]}. "
                    f"Make all of them in __init__ or for_target."
                )
        self.faults.tell()


def _one(names: Sequence[Any]) -> Any:
    return names[0] if len(names) == 1 else list(names)


def _dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _tensors(module: nn.Module) -> dict[str, torch.Tensor]:
    state = module.state_dict(keep_vars=True)
    return {name: value for name, value in state.items() if isinstance(value, torch.Tensor)}


def _layouts(modules: Mapping[str, nn.Module]) -> dict[str, dict[str, str]]:
    """Of each module its tensors: their shape and dtype, or the place of the same tensor before."""
    first: dict[int, str] = {}
    layouts: dict[str, dict[str, str]] = {}
    for name, module in modules.items():
        layouts[name] = {}
        for key, tensor in _tensors(module).items():
            place = f"{name}.{key}"
            is_new = first.setdefault(id(tensor), place) == place
            what = f"{_dtype_name(tensor.dtype)}{list(tensor.shape)}"
            layouts[name][key] = what if is_new else first[id(tensor)]
    return layouts
