"""Rules + ExportedProgram -> an ExportedProgram with ops where the targets were lifted inputs.

There is no second planner and no second lowering. The program's tensors, under their names, make a
model without layers, whose forward returns the targets. It is tied as any model is and exported:
that gives the transforms as ATen ops. This small program is then spliced into the large one.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any

import torch
from torch import fx, nn
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind

from fxtie.capturing.transform import Options, tie_model, transform
from fxtie.errors import FxtieError, PlanError
from fxtie.pipelines.program import Editor, names_by_tensor, tensor_of, updated
from fxtie.planning.lowering import Opaque
from fxtie.planning.plan import Plan, plan
from fxtie.rules.rule import Rule, Rules, Tie, as_rules
from fxtie.tied.tied_module import Ties
from fxtie.words import free_name

_REMEDY = (
    "Tie the module that the program was made of, and export the result: "
    "torch.export.export(fxtie.transform(model, rules), ...)."
)


@tie_model.register
def tie_exported(
    program: ExportedProgram, rules: Rules | Plan, options: Options
) -> ExportedProgram:
    """Tie tensors of an exported program: `fxtie.transform(program, rules)`.

    The result has the derivations at the start of its graph, each once. The targets are no inputs
    of it and not in its state_dict; tensors that stay stored are those of `program`. Learnable
    transforms and banks come in as `ties.<name>`.

    Raises:
        PlanError: if the rules don't fit the program; if they derive a tensor that it updates, or
            derive one from it; if they split a tensor that has several names; if the program was
            exported with `preserve_module_call_signature`.
        FxtieError: if a transform can't be exported.

    Example:
        >>> import fxtie
        >>> net = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))
        >>> x = torch.randn(1, 4)
        >>> rule = fxtie.Rule("2", "0", weight=torch.square)
        >>> program = fxtie.transform(torch.export.export(net, (x,)), rule)
        >>> sorted(program.state_dict)
        ['0.bias', '0.weight']
        >>> torch.equal(program.module()(x), fxtie.transform(net, rule)(x))
        True
    """
    if options.compile or options.recompute:
        raise FxtieError(
            "A program is neither compiled nor run here. Compile what its module() returns."
        )
    _refuse_kept_signatures(program)
    model = _Tensors(program)
    if not isinstance(rules, Plan):
        listed = as_rules(rules)
        _refuse_callable_patterns(listed)
        rules = plan(model, listed)
    model.targets = tuple(tie.target for tie in rules.ties)
    derivations = _export_derivations(model, rules)
    if program.dialect != "TRAINING":
        derivations = derivations.run_decompositions()
    _refuse_updates(program, derivations, model.targets)
    return _splice(program, derivations, rules.ties)


class _Tensors(nn.Module):
    """The tensors of a program, under their names. Its forward returns those named in `targets`."""

    targets: tuple[str, ...] = ()

    def __init__(self, program: ExportedProgram) -> None:
        super().__init__()
        transient = set(program.graph_signature.non_persistent_buffers)
        tensors = {name: program.constants[name] for name in transient} | program.state_dict
        for name, tensor in tensors.items():
            path, _, attr = name.rpartition(".")
            owner = self._at(path)
            if isinstance(tensor, nn.Parameter):
                owner.register_parameter(attr, tensor)
            else:
                owner.register_buffer(attr, tensor, persistent=name not in transient)

    def _at(self, path: str) -> nn.Module:
        module: nn.Module = self
        for part in filter(None, path.split(".")):
            if part not in module._modules:
                # As in a tied model, which the program may be made of.
                is_ties = module is self and part == "ties"
                module.add_module(part, Ties() if is_ties else nn.Module())
            module = module.get_submodule(part)
        return module

    def forward(self) -> tuple[torch.Tensor, ...]:
        return tuple(self._read(name) for name in self.targets)

    def _read(self, name: str) -> torch.Tensor:
        found: Any = self
        for part in name.split("."):
            found = getattr(found, part)
        return found  # type: ignore[no-any-return]


def _refuse_kept_signatures(program: ExportedProgram) -> None:
    """`torch.export.unflatten` gives such a module its arguments and no tensor derived outside."""
    names = [entry.fqn for entry in program.module_call_graph if entry.fqn and entry.signature]
    if names:
        raise PlanError(
            f"The program keeps the call signature of {', '.join(map(repr, names))}, to which "
            f"torch.export.unflatten could pass no derived tensor. Export without "
            f"preserve_module_call_signature."
        )


def _refuse_callable_patterns(rules: Iterable[Rule | Tie]) -> None:
    faults = [
        f"{rule}: a callable pattern asks about modules, and an exported program has their names "
        f"only. Write the names, with * or re:, or tie the module before its export."
        for rule in rules
        if isinstance(rule, Rule)
        and not all(isinstance(p.pattern, str) for p in (rule.target, *rule.exclude))
    ]
    if faults:
        raise PlanError(faults)


def _export_derivations(model: _Tensors, checked: Plan) -> ExportedProgram:
    """The program that takes nothing and returns the derived tensors, in the order of the plan."""
    tied = transform(model, checked)
    try:
        with torch.enable_grad():
            derivations = torch.export.export(tied, (), strict=False)
    # This runs the transforms, which are the user's code, on tensors that have no values.
    except Exception as error:
        opaque = "".join(
            f"\n  {step.tie.target!r}: {step.lowered!r} can't be traced ({step.lowered.reason})"
            for step in checked.steps
            if isinstance(step.lowered, Opaque)
        )
        raise FxtieError(
            f"The transforms can't be exported: {type(error).__name__}: {error}{opaque}"
        ) from error
    if derivations.range_constraints:
        raise FxtieError(
            f"A transform makes numbers or shapes of its sources' values (.item(), nonzero), which "
            f"can't be put into another program. Keep them tensors. {_REMEDY}"
        )
    return derivations


def _refuse_updates(
    program: ExportedProgram, derivations: ExportedProgram, targets: Collection[str]
) -> None:
    """A derived tensor has no place for an update, and one of its sources makes it stale."""
    nodes = derivations.graph.find_nodes(op="placeholder")
    specs = derivations.graph_signature.input_specs
    read = {spec.target for node, spec in zip(nodes, specs, strict=True) if node.users}
    faults = [
        f"{name!r} is a {'target' if name in targets else 'source'} of the rules, and the program "
        f"updates it. {_REMEDY}"
        for name in sorted(updated(program))
        if name in targets or name in read
    ]
    faults += [
        f"{name!r} of a learnable transform is updated when it runs. {_REMEDY}"
        for name in sorted(updated(derivations))
    ]
    if faults:
        raise PlanError(faults)


def _splice(
    program: ExportedProgram, derivations: ExportedProgram, ties: tuple[Tie, ...]
) -> ExportedProgram:
    """`program`, with what `derivations` returns in the place of its targets."""
    editor = Editor(program)
    users = set(editor.graph.nodes)
    _adapt(derivations, editor, ties)
    inputs = _connect(derivations, editor)
    with editor.graph.inserting_before(editor.start):
        outputs: Any = editor.graph.graph_copy(derivations.graph, inputs)
    derived = {tie.target: node for tie, node in zip(ties, outputs, strict=True)}
    stored = editor.stored
    _refuse_splits(program, {**stored, **derived}, derived)
    for tie in ties:
        node = stored.get(tie.target)
        if node is not None:
            editor.substitute(node, derived[tie.target], users)
        if not tie.is_self_derived:
            editor.drop(tie.target)
    return editor.program()


def _adapt(derivations: ExportedProgram, editor: Editor, ties: tuple[Tie, ...]) -> None:
    """Give what will be copied the names, the fake mode and the root of the program it goes to."""
    (output,) = derivations.graph.find_nodes(op="output")
    for tie, node in reversed([*zip(ties, output.args[0], strict=True)]):  # the first name stays
        if node.op != "placeholder":
            node.name = tie.target.replace(".", "_")
    for node in derivations.graph.find_nodes(op="get_attr"):
        body = derivations.graph_module.get_submodule(node.target)
        node.target = free_name(node.target, editor.subgraphs)
        editor.subgraphs[node.target] = body
    for module in derivations.graph_module.modules():
        if not isinstance(module, fx.GraphModule):
            continue
        for node in module.graph.nodes:
            node.meta.pop("stack_trace", None)  # a place in this file
            if "val" in node.meta:
                node.meta["val"] = editor.fake(node.meta["val"])
            if "nn_module_stack" in node.meta:
                node.meta["nn_module_stack"] = editor.root_stack


def _connect(derivations: ExportedProgram, editor: Editor) -> dict[fx.Node, fx.Node]:
    """For each input of the derivations the program's: one that it has, or a new one."""
    stored = editor.stored
    found = {}
    nodes = derivations.graph.find_nodes(op="placeholder")
    for node, spec in zip(nodes, derivations.graph_signature.input_specs, strict=True):
        assert spec.target is not None  # there are no user inputs
        if not node.users:
            derivations.graph.erase_node(node)
        elif spec.kind != InputKind.CONSTANT_TENSOR and spec.target in stored:
            found[node] = stored[spec.target]
        else:
            tensor = tensor_of(derivations, spec)
            found[node] = editor.lift(spec.kind, spec.target, tensor, node.name, spec.persistent)
    for name, tensor in derivations.state_dict.items():
        editor.state_dict.setdefault(name, tensor)  # also parameters that no transform reads
    return found


def _refuse_splits(
    program: ExportedProgram, read: Mapping[str, fx.Node], derived: Collection[str]
) -> None:
    """A tensor of several names may be one input, so the rules must treat these names alike."""
    faults = []
    for names in names_by_tensor(program):
        tied = sorted(names.intersection(derived))
        if tied and len({read.get(name) for name in names}) > 1:
            others = ", ".join(map(repr, sorted(names.difference(tied))))
            faults.append(
                f"{', '.join(map(repr, tied))}: the same tensor as {others}, and the program does "
                f"not tell their uses apart. Derive them all alike, or tie the module instead. "
                + _REMEDY
            )
    if faults:
        raise PlanError(faults)
