"""Turns the values of a LoRA file into numbers that can be computed with, and finds those that say nothing."""

from __future__ import annotations

import torch
from torch import Tensor

COMPUTED = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
"""The types in which PyTorch computes. All others are for storage."""


def numbers(key: str, value: Tensor) -> Tensor:
    """Returns a tensor of a file, as fp32 if its type is for storage (fp8, integers).

    Raises ValueError, with the tensor's name, if it is packed, empty, or not finite in fp32."""
    if value.is_complex() or str(value.dtype).endswith("_x2"):
        raise ValueError(f"{key} is stored as {str(value.dtype).removeprefix('torch.')}, which cannot be read. Get the "
                         "file in fp16, bf16, fp32 or fp8.")
    if not value.numel():
        raise ValueError(f"{key} is empty: its shape is {tuple(value.shape)}. Get the file again.")
    found = value if value.dtype in COMPUTED else value.float()
    if not found.float().isfinite().all():
        raise ValueError(f"{key} has values that are not finite (NaN or infinite) in fp32, as after a training that "
                         "diverged. Choose a file from before that.")
    return found
