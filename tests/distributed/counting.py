"""What a rank sends, and the memory that it takes: dispatch modes that see each op."""

from __future__ import annotations

import gc
import re
import time
import weakref

import torch
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Sent(TorchDispatchMode):
    """Notes collectives, and the bytes of the largest tensor of each.

    Attributes:
        calls: name and shape of each, in their order.
        bytes: of all.
    """

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[str, tuple[int, ...]]] = []
        self.bytes = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        if "c10d" in function.namespace and re.search("gather|reduce", str(function)):
            tensors = [t for t in tree_leaves((args, result)) if isinstance(t, torch.Tensor)]
            largest = max(tensors, key=lambda tensor: tensor.nbytes)
            self.calls.append((function.__name__, tuple(largest.shape)))
            self.bytes += largest.nbytes
        return result

    @property
    def gathers(self) -> int:
        """How many tensors were gathered by themselves, not with their unit."""
        return sum(name.startswith("all_gather_into_tensor") for name, _ in self.calls)


class Memory(TorchDispatchMode):
    """Measures the memory of the tensors that ops make while it is active.

    Attributes:
        peak: the most that lived after an op, in bytes.
    """

    def __init__(self) -> None:
        super().__init__()
        self._storages: dict[int, weakref.ref[torch.UntypedStorage]] = {}
        self.peak = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        self._note(args, result)
        self.peak = max(self.peak, self.held)
        return result

    def _note(self, *tensors) -> None:
        for leaf in tree_leaves(tensors):
            tensor = leaf._local_tensor if isinstance(leaf, DTensor) else leaf
            if type(tensor) in (torch.Tensor, torch.nn.Parameter):
                storage = tensor.untyped_storage()
                self._storages[storage._cdata] = weakref.ref(storage)

    @property
    def settled(self) -> int:
        """Bytes that live once nothing is let go any more.

        That is less what waits for the garbage collector, and for threads of gloo, which may hold
        a buffer for a moment after the collective is over.
        """
        gc.collect()
        before, held = -1, self.held
        while held != before:
            time.sleep(0.05)
            before, held = held, self.held
        return held

    @property
    def held(self) -> int:
        """Bytes that live now. FSDP2 empties storages, and fills them again."""
        alive = (ref() for ref in self._storages.values())
        return sum(storage.nbytes() for storage in alive if storage is not None)
