"""Counts the bytes and operations of code that runs on tensors with or without values."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry


class Live(TorchDispatchMode):
    """Counts the bytes of all storages that live, their peak, and floating-point operations. What was there before it
    began counts nothing."""

    def __init__(self, known: Sequence[Tensor]) -> None:
        super().__init__()
        self.now = self.peak = self.flop = 0
        self._sizes = weakref.WeakKeyDictionary({tensor.untyped_storage(): 0 for tensor in known})

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default and isinstance(args[0], FakeTensor):
            return 1  # a choice that depends on values, such as whether dropout keeps a layer: it does
        result = func(*args, **(kwargs or {}))
        if count := flop_registry.get(func.overloadpacket):
            self.flop += count(*args, **(kwargs or {}), out_val=result)
        for value in pytree.tree_leaves(result):
            if isinstance(value, Tensor) and (storage := value.untyped_storage()) not in self._sizes:
                self._sizes[storage] = size = storage.nbytes()
                self.now += size
                self.peak = max(self.peak, self.now)
                weakref.finalize(storage, self._gone, size)
        return result

    def _gone(self, size: int) -> None:
        self.now -= size

    def mark(self) -> int:
        """Begins a new peak here, and returns the bytes that are in use."""
        self.peak = self.now
        return self.now


class WithoutValues(FakeTensorMode):
    """Does without what PyTorch does for a CUDA that is not there, because it changes that for the whole process, and
    has been seen to crash it when another thread trains."""

    @property
    def avoid_device_init(self) -> bool:
        return False


def drop_values(view: nn.Module, device: torch.device) -> None:
    """Replaces the parameters and buffers of a view by ones that have a device and no values."""
    for module in view.modules():
        for name, value in module._parameters.items():
            if value is not None:
                new = torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device=device)
                module._parameters[name] = nn.Parameter(new, requires_grad=value.requires_grad)
        for name, value in module._buffers.items():
            if value is not None:
                module._buffers[name] = torch.empty_like(value, device=device)
