"""Two modules with graphs, or a plain module and its tied form -> what changed, as plain data."""

from __future__ import annotations

import difflib
import functools
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from torch import fx, nn

from fxtie.capturing.capture import untied_graphs
from fxtie.capturing.report import Report
from fxtie.errors import FxtieError
from fxtie.looking.diff_layers import LayerDiff, RegionDiff
from fxtie.looking.matching import match_graphs
from fxtie.looking.nodes import node_info
from fxtie.looking.picture import TiePicture, picture
from fxtie.looking.shapes import node_values
from fxtie.shown import Paged
from fxtie.tied.casts import without_casts
from fxtie.tied.region import Region, variant_for
from fxtie.tied.state import state_of
from fxtie.words import count, parameter_change


@dataclass(frozen=True, repr=False)
class GraphDiff(Paged):
    """What changed between two graphs. `print` shows a table for each layer that did.

    Attributes:
        regions: the graphs that were compared: the model's, or those of its captured parts.
        parameters: number of parameters before and after, each Parameter counted once.
        bytes: their size before and after.
        codes: the generated forwards before and after, one pair per region.
        unseen: derived tensors that appear in no graph, since the modules that read them run the
            forward that the user wrote.
        picture: of what is derived from what, if `after` is a tied model.
    """

    regions: tuple[RegionDiff, ...]
    parameters: tuple[int, int]
    bytes: tuple[int, int]
    codes: tuple[tuple[str, str], ...] = ()
    unseen: tuple[str, ...] = ()
    picture: TiePicture | None = None

    @functools.cached_property
    def layers(self) -> tuple[LayerDiff, ...]:
        """The layers that changed, in the order of the forward."""
        return tuple(layer for r in self.regions for layer in r.layers if layer.changed)

    @property
    def removed(self) -> int:
        """Number of `-` lines: nodes that are gone or were different."""
        return sum(line.mark == "-" for layer in self.layers for line in layer.lines)

    @property
    def added(self) -> int:
        """Number of `+` lines: nodes that are new or are different now."""
        return sum(line.mark == "+" for layer in self.layers for line in layer.lines)

    def __bool__(self) -> bool:
        """Whether anything changed."""
        return bool(self.layers or self.unseen or self.parameters[0] != self.parameters[1])

    def summary(self) -> str:
        """The whole change in one line.

        Example:
            >>> import fxtie
            >>> net = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))
            >>> fxtie.diff(net, net).summary()
            'no difference'
        """
        if not self:
            return "no difference"
        return (
            f"{count(len(self.layers), 'layer')} changed (nodes: -{self.removed} +{self.added}), "
            f"{parameter_change(*self.parameters)}"
        )

    def code(self) -> str:
        """The unified diff of the generated forwards, empty if they are the same."""
        parts: list[str] = []
        for region, (before, after) in zip(self.regions, self.codes, strict=True):
            old, new = before.strip().splitlines(), after.strip().splitlines()
            name = region.name and f" {region.name}"
            parts += difflib.unified_diff(old, new, f"before{name}", f"after{name}", lineterm="")
        return "\n".join(line.rstrip() for line in parts)

    def to_dict(self) -> dict[str, Any]:
        """Plain data, ready for JSON.

        Keys: `parameters` and `bytes` (each with `before` and `after`), `removed` and `added`
        (numbers of nodes), `layers` (a list of `name` and `lines`; a line has `mark`, `op`,
        `name`, `target`, `args`), `unseen` (tensor names).
        """
        return {
            "parameters": dict(zip(("before", "after"), self.parameters, strict=True)),
            "bytes": dict(zip(("before", "after"), self.bytes, strict=True)),
            "removed": self.removed,
            "added": self.added,
            "layers": [asdict(layer) for layer in self.layers],
            "unseen": list(self.unseen),
        }


def diff(before: nn.Module, after: nn.Module, *args: Any, **kwargs: Any) -> GraphDiff:
    """What changed from one module to another.

    Nodes are matched by where they come from (layer, then what they do), so a node that is
    inserted does not shift the rest, and one that has but another name is no change. Casts of
    derived tensors, which are for autocast alone, are left out.

    Args:
        before: the model before: plain, tied or a GraphModule.
        after: the model after: the result of `transform`, or any GraphModule. Of a model with
            one graph for training and one for evaluation, that of the current mode is compared.
        *args: inputs of the forward, to show the shapes of all values. They are found on fake
            tensors: nothing is computed. Without inputs, only stored tensors have shapes.
        **kwargs: those that are passed by name.

    Raises:
        FxtieError: if there is no graph to compare: `after` is neither tied nor a GraphModule, or
            `before` is a module that can't be traced. If the inputs don't fit.

    Example:
        >>> import fxtie, torch
        >>> net = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))
        >>> tied = fxtie.transform(net, fxtie.Rule("2", "0", torch.square))
        >>> print(fxtie.diff(net, tied).summary())
        1 layer changed (nodes: -1 +4), parameters 40 -> 20 (50.0%)
    """
    before, after = (_uncompiled(module) for module in (before, after))
    pairs = [
        (name, without_casts(old), without_casts(new))
        for name, old, new in (_graph_pairs(before, after) if before is not after else ())
    ]
    values: dict[fx.Node, Any] = {}
    if args or kwargs:
        fits = functools.partial(_fits, after)
        for module, graphs in (
            (before, {name: old for name, old, _ in pairs}),
            (after, {name: new for name, _, new in pairs}),
        ):
            values |= node_values(module, graphs, args, kwargs, fits)
    regions = []
    for name, old, new in pairs:
        owners = before.get_submodule(name), after.get_submodule(name)
        regions.append(_region(name, (old, new), owners, values))
    report = state_of(after).report if pairs else None
    stored, left = list(before.parameters()), list(after.parameters())
    return GraphDiff(
        tuple(regions),
        (sum(p.numel() for p in stored), sum(p.numel() for p in left)),
        (sum(p.nbytes for p in stored), sum(p.nbytes for p in left)),
        tuple((_code(old), _code(new)) for _, old, new in pairs),
        _unseen(report) if isinstance(report, Report) else (),
        picture(after) if isinstance(report, Report) else None,
    )


# -- which graphs ---------------------------------------------------------------------------------


def _uncompiled(module: nn.Module) -> nn.Module:
    inner = getattr(module, "_orig_mod", module)
    if not isinstance(inner, nn.Module):
        raise FxtieError(f"diff compares modules, not {type(module).__name__}.")
    return inner


def _graph_pairs(before: nn.Module, after: nn.Module) -> Iterator[tuple[str, fx.Graph, fx.Graph]]:
    """The modules of which both have a graph, with the two graphs."""
    old, new = _graphs(before), _graphs(after)
    if old.keys() & new.keys():
        yield from ((name, old[name], new[name]) for name in old if name in new)
    elif isinstance(state_of(after).report, Report):
        yield from untied_graphs(before, after)
    elif isinstance(after, fx.GraphModule):
        yield "", _traced(before, after.graph), after.graph
    else:
        raise FxtieError(
            f"There is no graph to compare: {type(after).__name__} is neither a tied model nor a "
            f"torch.fx.GraphModule. Pass what fxtie.transform or torch.fx.symbolic_trace gives."
        )


def _graphs(module: nn.Module) -> dict[str, fx.Graph]:
    return {name: m.graph for name, m in module.named_modules() if isinstance(m, fx.GraphModule)}


def _fits(after: nn.Module, name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
    """Whether the graphs of a module are for such a call; those of a GraphModule are for any."""
    region = after.get_submodule(name)
    return not isinstance(region, Region) or variant_for(region, args, kwargs) is not None


def _traced(model: nn.Module, like: fx.Graph) -> fx.Graph:
    """A plain model's graph, with the modules opened that `like` has opened."""
    layers = {str(n.target) for n in like.nodes if n.op == "call_module"}
    for node in like.nodes:
        layers |= {str(path) for path, _ in node.meta.get("nn_module_stack", {}).values()}

    class Tracer(fx.Tracer):
        def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
            inside = module_qualified_name + "."
            return not any(layer.startswith(inside) for layer in layers)

    try:
        return Tracer().trace(model)
    except Exception as error:  # on proxies, the user's forward may raise anything
        raise FxtieError(
            f"{type(model).__name__} has no graph and can't be traced to compare it: {error}"
        ) from error


def _unseen(report: Report) -> tuple[str, ...]:
    """Derived tensors of modules that were kept."""
    kept = {module.name for module in report.kept}
    return tuple(name for name in report.targets if name.rpartition(".")[0] in kept)


# -- comparing ------------------------------------------------------------------------------------


def _region(
    name: str,
    graphs: tuple[fx.Graph, fx.Graph],
    owners: tuple[nn.Module, nn.Module],
    values: Mapping[fx.Node, Any],
) -> RegionDiff:
    matching = match_graphs(*graphs, name)
    old, new = (
        {n: node_info(n, owner, matching.layers[n], values.get(n)) for n in graph.nodes}
        for graph, owner in zip(graphs, owners, strict=True)
    )
    changed = frozenset(
        b.name
        for a, b in matching.pairs.items()
        if not matching.same_arguments(a, b) or old[a].module != new[b].module
    )
    matched = {a.name: b.name for a, b in matching.pairs.items()}
    return RegionDiff(name, tuple(old.values()), tuple(new.values()), matched, changed)


def _code(graph: fx.Graph) -> str:
    return graph.python_code("self").src
