"""Makes random numbers that depend on a seed and on counters alone."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator
from typing import Any

import torch


def generator(seed: int, *counters: int | str) -> torch.Generator:
    """Returns a CPU generator that depends on its arguments alone, so that micro-batch k draws the same in any run."""
    digest = hashlib.sha256(":".join(map(str, (seed, *counters))).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big", signed=True))


@contextlib.contextmanager
def seeded(device: torch.device, seed: int) -> Iterator[None]:
    """Seeds PyTorch's global generators while inside, the CPU's and the device's, and keeps them as they were."""
    with kept_random_state(device):
        torch.manual_seed(seed)
        yield


@contextlib.contextmanager
def kept_random_state(device: torch.device) -> Iterator[None]:
    """Makes PyTorch's global generators, the CPU's and those of all devices of a kind, go on afterwards as if nothing
    had been drawn inside. Those of MPS and DirectML cannot be kept."""
    module: Any = getattr(torch, device.type, None)
    kept = device.type not in ("cpu", "mps") and hasattr(module, "get_rng_state")
    with torch.random.fork_rng(range(module.device_count()) if kept else [],
                               device_type=device.type if kept else "cuda"):
        yield
