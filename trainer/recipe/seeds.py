"""Makes random numbers that depend on a seed and on counters alone."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator

import torch


def generator(seed: int, *counters: int | str) -> torch.Generator:
    """Returns a CPU generator that depends on its arguments alone, so that micro-batch k draws the same in any run."""
    digest = hashlib.sha256(":".join(map(str, (seed, *counters))).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big", signed=True))


@contextlib.contextmanager
def seeded(device: torch.device, seed: int) -> Iterator[None]:
    """Seeds PyTorch's global generators while inside, the CPU's and the device's. Afterwards they go on as if nothing
    had been drawn, except that of MPS, which PyTorch cannot keep."""
    kept = device.type in ("cuda", "xpu")
    with torch.random.fork_rng(devices=[device] if kept else [], device_type=device.type if kept else "cuda"):
        torch.manual_seed(seed)
        yield
