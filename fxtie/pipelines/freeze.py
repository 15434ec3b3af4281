"""A tied model, or an exported program -> the same with derived tensors as constants."""

from __future__ import annotations

import operator
from typing import Any, TypeVar, overload

import torch
from torch import fx, nn
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind

from fxtie._torch import OpOverload, pytree
from fxtie.life.convert import materialize
from fxtie.pipelines.program import Editor, tensor_of, updated
from fxtie.tracing.graphs import map_arg

_STORED = (InputKind.PARAMETER, InputKind.BUFFER, InputKind.CONSTANT_TENSOR)

M = TypeVar("M", bound=nn.Module)


@overload
def freeze(tied: M) -> M: ...
@overload
def freeze(tied: ExportedProgram) -> ExportedProgram: ...
def freeze(tied: nn.Module | ExportedProgram) -> nn.Module | ExportedProgram:
    """A tied model, or a program of one, in which nothing is left to derive: for inference.

    Args:
        tied: the result of `transform`, compiled or not; or an exported program, whether it was
            tied as a program or is that of a tied model. It is not changed.

    Returns:
        Of a tied model: a plain one, as `materialize` gives it, in eval mode and without gradients.
        Of a program: one in which whatever was computed from stored tensors alone is a constant
        `frozen.<node>`, derived tensors above all, and stored tensors that only these were computed
        from are gone. Random numbers, and what depends on a buffer that the program updates, are
        still computed.

    Raises:
        FxtieError: if `tied` is a module, but not a tied one.

    Example:
        >>> import fxtie
        >>> net = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
        >>> tied = fxtie.transform(net, fxtie.Rule("1", "0", weight=torch.cos, bias=None))
        >>> program = torch.export.export(tied, (torch.ones(1, 4),))
        >>> frozen = freeze(program)
        >>> "aten.cos" in program.graph_module.code, "aten.cos" in frozen.graph_module.code
        (True, False)
        >>> sorted(frozen.state_dict), sorted(frozen.constants)
        (['0.bias', '0.weight', '1.bias'], ['frozen.cos'])
        >>> freeze(tied)[1].weight.requires_grad
        False
    """
    if isinstance(tied, ExportedProgram):
        return _fold(tied)
    return materialize(tied).eval().requires_grad_(False)


def _fold(program: ExportedProgram) -> ExportedProgram:
    if program.dialect == "TRAINING":  # writes in place, so that values could change after their op
        program = program.run_decompositions({})
    editor = Editor(program)
    values, computed = _known(program, editor)
    read = [node for node in editor.inputs if node.users]
    for node in computed:
        users = {user for user in node.users if user not in values}
        if users:
            value = values[node].detach().clone()  # it may be a view of a stored tensor
            name, label = f"frozen.{node.name}", f"c_frozen_{node.name}"
            constant = editor.lift(InputKind.CONSTANT_TENSOR, name, value, label)
            editor.substitute(node, constant, users)
    for node in reversed(values):
        if node.op != "placeholder" and not node.users:
            editor.graph.erase_node(node)
    for node in read:
        if not node.users:
            editor.drop(str(editor.inputs[node].target))
    return editor.program()


@torch.no_grad()
def _known(program: ExportedProgram, editor: Editor) -> tuple[dict[fx.Node, Any], list[fx.Node]]:
    """What depends on no input: the values, and those of the nodes that stored tensors go into."""
    written = updated(program)
    values: dict[fx.Node, Any] = {
        node: tensor_of(program, spec)
        for node, spec in editor.inputs.items()
        if spec.kind in _STORED and spec.target not in written
    }
    rooted = set(values)
    computed = []
    for node in editor.graph.nodes:
        if _gives_the_same_again(node) and values.keys() >= set(node.all_input_nodes):
            args, kwargs = map_arg((node.args, node.kwargs), values.__getitem__)
            value = node.target(*args, **kwargs)
            if all(isinstance(part, torch.Tensor) for part in pytree.tree_leaves(value)):
                values[node] = value
                if not rooted.isdisjoint(node.all_input_nodes):  # not a plain arange
                    rooted.add(node)
                    computed.append(node)
    return values, computed


def _gives_the_same_again(node: fx.Node) -> bool:
    if isinstance(node.target, OpOverload):
        return torch.Tag.nondeterministic_seeded not in node.target.tags
    return node.target is operator.getitem
