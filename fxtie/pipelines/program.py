"""Editing a program of `torch.export`: graph, lifted inputs, signature and tensors together.

This file alone uses what is not public in programs: the `val` of a node's meta, its fake mode, and
the constructor of `ExportedProgram`, which runs the verifier.
"""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import torch
from torch import fx
from torch.export import ExportedProgram
from torch.export.graph_signature import (
    ExportGraphSignature,
    InputKind,
    InputSpec,
    TensorArgument,
)

from fxtie._torch import FakeTensor, FakeTensorMode, pytree, storage_id
from fxtie.planning.spec import fake_like, fake_mode
from fxtie.tracing.graphs import changed_in_place
from fxtie.words import free_name


class Editor:
    """A copy of a program, to be edited."""

    def __init__(self, program: ExportedProgram) -> None:
        self._before = program
        self.graph = copy.deepcopy(program.graph)
        for node, original in zip(self.graph.nodes, program.graph.nodes, strict=True):
            node.name = original.name  # the copy of one called as a builtin, `input`, is `input_1`
        specs = (replace(s, arg=replace(s.arg)) for s in program.graph_signature.input_specs)
        # What each placeholder stands for, in the order of the graph.
        self.inputs = dict(zip(self.graph.find_nodes(op="placeholder"), specs, strict=True))
        self.state_dict: dict[str, Any] = dict(program.state_dict)  # parameters, persistent buffers
        self.constants: dict[str, Any] = dict(program.constants)  # all other tensors
        # What the graph's `get_attr` nodes refer to: the bodies of higher-order operators.
        self.subgraphs: dict[str, Any] = {
            node.target: program.graph_module.get_submodule(node.target)
            for node in self.graph.find_nodes(op="get_attr")
        }
        self._renamed: dict[str, str] = {}
        self.mode = _fake_mode_of(program)

    @property
    def stored(self) -> dict[str, fx.Node]:
        """The lifted parameters and buffers, by name."""
        kinds = (InputKind.PARAMETER, InputKind.BUFFER)
        return {
            spec.target: node
            for node, spec in self.inputs.items()
            if spec.kind in kinds and spec.target is not None
        }

    @property
    def root_stack(self) -> dict[str, Any]:
        """The `nn_module_stack` of a node of the model's own forward."""
        stacks = (node.meta.get("nn_module_stack", {}) for node in self.graph.nodes)
        roots = ({key: entry} for stack in stacks for key, entry in stack.items() if not entry[0])
        return next(roots, {})

    @property
    def start(self) -> fx.Node:
        """The first node that is not an input."""
        start: fx.Node = next(n for n in self.graph.nodes if n.op != "placeholder")
        return start

    def lift(
        self,
        kind: InputKind,
        name: str,
        tensor: torch.Tensor,
        label: str,
        persistent: bool | None = None,
    ) -> fx.Node:
        """Add a tensor as an input: a parameter, a buffer (`persistent` or not) or a constant.

        `name` is that in the state_dict, or among the constants, where it is made unique; `label`
        that of the placeholder, if it is free.
        """
        if kind == InputKind.CONSTANT_TENSOR:
            name = free_name(name, self.constants)
        with self.graph.inserting_before(
            next(n for n in self.graph.nodes if not self._is_lifted(n))
        ):
            node: fx.Node = self.graph.placeholder(label)
        node.target = node.name
        node.meta["val"] = self.fake(tensor)
        spec = InputSpec(kind, TensorArgument(node.name), name, persistent)
        self.inputs[node] = spec
        _home(spec, self.state_dict, self.constants)[name] = tensor
        return node

    def _is_lifted(self, node: fx.Node) -> bool:
        spec = self.inputs.get(node)
        return spec is not None and spec.kind != InputKind.USER_INPUT

    def fake(self, value: Any) -> Any:
        """The tensors of a value, without data and in the program's own mode."""
        return pytree.tree_map_only(torch.Tensor, lambda t: fake_like(t, self.mode), value)

    def substitute(self, old: fx.Node, new: fx.Node, users: set[fx.Node]) -> None:
        """Let `users` read `new` instead of `old`."""
        old.replace_all_uses_with(new, delete_user_cb=users.__contains__)
        self._renamed[old.name] = new.name

    def drop(self, name: str) -> None:
        """Remove a tensor that nothing reads, and its input."""
        for node, spec in list(self.inputs.items()):
            if spec.target == name:
                self.graph.erase_node(node)
                del self.inputs[node]
        self.state_dict.pop(name, None)
        self.constants.pop(name, None)

    def program(self) -> ExportedProgram:
        """The result, verified."""
        before = self._before
        inputs = [self.inputs[node] for node in self.graph.find_nodes(op="placeholder")]
        (output,) = self.graph.find_nodes(op="output")
        outputs = [
            replace(spec, arg=replace(spec.arg, name=node.name))
            if isinstance(node, fx.Node)
            else spec
            for spec, node in zip(before.graph_signature.output_specs, output.args[0], strict=True)
        ]
        result = ExportedProgram(
            root=self.subgraphs,
            graph=self.graph,
            graph_signature=ExportGraphSignature(inputs, outputs),
            state_dict=self.state_dict,
            range_constraints=dict(before.range_constraints),
            module_call_graph=[self._renamed_entry(entry) for entry in before.module_call_graph],
            example_inputs=before.example_inputs,
            constants=self.constants,
            verifiers=list(before.verifiers),
        )
        result.graph_module.meta.update(before.graph_module.meta)
        return result

    def _renamed_entry(self, entry: Any) -> Any:
        def renamed(arg: Any) -> Any:
            return replace(arg, name=self._renamed.get(arg.name, arg.name))

        signature = entry.signature
        if signature is None:
            return replace(entry)
        inputs, outputs = (list(map(renamed, s)) for s in (signature.inputs, signature.outputs))
        return replace(entry, signature=replace(signature, inputs=inputs, outputs=outputs))


def tensor_of(program: ExportedProgram, spec: InputSpec) -> torch.Tensor:
    """The tensor that a lifted input stands for."""
    assert spec.target is not None
    tensor = _home(spec, program.state_dict, program.constants)[spec.target]
    assert isinstance(tensor, torch.Tensor)
    return tensor


def _home(spec: InputSpec, state_dict: dict[str, Any], constants: dict[str, Any]) -> dict[str, Any]:
    """Where a program has the tensor of a lifted input."""
    in_state = spec.kind == InputKind.PARAMETER or (
        spec.kind == InputKind.BUFFER and spec.persistent is not False
    )
    return state_dict if in_state else constants


def updated(program: ExportedProgram) -> set[str]:
    """The parameters and buffers that a program writes to, by all of their names."""
    if program.dialect == "TRAINING":  # writes in place; the functional form tells what it writes
        graphs = [m.graph for m in program.graph_module.modules() if isinstance(m, fx.GraphModule)]
        if not any(changed_in_place(node) for graph in graphs for node in graph.nodes):
            return set()
        program = program.run_decompositions({})
    kinds = ("BUFFER_MUTATION", "PARAMETER_MUTATION")  # by name: older torch has the first only
    outputs = program.graph_signature.output_specs
    found = {spec.target for spec in outputs if spec.kind.name in kinds}
    return {name for names in names_by_tensor(program) if names & found for name in names}


def names_by_tensor(program: ExportedProgram) -> list[set[str]]:
    """The names of a program's parameters and buffers, those of one tensor together."""
    signature = program.graph_signature
    constants = {name: program.constants[name] for name in signature.non_persistent_buffers}
    names: dict[Any, set[str]] = {}
    for name, tensor in {**program.state_dict, **constants}.items():
        storage = storage_id(tensor)
        place = (storage, tensor.storage_offset(), tensor.shape, tensor.stride())
        names.setdefault(place, set()).add(name)
    return list(names.values())


def _fake_mode_of(program: ExportedProgram) -> FakeTensorMode:
    for node in program.graph.nodes:
        for value in pytree.tree_leaves(node.meta.get("val")):
            if isinstance(value, FakeTensor):
                return value.fake_mode
    return fake_mode()
