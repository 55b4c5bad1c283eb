"""Copies tensors: to the device, without waiting for it, and to have them back."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def moved(tensor: Tensor, device: torch.device) -> Tensor:
    """Returns a tensor on `device`. A CUDA device fetches what is on the CPU by itself, from pinned memory, once its
    earlier work is done: nobody waits for it."""
    if device.type == "cuda" and tensor.device.type == "cpu":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


@torch.no_grad()
def copies(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Returns copies of tensors, on their own device or, if they do not fit there, on the CPU."""
    try:
        return [tensor.clone() for tensor in tensors]
    except torch.OutOfMemoryError:
        return [tensor.to("cpu", copy=True) for tensor in tensors]
