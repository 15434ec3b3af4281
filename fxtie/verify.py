"""Verify a tied model: run it beside an oracle and compare everything after each call.

In: the model that was tied, the tied model, inputs of the forward. Out: a `Verification`, or an
error that names the first difference.

The oracle is the untied model under `torch.func.functional_call`: it computes each derived tensor
in plain Python from the model's own tensors and swaps it in for one call. Both sides run on copies
of their own, from the same random state. The oracle shares no code for copying paths, tracing,
graphs, derived attributes, or running them.

It does share the following with the pass. A fault here shows on both sides, and so not at all:

* The list of ties, from the pass's plan: which tensor is derived from which, in which order, and
  each transform fitted to the shape of its target. Print the plan to check that part.
* The transforms, as they were given. A tied model that was copied or pickled has lost its lambdas
  and local functions, and the oracle uses the graphs that the pass made of them; the result says
  so.
* State outside of the modules, such as a global.

The tied side runs a deep copy. So a fault in copying a tied model shows here, too.
"""

from __future__ import annotations

import collections
import contextlib
import copy
import dataclasses
import enum
import functools
import math
import random
import sys
import types
import warnings
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import fx, nn
from torch.nn.parameter import is_lazy

from fxtie.errors import FxtieError
from fxtie.lowering import Lowered
from fxtie.report import report
from fxtie.show.tables import table


class VerificationError(FxtieError):
    """A tied model does not compute what it must."""


class Vacuous(VerificationError):
    """The comparison would prove nothing: outputs or gradients vanish, or don't vary."""


# -- results -----------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class VerifiedCall:
    """One call of the tied model and of the oracle, and how far they are apart.

    Attributes:
        mode: "eval" or "train".
        call: which call of this mode it is.
        compared: what was compared.
        tensors: the number of tensors among it.
        output_error: the largest relative error of an output, or of the state after the call.
        gradient_error: the largest relative error of a gradient; None if there are no gradients.
    """

    mode: str
    call: str
    compared: tuple[str, ...]
    tensors: int
    output_error: float
    gradient_error: float | None


@dataclasses.dataclass(frozen=True)
class Verification:
    """What `fxtie.verify` has proved. `print` shows a table.

    Attributes:
        calls: one per mode and circumstance, in the order in which they ran.
        skipped: what could not be compared, by name, and the reason as the end of a sentence.
    """

    calls: tuple[VerifiedCall, ...]
    skipped: Mapping[str, str]

    def __str__(self) -> str:
        rows = [
            (
                call.mode,
                call.call,
                ", ".join(call.compared),
                str(call.tensors),
                _short(call.output_error),
                _short(call.gradient_error),
            )
            for call in self.calls
        ]
        headers = ("mode", "call", "compared", "tensors", "output error", "gradient error")
        notes = [f"\nNot compared: {what} {why}." for what, why in self.skipped.items()]
        return table(rows, headers) + "".join(notes)


def _short(error: float | None) -> str:
    """`0`, `1.2e-07`, or `-` for none."""
    return "-" if error is None else f"{error:.1e}" if error else "0"


@dataclasses.dataclass
class Comparison:
    """How far a tied model is from the oracle.

    Attributes:
        output_errors: relative error of each output and buffer, by norm.
        gradient_errors: the same of the gradient of each stored tensor.
        output_norm: root mean square of all outputs.
        exact: whether these are equal bit for bit.
    """

    output_errors: dict[str, float]
    gradient_errors: dict[str, float]
    output_norm: float
    exact: bool

    @property
    def output_error(self) -> float:
        """The largest relative error of an output or buffer."""
        return max(self.output_errors.values())

    @property
    def gradient_error(self) -> float:
        """The largest relative error of a gradient."""
        return max(self.gradient_errors.values())


# -- the oracle --------------------------------------------------------------------------------


def read(model: nn.Module, name: str) -> torch.Tensor:
    """A parameter, buffer or parametrized tensor by its dotted name."""
    prefix, _, attr = name.rpartition(".")
    tensor = getattr(model.get_submodule(prefix), attr)
    assert isinstance(tensor, torch.Tensor)
    return tensor


def slot(model: nn.Module, name: str) -> tuple[int, str]:
    """Where a tensor is: the same for all names of one module."""
    prefix, _, attr = name.rpartition(".")
    return id(model.get_submodule(prefix)), attr


class _Then(nn.Module):
    """A model, and what is to be done with its output while tensors are swapped."""

    def __init__(self, model: nn.Module, then: Callable[[Any], None]) -> None:
        super().__init__()
        self.model, self.then = model, then

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        output = self.model(*args, **kwargs)
        self.then(output)
        return output


def oracle_run(
    model: nn.Module,
    ties: Any,
    args: Any,
    kwargs: Any,
    then: Callable[[Any], None] = lambda output: None,
    learned: Mapping[str, nn.Module] = types.MappingProxyType({}),
) -> Any:
    """The model's output with the ties' targets swapped for their derived values.

    Args:
        then: what to do with the output before the swap ends: the backward of a checkpointed
            forward runs it again.
        learned: modules that ties read but the model has not, such as banks, by name.
    """
    values: dict[str, torch.Tensor] = {}
    for tie in ties:  # in the order of a plan: what is read comes first
        sources = [
            values[name] if name in values and name != tie.target else _source(model, name, learned)
            for name in tie.sources
        ]
        values[tie.target] = tie.transform(*sources)
    swapped = {f"model.{name}": value for name, value in values.items()}
    return torch.func.functional_call(_Then(model, then), swapped, args, kwargs, tie_weights=False)


def _source(model: nn.Module, name: str, learned: Mapping[str, nn.Module]) -> torch.Tensor:
    for prefix, module in learned.items():
        if name.startswith(f"{prefix}."):
            return read(module, name.removeprefix(f"{prefix}."))
    return read(model, name)


def _is_dropped(tie: Any) -> bool:
    """Whether the tied model no longer stores the target."""
    return bool(tie.sources != (tie.target,))


# -- running both sides alike ------------------------------------------------------------------


@contextlib.contextmanager
def same_random_states() -> Iterator[None]:
    """A block after which all random generators are as they were before it."""
    numpy = sys.modules.get("numpy")
    python_state, numpy_state = random.getstate(), numpy and numpy.random.get_state()
    try:
        with torch.random.fork_rng():
            yield
    finally:
        random.setstate(python_state)
        if numpy is not None:
            numpy.random.set_state(numpy_state)


def seed(number: int = 1234) -> None:
    """Set all random generators."""
    torch.manual_seed(number)
    random.seed(number)
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed(number)


def backward(outputs: list[torch.Tensor]) -> None:
    """Gradients of a fixed random combination of the outputs."""
    generator = torch.Generator().manual_seed(7)
    losses = []
    for output in outputs:
        if output.requires_grad and output.numel():
            output = torch.view_as_real(output) if output.is_complex() else output
            weights = torch.randn(output.shape, generator=generator, dtype=torch.float32)
            losses.append((output.float() * weights.to(output.device)).mean())
    if losses:
        torch.autograd.backward(torch.stack([loss.to(losses[0].device) for loss in losses]).sum())


def relative_error(found: torch.Tensor, expected: torch.Tensor) -> float:
    """`|found - expected| / |expected|`; infinite if shapes or dtypes differ."""
    if found.shape != expected.shape or found.dtype != expected.dtype:
        return float("inf")
    found, expected = _dense(found), _dense(expected)
    if torch.equal(found, expected):  # infinities too
        return 0.0
    norm = _wide(expected).norm().item()
    difference = (_wide(found) - _wide(expected)).norm().item()
    return difference / norm if norm else (0.0 if difference == 0 else float("inf"))


def _dense(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor without gradient, strides or scales that get in the way of comparing values."""
    tensor = tensor.detach()
    if tensor.is_quantized:
        return tensor.int_repr()
    return tensor if tensor.layout is torch.strided else tensor.to_dense()


def _wide(tensor: torch.Tensor) -> torch.Tensor:
    tensor = _dense(tensor)
    return tensor.to(torch.complex128 if tensor.is_complex() else torch.float64)


def _same_bits(found: torch.Tensor, expected: torch.Tensor) -> bool:
    """Whether tensors of one shape and dtype are equal bit for bit, NaN and signs of 0 included."""
    return torch.equal(*(_bits(_dense(tensor)) for tensor in (found, expected)))


def _bits(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.resolve_conj().resolve_neg().contiguous().reshape(-1).view(torch.uint8)


# -- one call, measured ------------------------------------------------------------------------


def tensors(value: Any) -> Iterator[torch.Tensor]:
    """The tensors in nested outputs."""
    if isinstance(value, torch.Tensor):
        yield value
    elif dataclasses.is_dataclass(value):
        for field in dataclasses.fields(value):
            yield from tensors(getattr(value, field.name))
    elif isinstance(value, dict):
        for item in value.values():
            yield from tensors(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from tensors(item)


def compare(
    model: nn.Module,
    tied: nn.Module,
    ties: Any,
    args: Any,
    kwargs: Any = None,
    *,
    train: bool | None,
) -> Comparison:
    """Run both sides once, on copies, and measure. `train=None` leaves the flags as they are."""
    model, ties = copy.deepcopy((model, tuple(ties)))  # learnable transforms go along
    tied = copy.deepcopy(tied)
    if train is not None:
        for module in (model, tied, *_learned(ties)):
            module.train(train)
    found, expected = _outputs(model, tied, ties, args, kwargs or {})
    _require(type(found) is type(expected), f"{type(found)} is returned, not {type(expected)}")
    outputs, references = list(tensors(found)), list(tensors(expected))
    _require(len(outputs) == len(references) > 0, f"{len(outputs)} tensors are returned")
    pairs = {f"output {i}": pair for i, pair in enumerate(zip(outputs, references, strict=True))}
    buffers = dict(model.named_buffers())
    for name, buffer in tied.named_buffers():
        if name in buffers:
            pairs[f"the buffer {name}"] = buffer, buffers[name]
    output_errors = {name: relative_error(*pair) for name, pair in pairs.items()}
    gradient_errors = _gradient_errors(model, tied, ties)
    if reason := _proves_nothing(references):
        raise Vacuous(reason)
    norm = _together(references).square().mean().sqrt().item()
    return Comparison(output_errors, gradient_errors, norm, not any(output_errors.values()))


def _outputs(model: nn.Module, tied: nn.Module, ties: Any, args: Any, kwargs: Any) -> Any:
    """What both sides return. Their gradients are there afterwards."""
    args_, kwargs_ = copy.deepcopy((args, kwargs))

    def then(output: Any) -> None:
        seed()
        backward(list(tensors(output)))

    seed()
    found = tied(*args, **kwargs)
    then(found)
    seed()
    return found, oracle_run(model, ties, args_, kwargs_, then)


def _together(outputs: list[torch.Tensor]) -> torch.Tensor:
    """All numbers of some outputs, real and imaginary parts apart."""
    wide = [_wide(output) for output in outputs]
    parts = [torch.view_as_real(t) if t.is_complex() else t for t in wide]
    return torch.cat([part.flatten().cpu() for part in parts])


def _proves_nothing(outputs: list[torch.Tensor]) -> str:
    """Why to compare with these outputs would prove nothing; empty if it does."""
    together = _together(outputs)
    norm = together.square().mean().sqrt().item()
    if not torch.isfinite(together).all():
        return "outputs are not finite"
    if norm < 1e-6 or (together.numel() > 1 and together.std().item() < 1e-6 * norm):
        return (
            f"outputs are near zero or constant (norm {norm:.1e}), so that nothing is proved. Use "
            f"values with which they keep their scale: trained ones, or some forwards in train(), "
            f"which set the statistics of batch norms"
        )
    return ""


def _learned(ties: Any) -> list[nn.Module]:
    """Learnable transforms, once each, in the order in which a tied model registers them."""
    return list({id(m): m for tie in ties if isinstance(m := tie.transform, nn.Module)}.values())


def _gradient_errors(model: nn.Module, tied: nn.Module, ties: Any) -> dict[str, float]:
    """Relative error of each gradient. Every stored tensor must be there on both sides."""
    expected = dict(model.named_parameters(remove_duplicate=False))
    found = dict(tied.named_parameters(remove_duplicate=False))
    dropped = {slot(model, tie.target) for tie in ties if _is_dropped(tie)}
    missing = {name for name in expected if slot(model, name) not in dropped} - set(found)
    _require(not missing, f"stored tensors are missing: {', '.join(sorted(missing))}")
    references = [p for module in _learned(ties) for p in module.parameters()]
    own = [name for name in found if name.startswith("ties.")]
    if references and len(own) == len(references):
        expected |= dict(zip(own, references, strict=True))
    errors, alive = {}, 0.0
    for name in (name for name in found if name in expected):
        fault, error = _gradient_error(found[name], expected[name])
        _require(not fault, f"{fault} of {name}")
        alive += _norm(_gradient(expected[name]))
        if error is not None:
            errors[name] = error
    if alive == 0:
        raise Vacuous("all gradients vanish")
    return errors or {"(none)": 0.0}


def _gradient(tensor: torch.Tensor) -> torch.Tensor | None:
    """The gradient of a leaf. A copy of a module of TorchScript has parameters that are none."""
    return tensor.grad if tensor.is_leaf else None


def _gradient_error(
    found: torch.Tensor, expected: torch.Tensor, vanishing: float = 1e-7
) -> tuple[str, float | None]:
    """What is wrong with the presence of a gradient, and its relative error.

    Args:
        vanishing: a gradient this small beside its tensor is rounding and nothing else. If that
            holds on both sides, there is no error to tell.
    """
    if not (found.is_leaf and expected.is_leaf):
        return "", None
    if (found.grad is None) != (expected.grad is None):
        return "only one side has a gradient", None
    if found.grad is None or expected.grad is None:
        return "", None
    if max(_norm(found.grad), _norm(expected.grad)) <= vanishing * (1 + _norm(expected)):
        return "", None
    if found.grad.dtype == expected.grad.dtype and _same_bits(found.grad, expected.grad):
        return "", 0.0  # also NaN
    return "", relative_error(found.grad, expected.grad)


def _norm(tensor: torch.Tensor | None) -> float:
    return 0.0 if tensor is None else _wide(tensor).norm().item()


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise VerificationError(f"The tied model differs from the oracle: {message}.")


# -- values that may be anything ---------------------------------------------------------------


class _Opened(NamedTuple):
    """A value taken apart: its class, a text, and its parts with the code that reads them."""

    kind: str
    text: str = ""
    parts: Sequence[tuple[str, Any]] = ()


_Names = Mapping[int, str]  # of the modules of a model, by id

_ATOMS = (
    *(int, float, complex, str, bytes, enum.Enum, type(None), types.CodeType),
    *(torch.dtype, torch.device, torch.layout, torch.memory_format),
)


def _open(value: Any, names: _Names) -> _Opened:
    """Take a value apart. A module of the model is known by its name."""
    kind = _class_name(type(value))
    if isinstance(value, nn.Module) and id(value) in names:
        return _Opened("module", names[id(value)] or "the root")
    if isinstance(value, _ATOMS):
        return _Opened(kind, repr(value))
    if isinstance(value, type):
        return _Opened("class", _class_name(value))
    if isinstance(value, set | frozenset):
        labels = sorted(_label(item, names) for item in value)
        return _Opened(kind, f"{{{', '.join(labels)}}}")
    for cls, opener in _OPENERS.items():
        if isinstance(value, cls):
            return _Opened(kind, *opener(value))
    return _Opened(kind, *_open_object(value))


_Parts = tuple[str, list[tuple[str, Any]]]


def _open_dict(value: dict[Any, Any]) -> _Parts:
    text = f"{len(value)} keys"
    if all(isinstance(key, _ATOMS) for key in value):
        text = f"the keys {', '.join(map(repr, value))}"
    keys = [("", key) for key in value if not isinstance(key, _ATOMS)]
    items = [(f"[{_label(key, {})}]", item) for key, item in value.items()]
    return text, [*keys, *items, *_open_members(_members(value))[1]]


def _open_sequence(value: Any) -> _Parts:
    fields = getattr(value, "_fields", ())
    paths = [f".{name}" for name in fields] or [f"[{i}]" for i in range(len(value))]
    items = list(zip(paths, value, strict=False))
    return f"{len(value)} items", [*items, *_open_members(_members(value))[1]]


def _open_members(members: Mapping[str, Any]) -> _Parts:
    """Attributes, in whatever order they were set."""
    names = sorted(members, key=str)
    return f"the attributes {', '.join(map(str, names))}", [(f".{n}", members[n]) for n in names]


def _open_function(value: types.FunctionType) -> _Parts:
    cells = [_cell_contents(cell) for cell in value.__closure__ or ()]
    parts = [value.__code__, value.__defaults__, value.__kwdefaults__, *cells]
    return value.__qualname__, [("", part) for part in parts]


def _cell_contents(cell: types.CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # a name that is not bound yet
        return None


def _open_object(value: Any) -> _Parts:
    """Take an object apart as pickle does. If that fails, only its class is compared."""
    if dataclasses.is_dataclass(value):
        fields = [field.name for field in dataclasses.fields(value) if hasattr(value, field.name)]
        return _open_members({name: getattr(value, name) for name in fields} | _members(value))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            reduced = value.__reduce_ex__(4)
    except Exception:  # locks, generators, handles of C++
        return "", []
    if isinstance(reduced, str):
        return reduced, []
    function, args, state, *iterators = (*reduced, None)[:5]
    text, parts = _open_state(state)
    lists = [list(iterator) for iterator in iterators if iterator is not None]
    return text, [("", function), ("", args), *parts, *(("", made) for made in lists)]


def _open_state(state: Any) -> _Parts:
    """The `__dict__` and slots of an object, or what its `__getstate__` returns."""
    if isinstance(state, tuple) and all(isinstance(s, dict | types.NoneType) for s in state):
        state = {name: value for members in state for name, value in (members or {}).items()}
    return _open_members(state) if isinstance(state, dict) else ("", [("", state)])


_OPENERS: dict[Any, Callable[[Any], _Parts]] = {
    dict: _open_dict,
    (list, tuple, collections.deque): _open_sequence,
    types.FunctionType: _open_function,
    # Not by its function: the forward of a tied module is another.
    types.MethodType: lambda value: (value.__name__, [("", value.__self__)]),
    weakref.ReferenceType: lambda value: ("", [("", value())]),
    nn.Module: lambda value: _open_members(_attributes(value) | value._parameters | value._buffers),
    fx.Graph: lambda value: ("", []),  # thousands of nodes, which no call changes
}


def _members(value: Any) -> dict[str, Any]:
    return getattr(value, "__dict__", {})


def _class_name(cls: type) -> str:
    """Where a class is defined: a copied module of the tied model has a class of its own."""
    return f"{cls.__module__}.{cls.__qualname__}".removeprefix("builtins.")


def _label(value: Any, names: _Names) -> str:
    """A short text that is the same for equal values of both sides."""
    if isinstance(value, tuple):
        return f"({', '.join(_label(item, names) for item in value)})"
    if isinstance(value, _ATOMS):
        return repr(value)
    return names.get(id(value)) or _class_name(type(value))


def _tensors_in(value: Any, names: _Names) -> Iterator[tuple[str, torch.Tensor]]:
    """The tensors in any value, once each, and the paths to them."""
    pending, seen = [("", value)], {}
    while pending:
        path, part = pending.pop()
        if id(part) in seen:
            continue
        seen[id(part)] = part  # alive, so that its id stays its own
        if isinstance(part, torch.Tensor):
            yield path, part
        else:
            parts = _open(part, names).parts
            pending += [(path + suffix, inner) for suffix, inner in reversed(parts)]


class _Differ:
    """Finds where values of the two sides differ, and counts and measures their tensors.

    Args:
        found, expected: names of the modules of each side.
    """

    def __init__(self, found: _Names, expected: _Names) -> None:
        self.found, self.expected = found, expected
        self.tensors, self.error = 0, 0.0

    def differences(self, found: Any, expected: Any) -> Iterator[tuple[str, str]]:
        """The path to each part that differs, and how it does."""
        pending, seen = [("", found, expected)], {}
        while pending:
            path, a, b = pending.pop()
            if (id(a), id(b)) in seen:
                continue
            seen[id(a), id(b)] = a, b  # alive, so that ids stay theirs
            if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
                how = self.of_tensors(a, b)
            elif a is b:
                continue
            else:
                how, parts = self.of_values(a, b)
                pending += [(path + suffix, x, y) for suffix, x, y in reversed(parts)]
            if how:
                yield path, how

    def of_tensors(self, found: torch.Tensor, expected: torch.Tensor) -> str:
        self.tensors += 1
        if is_lazy(found) or is_lazy(expected):
            return "" if is_lazy(found) == is_lazy(expected) else "only one side has initialized it"
        for name in ("shape", "dtype", "device", "layout", "requires_grad"):
            a, b = getattr(found, name), getattr(expected, name)
            if a != b:
                return f"its {name} is {a}, not {b}"
        if _class_name(type(found)) != _class_name(type(expected)):
            return f"{_class_name(type(found))}, not {_class_name(type(expected))}"
        if found.is_meta or _same_bits(found, expected):
            return ""
        error = relative_error(found, expected)
        self.error = max(self.error, error)
        return f"relative error {error:.1e}" if error else "other signs of zeros"

    def of_values(self, found: Any, expected: Any) -> tuple[str, list[tuple[str, Any, Any]]]:
        """How two values differ by themselves; if they don't, their parts in pairs."""
        a, b = _open(found, self.found), _open(expected, self.expected)
        if a.kind != b.kind:
            return f"{a.kind}, not {b.kind}", []
        if a.text != b.text or len(a.parts) != len(b.parts):
            return f"{a.text:.100}, not {b.text:.100}", []
        return "", [(path, x, y) for (path, x), (_, y) in zip(a.parts, b.parts, strict=True)]


# -- the two sides -----------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class _Call:
    """A circumstance in which both sides are called."""

    name: str
    grad: bool
    seed: int


_CALLS = (
    _Call("first call", True, 1234),
    _Call("second call", True, 1235),
    _Call("no_grad", False, 1236),
)


@dataclasses.dataclass
class _Result:
    """What a call leaves behind."""

    inputs: tuple[tuple[Any, ...], dict[str, Any]]
    output: Any = None
    error: Exception | None = None

    @functools.cached_property
    def arguments(self) -> dict[str, Any]:
        args, kwargs = self.inputs
        return {f"argument {name}": value for name, value in (*enumerate(args), *kwargs.items())}


_KINDS = ("parameter", "buffer", "attribute")  # of state


class _Side:
    """One side of a comparison: a model, and how to call it.

    Args:
        run: calls the model with positional and named arguments, and passes its output on.
        learned: modules that rules have brought in, by their names in the tied model.
        dropped: the stored tensors that the tied model no longer has, by owner and attribute.
    """

    def __init__(
        self,
        model: nn.Module,
        run: Callable[[Any, Any, Callable[[Any], None]], None] = lambda args, kwargs, then: None,
        learned: Mapping[str, nn.Module] = types.MappingProxyType({}),
        dropped: Mapping[tuple[int, str], Any] = types.MappingProxyType({}),
    ) -> None:
        self.model, self.run, self.learned, self.dropped = model, run, learned, dropped

    @classmethod
    def tied(cls, tied: nn.Module) -> _Side:
        copied = copy.deepcopy(tied)
        names = [f"ties.{name}" for name in report(copied).plan.modules]
        learned = {name: copied.get_submodule(name) for name in names}
        return cls(copied, lambda args, kwargs, then: then(copied(*args, **kwargs)), learned)

    @classmethod
    def oracle(cls, model: nn.Module, plan: Any) -> _Side:
        model, ties, modules = copy.deepcopy((model, plan.ties, plan.modules))
        learned = {f"ties.{name}": module for name, module in modules.items()}
        targets = [tie.target for tie in ties if _is_dropped(tie)]
        dropped = {slot(model, name): read(model, name) for name in targets}

        def run(args: Any, kwargs: Any, then: Callable[[Any], None]) -> None:
            oracle_run(model, ties, args, kwargs, then, learned)

        return cls(model, run, learned, dropped)

    def train(self, mode: bool) -> None:
        for module in (self.model, *self.learned.values()):
            module.train(mode)

    def modules(self) -> dict[str, nn.Module]:
        """All modules by name; a shared one has several."""
        found = dict(self.model.named_modules(remove_duplicate=False))
        for name, module in self.learned.items():
            found |= dict(module.named_modules(prefix=name, remove_duplicate=False))
        return found

    def names(self) -> _Names:
        return {id(module): name for name, module in reversed(self.modules().items())}

    def parameters(self) -> dict[str, nn.Parameter]:
        found = dict(self.model.named_parameters(remove_duplicate=False))
        for name, module in self.learned.items():
            found |= dict(module.named_parameters(prefix=name, remove_duplicate=False))
        return found

    def state(self) -> dict[str, Any]:
        """All that a call may change: stored tensors and plain attributes, by name.

        Without attributes of learnable transforms: how often these run is not promised.
        """
        learned = {inner for module in self.learned.values() for inner in module.modules()}
        return {
            f"the {kind} {prefix}.{attr}".replace(" .", " "): value
            for prefix, module in self.modules().items()
            for kind in _KINDS[: 2 if module in learned else 3]
            for attr, value in self._members(module, kind)
            if (id(module), attr) not in self.dropped and not self._lists_dropped(value)
        }

    def _members(self, module: nn.Module, kind: str) -> Iterator[tuple[str, Any]]:
        if kind == "parameter":
            yield from module.named_parameters(recurse=False, remove_duplicate=False)
        elif kind == "buffer":
            yield from module.named_buffers(recurse=False, remove_duplicate=False)
        else:
            yield from _attributes(module).items()

    def _lists_dropped(self, value: Any) -> bool:
        """Whether this is a list such as those of the weights of an nn.LSTM."""
        if type(value) is not list:
            return False
        listed = [item() if isinstance(item, weakref.ref) else item for item in value]
        return any(item is tensor for item in listed for tensor in self.dropped.values())

    def call(self, inputs: Any, call: _Call, autocast: torch.dtype | None) -> _Result:
        """Run the model on copies of the inputs, and the backward of what it returns."""
        result = _Result(copy.deepcopy(inputs))
        parameters = self.parameters().values()
        for parameter in parameters:
            parameter.grad = None
        devices = {t.device.type for t in (*parameters, *self.model.buffers())}
        devices |= {tensor.device.type for _, tensor in _tensors_in(inputs, {})}

        def then(output: Any) -> None:
            result.output = output
            seed(call.seed)
            if call.grad:
                with _autocast(devices, autocast, enabled=False):
                    backward([tensor for _, tensor in _tensors_in(output, self.names())])

        seed(call.seed)
        try:
            with torch.set_grad_enabled(call.grad), _autocast(devices, autocast):
                self.run(*result.inputs, then)
        except Exception as error:  # user code may raise anything; then both sides must
            result.error = error
        return result

    def gradients(self, result: _Result) -> dict[str, torch.Tensor]:
        """Parameters and inputs that get one, by the name of their gradient."""
        inputs = {
            name + path: tensor
            for name, value in result.arguments.items()
            for path, tensor in _tensors_in(value, {})
        }
        leaves = self.parameters() | inputs
        return {f"the gradient of {name}": t for name, t in leaves.items() if t.requires_grad}


@contextlib.contextmanager
def _autocast(
    devices: set[str], dtype: torch.dtype | None, *, enabled: bool = True
) -> Iterator[None]:
    """Autocast on these devices; without a dtype, what there is already."""
    with contextlib.ExitStack() as stack:
        for device in sorted(devices - {"meta"}) if dtype is not None else ():
            stack.enter_context(torch.autocast(device, dtype, enabled=enabled))
        yield


def _attributes(module: nn.Module) -> dict[str, Any]:
    """The plain attributes that a user's code may set, with the training flag."""
    if isinstance(module, torch.jit.ScriptModule):
        return {}
    hidden = _OF_GRAPHS if isinstance(module, fx.GraphModule) else _OF_MODULES
    return {
        name: value
        for name, value in vars(module).items()
        if name not in hidden and not name.startswith("_fxtie_")
    }


_OF_MODULES = {"_compiled_call_impl", *vars(nn.Module())} - {"training"}
_OF_GRAPHS = _OF_MODULES | vars(fx.GraphModule({}, fx.Graph())).keys() - {"training"}


# -- the comparison ----------------------------------------------------------------------------


class _Difference(NamedTuple):
    """What differs, by name, and how."""

    what: str
    how: str


class _Match:
    """Two sides that must stay alike, call by call.

    Attributes:
        apart: what differs before the first call, and how.
    """

    def __init__(self, found: _Side, expected: _Side) -> None:
        self.found, self.expected = found, expected
        self.added = found.state().keys() - expected.state().keys()  # by the pass
        self.apart: dict[str, str] = {}
        for what, _, how in list(self.state(self.differ())):
            self.apart.setdefault(what, how)

    def differ(self) -> _Differ:
        return _Differ(self.found.names(), self.expected.names())

    def state(self, differ: _Differ) -> Iterator[tuple[str, str, str]]:
        """What differs now and did not before: its name, the path inside of it, and how."""
        found, expected = self.found.state(), self.expected.state()
        for what in expected | found:
            if what in self.added or what in self.apart:
                continue
            if what not in found:
                yield what, "", "it is missing"
            elif what not in expected:
                yield what, "", "it is new"
            else:
                for path, how in differ.differences(found[what], expected[what]):
                    yield what, path, how


class _Round:
    """One call of both sides, compared.

    Attributes:
        differences: everything that differs, outputs first.
        nothing_proved: of a first call, why equality would say nothing; empty if it does.
        cause: what a side raised.
    """

    def __init__(
        self, match: _Match, inputs: Any, call: _Call, autocast: torch.dtype | None
    ) -> None:
        self.match, self.call, self.autocast = match, call, autocast
        self.found = match.found.call(inputs, call, autocast)
        self.expected = match.expected.call(inputs, call, autocast)
        self.differ = match.differ()
        self.compared: dict[str, None] = {}
        self.gradient_error: float | None = None
        self.nothing_proved = ""
        self.cause = self.found.error or self.expected.error
        self.differences = list(self.compare())

    @property
    def name(self) -> str:
        kind = f", autocast {self.autocast}".replace("torch.", "") if self.autocast else ""
        return self.call.name + kind

    def row(self, mode: str) -> VerifiedCall:
        compared, differ = tuple(self.compared), self.differ
        errors = differ.error, self.gradient_error
        return VerifiedCall(mode, self.name, compared, differ.tensors, *errors)

    def compare(self) -> Iterator[_Difference]:
        if self.cause is not None:
            yield from self.errors()
        else:
            yield from self.outputs()
            if self.call.grad:
                yield from self.gradients()
            if self.call is _CALLS[0]:
                self.nothing_proved = self.proves_nothing()
            yield from self.inputs()
        for what, path, how in self.match.state(self.differ):
            yield _Difference(what + path, how)
        kinds = {what.split(" ")[1] for what in self.match.expected.state()}
        self.compared |= {f"{kind}s": None for kind in sorted(kinds, key=_KINDS.index)}

    def errors(self) -> Iterator[_Difference]:
        found, expected = self.found.error, self.expected.error
        if type(found) is not type(expected):
            told = [
                "returns" if error is None else f"raises {type(error).__name__}: {error}"
                for error in (found, expected)
            ]
            yield _Difference("the call", f"the tied model {told[0]}, the oracle {told[1]}")
        elif self.call is _CALLS[0] and expected is not None:
            raise expected  # the model can't be run with these inputs
        else:
            self.compared[f"both raise {type(found).__name__}"] = None

    def outputs(self) -> Iterator[_Difference]:
        self.compared["outputs"] = None
        found, expected = self.found.output, self.expected.output
        places = [path for path, _ in _tensors_in(expected, self.differ.expected)]
        for path, how in self.differ.differences(found, expected):
            if path not in places:
                what = f"the output{path}"
            else:
                place = places.index(path)
                plain = path in ("", f"[{place}]")
                what = f"output {place}" if plain else f"output {place} ({path})"
            yield _Difference(what, how)

    def gradients(self) -> Iterator[_Difference]:
        self.compared["gradients"] = None
        self.gradient_error = 0.0
        found = self.match.found.gradients(self.found)
        expected = self.match.expected.gradients(self.expected)
        for what in (what for what in expected if what in found):
            tolerance = _tolerance(expected[what].dtype, self.autocast)
            fault, error = _gradient_error(found[what], expected[what], tolerance / 100)
            if error is not None:
                self.differ.tensors += 1
                self.gradient_error = max(self.gradient_error, error)
                fault = "" if error < tolerance else f"relative error {error:.1e}"
            if fault:
                yield _Difference(what, fault)

    def inputs(self) -> Iterator[_Difference]:
        """What the calls have made of their copies of the inputs."""
        found, expected = self.found.arguments, self.expected.arguments
        for name in expected:
            self.compared["inputs"] = None
            for path, how in self.differ.differences(found[name], expected[name]):
                yield _Difference(f"{name}{path} after the call", how)

    def proves_nothing(self) -> str:
        outputs = [tensor for _, tensor in _tensors_in(self.expected.output, self.differ.expected)]
        if not outputs:
            return "the output holds no tensor"
        leaves = self.match.expected.gradients(self.expected).values()
        norm = sum(_norm(_gradient(tensor)) for tensor in leaves)
        if norm == 0:
            return "all gradients vanish"
        outputs = [output for output in outputs if output.requires_grad] or outputs
        return _proves_nothing(outputs) or ("" if norm < math.inf else "gradients are not finite")


def _tolerance(dtype: torch.dtype, autocast: torch.dtype | None) -> float:
    """How far gradients may be apart: they are sums, added up in any order."""
    low = 0.0 if autocast is None else 4 * torch.finfo(autocast).eps
    if dtype in (torch.float64, torch.complex128):
        return max(1e-12, low)
    return max(1e-5, low, 4 * torch.finfo(dtype).eps if dtype.itemsize < 4 else 0.0)


class _Verifier:
    """One run of `verify`."""

    def __init__(
        self, model: nn.Module, tied: nn.Module, inputs: Any, autocast: torch.dtype | None
    ) -> None:
        self.model, self.tied, self.inputs, self.autocast = model, tied, inputs, autocast
        self.plan = report(tied).plan
        self.calls: list[VerifiedCall] = []
        self.skipped = {
            f"the graph of {tie.target}'s transform": "is what the oracle runs"
            for tie in self.plan.ties
            if isinstance(tie.transform, Lowered)
        }

    def run(self, train: bool) -> None:
        mode = "train" if train else "eval"
        match = self.match(_Side.tied(self.tied), train)
        self.check_start(match)
        rounds = self.rounds(match)
        if any(round.differences for round in rounds):
            self.judge(rounds, train, mode)
        if reason := rounds[0].nothing_proved:
            raise Vacuous(f"In {mode}, {reason}.")
        self.calls += [round.row(mode) for round in rounds]

    def match(self, found: _Side, train: bool) -> _Match:
        expected = _Side.oracle(self.model, self.plan)
        for side in (found, expected):
            side.train(train)
        return _Match(found, expected)

    def rounds(self, match: _Match) -> list[_Round]:
        return [_Round(match, self.inputs, call, self.autocast) for call in _CALLS]

    def check_start(self, match: _Match) -> None:
        """Raise if the sides don't store the same tensors. Attributes may differ, and are named."""
        for what, how in match.apart.items():
            if not what.startswith("the attribute "):
                raise VerificationError(
                    f"The tied model and the model differ before any call, in {what}: {how}. Pass "
                    f"the model that was tied, with the tensors that the tied model has now."
                )
            self.skipped[what] = f"differs before the first call ({how})"

    def judge(self, rounds: list[_Round], train: bool, mode: str) -> None:
        """Raise for what differs, unless two oracles differ there too: a time, say."""
        oracles = self.match(_Side.oracle(self.model, self.plan), train)
        noise = {what for round in self.rounds(oracles) for what, _ in round.differences}
        found = [(round, *difference) for round in rounds for difference in round.differences]
        for round, what, how in found:
            if what not in noise:
                message = f"{what} in {mode}, {round.name}: {how}."
                for attribute, before in round.match.apart.items():
                    message += f" Before the first call, {attribute} differs: {before}."
                raise VerificationError(
                    f"The tied model differs from the oracle: {message}"
                ) from round.cause
        for round, what, _ in found:
            if not what.startswith("the attribute "):
                raise Vacuous(
                    f"Nothing is proved: two runs of the oracle differ as well, in {what} in "
                    f"{mode}, {round.name}. The model depends on something else than the random "
                    f"seeds of torch, random and numpy."
                )
            self.skipped[what] = "differs between two runs of the oracle"

    def check_originals(self, originals: _Originals) -> None:
        """Raise if a copy has changed an original, or has used a tensor that is derived."""
        if changed := originals.changed():
            raise VerificationError(f"A copy changes {changed}: it reaches it {_REACHED}.")
        dropped = {slot(self.model, tie.target) for tie in self.plan.ties if _is_dropped(tie)}
        for name in originals.trained():
            if slot(self.model, name) in dropped:
                raise VerificationError(f"A copy uses {name} of the model, {_REACHED}.")
            self.skipped[f"the gradient of {name}"] = f"reaches the model itself {_REACHED}"


class _Originals:
    """The models that were passed in, which nothing here may change."""

    def __init__(self, model: nn.Module, tied: nn.Module) -> None:
        self.models = {"the model": model, "the tied model": tied}
        copies = copy.deepcopy(self.models)
        self.matches = {
            name: _Match(_Side(original), _Side(copies[name]))
            for name, original in self.models.items()
        }

    @contextlib.contextmanager
    def without_gradients(self) -> Iterator[None]:
        """A block after which all gradients are as they were before it."""
        parameters = [p for model in self.models.values() for p in model.parameters() if p.is_leaf]
        gradients = {parameter: parameter.grad for parameter in parameters}
        for parameter in parameters:
            parameter.grad = None
        try:
            yield
        finally:
            for parameter, gradient in gradients.items():
                parameter.grad = gradient

    def changed(self) -> str:
        """What the copies have changed in the originals; empty for nothing."""
        for name, match in self.matches.items():
            for what, path, how in match.state(match.differ()):
                return f"{what}{path} of {name} ({how})"
        return ""

    def trained(self) -> list[str]:
        """Parameters of the originals that got a gradient."""
        named = [pair for model in self.models.values() for pair in model.named_parameters()]
        return list(dict.fromkeys(name for name, p in named if _gradient(p) is not None))


_REACHED = (
    "by something that copy.deepcopy does not copy, such as a closure, a weak reference, or a "
    "module of TorchScript"
)


def verify(
    model: nn.Module,
    tied: nn.Module,
    *args: Any,
    autocast: torch.dtype | None = None,
    **kwargs: Any,
) -> Verification:
    """Check a tied model on inputs of yours, against `torch.func.functional_call`.

    The tied model and the oracle (the untied model with the derived tensors swapped in) run on
    copies, in eval and then in train. In each mode the same copies are called three times: twice
    with gradients, so that what one call leaves behind must serve the next, and once under
    `torch.no_grad()`.

    After each call, these must agree:

    * outputs: structure, types and values, tensors bit for bit;
    * gradients of parameters, of learnable transforms and banks, and of inputs, up to rounding: a
      relative error of 1e-5, 1e-12 in float64, four machine epsilons in half precision or autocast;
    * the inputs, which a forward may change in place;
    * parameters, buffers, and plain attributes of modules, with all that these hold: counters,
      lists, dicts, objects.

    Args:
        model: the model that was tied.
        tied: the result of `transform`. Of a compiled one, the module inside is verified.
        *args: inputs of the forward. Each call gets its own copies.
        autocast: `torch.bfloat16` or `torch.float16`, to run each forward under `torch.autocast` on
            the devices of model and inputs. Never passed to the forward: if that has an argument
            of this name, pass it by position.
        **kwargs: named inputs of the forward.

    Returns:
        One row per call: what was compared, how many tensors, the largest errors. `print` shows a
        table.

    Raises:
        VerificationError: naming the first difference, its mode and call. Also if a copy of a model
            changes the original, which it may reach through a closure. The subclass `Vacuous` says
            that nothing is proved: outputs or gradients are zero, constant or not finite, or two
            runs of the oracle differ.
        FxtieError: if `tied` is not a tied model, or `autocast` is not one of these.

    Notes:
        * `model`, `tied`, their gradients and modes, and all random generators stay as they are.
        * Attributes that differ before the first call, or between two runs of the oracle (a time,
          say), are not compared; nor are those of learnable transforms, since how often these run
          is not promised. The result names the former.
        * If a later call of the oracle raises, as a forward that needs gradients does under
          `no_grad`, the tied model must raise an error of the same type; the result says so.
        * Of objects that pickle cannot take apart, such as a lock, only the class is compared.
        * Needs memory for a copy of the model, and for one of each side while they run.

    Example:
        >>> import fxtie
        >>> net = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 4))
        >>> tied = fxtie.transform(net, fxtie.Rule("2", "0", torch.square))
        >>> proof = fxtie.verify(net, tied, torch.randn(3, 4))
        >>> print(proof)  # doctest: +ELLIPSIS
        mode    call         compared ...
        >>> all(call.output_error == 0 for call in proof.calls)
        True
        >>> proof = fxtie.verify(net, tied, torch.randn(3, 4), autocast=torch.bfloat16)
        >>> proof.calls[0].call
        'first call, autocast bfloat16'
    """
    if autocast not in (None, torch.bfloat16, torch.float16):
        raise FxtieError(
            f"autocast= is an argument of verify, and torch.bfloat16 or torch.float16, not "
            f"{autocast!r}. Pass a forward's argument of this name by position."
        )
    tied = getattr(tied, "_orig_mod", tied)
    verifier = _Verifier(model, tied, (args, kwargs), autocast)
    originals = _Originals(model, tied)
    with same_random_states(), originals.without_gradients():
        try:
            for train in (False, True):
                verifier.run(train)
        except VerificationError as error:
            if reached := originals.changed() or " and ".join(originals.trained()):
                raise type(error)(f"{error} A copy reaches {reached}, {_REACHED}.") from error
            raise
        verifier.check_originals(originals)
    return Verification(tuple(verifier.calls), verifier.skipped)
