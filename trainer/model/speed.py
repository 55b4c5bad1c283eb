"""Measures how fast a device can compute."""

from __future__ import annotations

import statistics
import time
from functools import cache

import torch

SMALLEST, LARGEST, LONG_ENOUGH, TIMES = 256, 4096, 0.002, 5
"""The matrices that are multiplied, in rows; the seconds after which no larger ones are tried; and how often."""


def matmul_rate(device: torch.device, dtype: torch.dtype) -> float | None:
    """Returns how many floating-point operations a second the device does when it multiplies large matrices, which is
    what a step is made of; None if there is no room for them. It takes some hundredths of a second, once."""
    try:
        return _rate(device, dtype)
    except RuntimeError:  # among others out of memory
        return None


@cache
def _rate(device: torch.device, dtype: torch.dtype) -> float:
    side = SMALLEST
    while (seconds := _product_seconds(side, device, dtype)) < LONG_ENOUGH and side < LARGEST:
        side *= 2
    return 2 * side**3 / seconds


@torch.no_grad()
def _product_seconds(side: int, device: torch.device, dtype: torch.dtype) -> float:
    """Returns the median time of a product of two square matrices."""
    # No random numbers: those of the device are the prompts'. And not all alike: a card multiplies such faster.
    factor = torch.linspace(-1, 1, side * side, dtype=dtype, device=device).view(side, side)
    out, taken = factor @ factor, []
    for _ in range(TIMES):
        _wait(device)
        began = time.perf_counter()
        torch.mm(factor, factor, out=out)
        _wait(device)
        taken.append(time.perf_counter() - began)
    return statistics.median(taken)


def _wait(device: torch.device) -> None:
    if device.type != "cpu":
        torch.get_device_module(device).synchronize()
