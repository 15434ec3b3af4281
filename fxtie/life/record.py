"""The plan of a tied model <-> a record of JSON's own types.

* `rules`: the plan's ties, as rule files have them (`rules/reader.py`, `rules/writer.py`);
* `modules`: the names of the banks and learnable transforms below `ties`, in their order;
* `model`: the name of the model's class, for messages.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Set
from typing import Any

from torch import nn

from fxtie.errors import FileError
from fxtie.planning.names import Names, Slot
from fxtie.planning.plan import Plan, plan_with
from fxtie.rules.free import Entry, Free
from fxtie.rules.reader import RuleDataError, free_in, listed, path_text, read_rules, transforms_of
from fxtie.rules.rule import Rule, Tie
from fxtie.rules.writer import write_rules
from fxtie.tied.tied_module import derived_tensors
from fxtie.transforms.parts import Part, module_of, whole_of


def record_of(checked: Plan, model: str = "", faults: Iterable[str] = ()) -> dict[str, Any]:
    """What a file says of a tied model, given all of its ties and the name of its class.

    Raises:
        FileError: with every fault: those of the ties, and those given.
    """
    shapes = {
        module: step.spec.shape
        for step in checked.steps
        if (module := module_of(step.tie.transform)) is not None
    }
    found, data = [], None
    try:
        data = write_rules(_rules(checked), checked.modules, shapes)
    except RuleDataError as error:
        found += [f"{path_text(path)}{fault}" for path, fault in error.faults]
    found += faults
    if found:
        raise FileError(
            f"This can't be saved:\n{listed(found, len(found))}\n"
            f"fxtie.check_saveable(plan) tells this before training."
        )
    return {"model": model, "modules": list(checked.modules), "rules": data}


def _rules(checked: Plan) -> list[Rule | Tie]:
    """Ties that make the same plan."""
    free = {
        f"ties.{name}.{key}": Entry(owner, key)
        for name, owner in checked.modules.items()
        if isinstance(owner, Free)
        for key in owner.tensor_names()
    }
    ties: dict[Any, Tie] = {}
    for tie in checked.ties:
        part = tie.transform if isinstance(tie.transform, Part) else None
        targets = (tie.target,) if part is None else part.of
        sources = [free.get(name, name) for name in tie.sources]
        ties.setdefault(targets, Tie(targets, sources, whole_of(tie.transform)))
    return [*ties.values()]


def plan_of(model: nn.Module, record: Mapping[str, Any]) -> Plan:
    """The plan that a record tells of, its modules under the names that they had."""
    rules, named = read_rules(record.get("rules"))
    tied_before = {name for name, _, _ in derived_tensors(model)}
    rules = [rule for rule in rules if not _is_for(rule, tied_before)]
    _place(rules, Names(model))
    names = record.get("modules")
    if not isinstance(names, list) or not all(isinstance(n, str) and n in named for n in names):
        raise FileError("its list of modules is damaged.")
    used = {id(module) for rule in rules for module in _modules_of(rule)}
    modules = {name: named[name] for name in names if id(named[name]) in used}
    checked = plan_with(model, rules, modules)
    if checked.modules != modules:
        raise FileError(
            "its ties don't come out as they were saved. Does for_target of a transform return "
            "something new for a target that it fits already?"
        )
    return checked


def _is_for(rule: Rule | Tie, names: Set[str]) -> bool:
    """Whether one of these tensors is the target of a rule."""
    if isinstance(rule, Tie):
        return not names.isdisjoint(rule.targets)
    return any(pattern.match(name) for pattern in rule.targets for name in names)


def _modules_of(rule: Rule | Tie) -> list[nn.Module]:
    """The banks and learnable transforms of a rule."""
    modules = [module for module in transforms_of(rule) if isinstance(module, nn.Module)]
    return modules + free_in(rule)


def _place(rules: Iterable[Rule | Tie], names: Names) -> None:
    """Bring banks and learnable transforms to the device of the targets that they are for."""
    for rule in rules:
        modules = _modules_of(rule)
        if isinstance(rule, Tie):
            targets = [*rule.targets]
        elif rule.target.is_literal:
            targets = [*map(str, rule.targets)]
        else:
            targets = [name for name in names.tensors if rule.target.match(name)]
        for slot in map(names.find, targets if modules else ()):
            if isinstance(slot, Slot):  # planning tells of the others
                for module in modules:
                    module.to(slot.tensor.device)
