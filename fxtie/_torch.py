"""Every private name of torch that fxtie uses, each with its reason.

Classes are imported. Functions are looked up when they are called: a release of torch without one
breaks what needs it and not `import fxtie`. tests/test_house.py says which is gone.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from typing import Any

import torch
import torch.fx
from torch._ops import OpOverload as OpOverload  # an ATen op in a graph
from torch._ops import OpOverloadPacket as OpOverloadPacket  # its overloads
from torch._subclasses.fake_tensor import (  # tensors without data; torch.export's are of these
    DataDependentOutputException as DataDependentOutputException,
)
from torch._subclasses.fake_tensor import (
    DynamicOutputShapeException as DynamicOutputShapeException,
)
from torch._subclasses.fake_tensor import FakeCopyMode as FakeCopyMode
from torch._subclasses.fake_tensor import FakeTensor as FakeTensor
from torch._subclasses.fake_tensor import FakeTensorMode as FakeTensorMode
from torch.utils import _pytree
from torch.utils._python_dispatch import TorchDispatchMode as TorchDispatchMode  # sees each op

pytree = _pytree  # nested containers; there is no public one

ATTRIBUTES: dict[str, dict[str, str]] = {
    "torch.nn.Linear(1, 1)": {
        "_parameters": "tensors by name, past `__getattr__`, which derived attributes replace",
        "_buffers": "the same",
        "_modules": "children by name, with those that are None, which named_children leaves out",
        "_non_persistent_buffers_set": "buffers that a state_dict leaves out",
        "_forward_hooks": "hooks would not run for a module whose forward stands in a graph",
        "_forward_pre_hooks": "the same",
        "_backward_hooks": "the same",
        "_backward_pre_hooks": "the same",
    },
    "torch.nn.GRU(1, 1)": {"_init_flat_weights": "lists its weights anew"},
    "torch.ones(1)": {
        "_version": "counts in-place changes",
        "_is_view": "autocast does not remember casts of views",
        "_backward_hooks": "a derived tensor would lose them",
    },
}
"""Private attributes, with the reason, by an expression that makes an object with them."""


def has_storage(tensor: torch.Tensor) -> bool:
    """Whether a tensor views memory of its own: sparse ones don't, and raise if asked for it."""
    return bool(torch._C._has_storage(tensor))


def storage_id(tensor: torch.Tensor) -> int:
    """The same for tensors that share memory. `data_ptr` is 0 for all that have no data."""
    place: int = tensor.untyped_storage()._cdata
    return place


def conjugate_view(tensor: torch.Tensor) -> torch.Tensor:
    """A view with the conjugate bit flipped, real tensors included; `conj()` leaves those alone."""
    return torch._conj(tensor)


def negative_view(tensor: torch.Tensor) -> torch.Tensor:
    """A view with the negative bit flipped, as `tensor.conj().imag` has it."""
    return torch._neg_view(tensor)


def empty_fake(
    mode: FakeTensorMode,
    shape: tuple[int, ...],
    stride: tuple[int, ...],
    dtype: torch.dtype,
    device: torch.device,
) -> FakeTensor:
    """A fake tensor, made past all modes: asking `mode` for one takes much longer."""
    from torch.utils._mode_utils import no_dispatch

    with no_dispatch():
        meta = torch.empty_strided(shape, stride, dtype=dtype, device="meta")
    return FakeTensor(mode, meta, device)


def queue_callback(callback: Callable[[], None]) -> None:
    """Call this at the end of the backward that is running."""
    torch.autograd.Variable._execution_engine.queue_callback(callback)


def surroundings() -> tuple[Any, ...]:
    """What is active around a call; a remembered value is used only while it stays the same.

    Hooks on saved tensors (checkpoints), a backward, transforms of `torch.func`, dispatch modes.
    """
    return (
        torch._C._autograd._top_saved_tensors_default_hooks(True),
        torch._C._current_graph_task_id(),
        torch._C._functorch.maybe_current_level(),
        torch._C._len_torch_dispatch_stack(),
    )


def in_functorch() -> bool:
    """Whether a transform of `torch.func` is running."""
    return torch._C._functorch.peek_interpreter_stack() is not None


def is_jit_tracing() -> bool:
    """Whether `torch.jit.trace` is running. The public `torch.jit.is_tracing` is compiled away."""
    return bool(torch._C._is_tracing())


def is_jit_traced() -> bool:
    """`is_jit_tracing` for code that Dynamo compiles: it takes this call for a constant."""
    return torch._C._get_tracing_state() is not None


def is_exporting() -> bool:
    """Whether `torch.export` runs. The public function is true in all compiled code in 2.11."""
    return bool(torch.compiler._is_exporting_flag)


def get_frame_callback() -> Any:
    """Dynamo's callback for new frames: None where nothing is being compiled."""
    from torch._C._dynamo.eval_frame import get_eval_frame_callback

    return get_eval_frame_callback()


def skip_code(function: Callable[..., Any]) -> None:
    """Let Dynamo run this function as it is and begin with those that it calls."""
    from torch._dynamo.eval_frame import skip_code as skip  # importing it takes a second

    skip(function.__code__)


def forward_from_source(source: str, namespace: dict[str, Any]) -> Callable[..., Any]:
    """A forward from generated code, in whose tracebacks and debuggers the code shows."""
    from torch.fx.graph_module import _forward_from_src

    return _forward_from_src(source, namespace)


def has_global_hooks() -> bool:
    """Whether hooks are registered for all modules: a graph would not call them."""
    return bool(torch.nn.modules.module._has_any_global_hook())  # type: ignore[no-untyped-call]


def is_wrapped(function: Callable[..., Any]) -> bool:
    """Whether `torch.fx.wrap` has declared a function to be one operation."""
    name, variables = function.__name__, function.__globals__
    declared = (id(variables), name) in torch.fx._symbolic_trace._wrapped_fns_to_patch
    return declared and variables.get(name) is function


def in_place_functions() -> set[Any]:
    """`torch.relu_` and its like, which `torch.overrides` does not list."""
    functions = torch._C._VariableFunctions
    names = (name for name in dir(functions) if re.fullmatch("[a-z0-9]\\w*[^_]_", name))
    return {getattr(functions, name) for name in names}


OPERATOR_NAMESPACES = (torch._ops._Ops, torch._ops._OpNamespace)
"""Types of `torch.ops` and `torch.ops.aten`, whose attributes are operators."""

TENSOR_METHODS = torch._C.TensorBase
"""The class that most methods of tensors belong to."""

QUESTIONS = tuple(
    getattr(torch._C, name)
    for name in ("_is_tracing", "_get_cudnn_enabled")
    if hasattr(torch._C, name)
)
"""What torch's own layers ask about the state of the process."""


def dtensor() -> Any:
    """`torch.distributed.tensor`, which takes half a second to import; None if nobody has."""
    return sys.modules.get("torch.distributed.tensor")


def is_dtensor(value: Any) -> bool:
    """Whether a tensor is one that several processes hold together."""
    return (api := dtensor()) is not None and isinstance(value, api.DTensor)


def dtensor_part(tensor: Any) -> torch.Tensor:
    """What this process holds of a DTensor. The public `to_local` is an op of autograd."""
    part: torch.Tensor = tensor._local_tensor
    return part


def is_fsdp_managed(module: torch.nn.Module) -> bool:
    """Whether `fully_shard` has looked at the tensors of a module."""
    return "_is_fsdp_managed_module" in module.__dict__


def fsdp_state(module: torch.nn.Module) -> Any:
    """What FSDP2 keeps of a module that is a unit of it; None of others."""
    fsdp: Any = sys.modules.get("torch.distributed.fsdp")
    if fsdp is None or not isinstance(module, fsdp.FSDPModule):
        return None
    return module._get_fsdp_state()


def fsdp_states() -> list[Any]:
    """What FSDP2 keeps of all units in this process."""
    if "torch.distributed.fsdp" not in sys.modules:
        return []
    from torch.distributed._composable_state import _module_state_mapping

    states = map(fsdp_state, list(_module_state_mapping))
    return list({id(state): state for state in states if state is not None}.values())


def fsdp_groups(state: Any) -> list[Any]:
    """The Parameters of a unit, in the groups in which FSDP2 gathers them."""
    groups: list[Any] | None = getattr(state, "_fsdp_param_groups", None)
    if groups is None:  # torch 2.9
        return [group] if (group := state._fsdp_param_group) else []
    return groups


def is_called_by_mover() -> bool:
    """Whether the caller of the caller is code that moves Parameters: FSDP2's, or a pipeline's."""
    name: str = sys._getframe(2).f_globals.get("__name__", "")
    return name.startswith(("torch.distributed.fsdp._fully_shard", "torch.distributed.pipelining"))


def fsdp_modules(unit: Any) -> tuple[torch.nn.Module, ...]:
    """The modules of a unit, given what FSDP2 keeps of it, or of one of its groups."""
    modules: tuple[torch.nn.Module, ...]
    modules = unit.modules if hasattr(unit, "modules") else unit._modules
    return modules


def fsdp_policy(state: Any) -> Any:
    """The mixed-precision policy of a unit."""
    return state._mp_policy


def fsdp_places(param: Any) -> list[tuple[torch.nn.Module, str]]:
    """The modules and attributes where FSDP2 puts a Parameter."""
    info = param._module_info
    shared = zip(info.shared_modules, info.shared_param_names, strict=True)
    return [(info.module, info.param_name), *shared]


def fsdp_whole(param: Any) -> torch.Tensor | None:
    """What stands in the place of a sharded Parameter while its unit runs."""
    return getattr(param, "_unsharded_param", None)


def fsdp_parts(param: Any) -> torch.Tensor | None:
    """What stands in the place of a sharded Parameter after its unit's forward, with larger parts.

    `reshard_after_forward` as a number asks for it.
    """
    return getattr(param, "_sharded_post_forward_param", None)


def fsdp_layout(param: Any) -> tuple[Any, tuple[torch.Size, tuple[int, ...]]]:
    """The processes over which FSDP2 shards a Parameter, and shape and stride before it did so."""
    return param.mesh_info.mesh, (param._orig_size, param._contiguous_orig_stride)


def fsdp_inner_spec(param: Any) -> Any:
    """How tensor parallelism had placed a Parameter before FSDP2 sharded it; None if it had not."""
    found = getattr(param, "_unsharded_dtensor_spec", None)
    return getattr(param, "_tp_spec", None) if found is None else found  # of torch 2.9
