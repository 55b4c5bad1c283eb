"""Copies tensors to the device without waiting for it."""

from __future__ import annotations

import torch
from torch import Tensor


def moved(tensor: Tensor, device: torch.device) -> Tensor:
    """Returns a tensor on `device`. A CUDA device fetches what is on the CPU by itself, from pinned memory, once its
    earlier work is done: nobody waits for it."""
    if device.type == "cuda" and tensor.device.type == "cpu":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)
