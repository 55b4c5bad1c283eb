"""A card in software: a second torch device, "card:0", that stands for a GPU which this machine lacks.

    import softcard as card

    x = torch.randn(4, 4, device=card.DEVICE)  # in the host's memory; computed by the CPU's kernels, with its very bits
    x @ torch.randn(4, 4)                      # RuntimeError: Expected all tensors to be on the same device
    with card.limited(10 * 1024**2):           # a card of 10 MB: beyond that torch.OutOfMemoryError is raised
        step()
    print(card.peak(), card.allocations())     # the most bytes at a time, and how many pieces of memory were asked for
    card.refused_at(step, 7)                   # runs the step with its eighth allocation refused

What it has of a GPU: a limit and an exact count of bytes (in blocks of 512), errors where devices are mixed, random
numbers of its own, a thread of autograd of its own, foreach optimizers, attention in one piece, autocast. What it
lacks: speed, streams that run side by side, CUDA's kernels with their rounding and workspaces, and memory in pieces.
What a kernel takes and gives back while it runs is not counted.

A process has the card from `load` on. That must come before its first backward pass, because PyTorch gives devices
their threads then. So each file of this folder runs in a process of its own (conftest.py), and there ComfyUI believes
in the card as well (comfyui_on_card.py). A test needs nothing else: the fixture `host` has its model on the card.

The extension is built once, by g++ alone in half a minute, and is kept in LiveLoRA's cache folder. Without g++ the
tests of this folder are skipped, unless CI asks for them."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import shutil
import subprocess
import types
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

DEVICE = torch.device("privateuseone:0")
"""The card, which is called "card:0" from `load` on."""
SOURCE = Path(__file__).with_name("card.cpp")
NEVER = -1


def load() -> None:
    """Gives this process the card. Raises RuntimeError if it cannot be built."""
    torch.ops.load_library(str(_built()))
    torch.utils.rename_privateuse1_backend("card")
    torch._register_device_module("card", _module())
    torch.utils.generate_methods_for_privateuse1_backend()


def limit() -> int:
    """Returns the bytes that the card has in all."""
    return torch.ops.card.limit()


def used() -> int:
    """Returns the bytes that are in use."""
    return torch.ops.card.used()


def peak() -> int:
    """Returns the most bytes that were in use at a time since `reset_peak`."""
    return torch.ops.card.peak()


def reset_peak() -> None:
    """Begins to measure `peak` anew."""
    torch.ops.card.reset_peak()


def allocations() -> int:
    """Returns how many pieces of memory were asked for since `refused` or `count` began."""
    return torch.ops.card.allocations()


@contextlib.contextmanager
def limited(bytes_in_all: int) -> Iterator[None]:
    """Gives the card so many bytes in all while inside."""
    before = limit()
    torch.ops.card.set_limit(bytes_in_all)
    try:
        yield
    finally:
        torch.ops.card.set_limit(before)


@contextlib.contextmanager
def refused(n: int) -> Iterator[None]:
    """Refuses one allocation while inside, the n-th. The first is 0."""
    torch.ops.card.refuse(n)
    try:
        yield
    finally:
        torch.ops.card.refuse(NEVER)


def refused_at(step: Callable[[], object], n: int) -> bool:
    """Runs `step` with its n-th allocation refused, and returns whether it came so far. The OutOfMemoryError that
    follows is caught here if `step` does not catch it."""
    with refused(n):
        with contextlib.suppress(torch.OutOfMemoryError):
            step()
        return allocations() > n


def count(step: Callable[[], object]) -> int:
    """Runs `step` and returns how many pieces of memory it asked for."""
    with refused(NEVER):
        step()
        return allocations()


def peak_of(step: Callable[[], object]) -> int:
    """Runs `step` and returns the most bytes that it had in use at a time, beyond those that were in use before."""
    before = used()
    reset_peak()
    step()
    return peak() - before


def _built() -> Path:
    """Returns the extension for this PyTorch. It is built if it is not there."""
    digest = hashlib.sha256(SOURCE.read_bytes() + torch.__version__.encode()).hexdigest()[:12]
    caches = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
    target = Path(os.environ.get("LIVELORA_CACHE", caches / "livelora"), f"card-{digest}.so")
    target.parent.mkdir(parents=True, exist_ok=True)
    with open(target.with_suffix(".lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # pytest's other process may build it just now
        if not target.exists():
            _build(target)
    return target


def _build(target: Path) -> None:
    compiler, torch_at = shutil.which("g++"), Path(torch.__file__).parent
    if not compiler:
        raise RuntimeError("there is no g++ to build the card with")
    made = target.with_suffix(".tmp")
    result = subprocess.run(
        [compiler, "-O1", "-w", "-std=c++20", "-shared", "-fPIC", str(SOURCE), "-o", str(made),
         f"-I{torch_at / 'include'}", f"-I{torch_at / 'include' / 'torch' / 'csrc' / 'api' / 'include'}",
         f"-L{torch_at / 'lib'}", "-ltorch_cpu", "-lc10"], capture_output=True, text=True)
    if result.returncode:
        raise RuntimeError(f"the card cannot be built: {result.stderr[:2000]}")
    made.replace(target)


def _seed(seed: int) -> None:
    torch.ops.card.seed((seed + 2**63) % 2**64 - 2**63)  # PyTorch takes a seed of 64 bits with a sign or without


def _module() -> types.ModuleType:
    """Returns `torch.card`: what PyTorch asks of a device by its name."""
    module, ops = types.ModuleType("torch.card"), torch.ops.card
    vars(module).update(
        is_available=lambda: True, is_initialized=lambda: True, _initialized=True, device_count=lambda: 1,
        current_device=lambda: 0, set_device=lambda device: None, device=lambda index: contextlib.nullcontext(),
        synchronize=lambda device=None: None, empty_cache=lambda: None,
        get_amp_supported_dtype=lambda: [torch.float16, torch.bfloat16], _is_in_bad_fork=lambda: False,
        manual_seed=_seed, manual_seed_all=_seed, get_rng_state=lambda device=None: ops.random_state(),
        set_rng_state=lambda state, device=None: ops.set_random_state(state))
    return module
